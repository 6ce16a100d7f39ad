"""The engine: requests in, tokens out, one step at a time."""

import logging
import time
from concurrent.futures import Future, wait
from dataclasses import dataclass, field

from octavo.backends.protocol import Batch, Executor, StepResult
from octavo.engine.config import EngineConfig
from octavo.engine.outcome import failed, failure, follow, note_first, undrawable
from octavo.engine.pages import PagePool, root_key
from octavo.engine.request import FinishReason, Output, Refusal, Request, RequestRefused
from octavo.engine.scheduler import Scheduler
from octavo.engine.sequence import Sequence, Status
from octavo.engine.stats import EngineStats, Rate
from octavo.engine.step import Accepted, Step, accept
from octavo.engine.table import Masked, SequenceTable
from octavo.grammar.errors import GrammarError
from octavo.grammar.matcher import Grammars, Matcher

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Held:
    """A request whose grammar is being compiled."""

    live: "_Live"
    compiled: Future[Matcher]

    @property
    def succeeded(self) -> bool:
        """Whether that has come to a good end."""
        return self.compiled.done() and self.compiled.exception() is None


@dataclass(slots=True)
class _Live:
    """A request with choices that have not ended."""

    request: Request
    sequences: dict[int, Sequence] = field(default_factory=dict)


class Engine:
    """One replica of one model: queue, scheduler, pages and the executor that computes.

    Not thread-safe: one thread adds requests, aborts them and steps.

    Args:
        executor: the model on its device, with its page pool.
        config: how many sequences, tokens and waiting requests it takes.
        max_model_len: tokens of prompt and output together that a sequence may have.
    """

    def __init__(self, executor: Executor, config: EngineConfig, max_model_len: int) -> None:
        self.executor = executor
        self.config = config
        self.grammars = Grammars()
        self.max_model_len = max_model_len
        pool = PagePool(executor.num_pages, executor.page_size)
        pages_per_sequence = -(-max_model_len // executor.page_size)
        table = SequenceTable(config.max_num_seqs, pages_per_sequence, executor.page_size, executor.vocab_size)
        self.scheduler = Scheduler(
            pool,
            table,
            max_num_batched_tokens=config.batched_tokens,
            watermark=max(executor.num_pages // 100, 1),
            prefix_caching=config.enable_prefix_caching,
        )
        self._live: dict[str, _Live] = {}
        self._arrivals = 0
        self._sequences = 0
        self._steps = 0
        self._step_tokens = 0
        self._completions = Rate()
        self._held: list[_Held] = []
        self._lost: list[Output] = []

    # --- requests -------------------------------------------------------------------------------------------------

    def add(self, request: Request) -> None:
        """Queue a request.

        Raises:
            RequestRefused: it can never be served, or not now. Nothing has changed then.
        """
        self._check(request)
        now = time.monotonic()
        live = self._live[request.request_id] = _Live(request)
        salt_key = root_key(request.tenant, request.cache_salt)
        for index in range(request.params.n):
            if index in request.finished:
                continue
            live.sequences[index] = Sequence(
                request,
                index,
                number=self._arrivals,
                arrival=now,
                salt_key=salt_key,
            )
            if request.params.thinking is not None and self.grammars.vocabulary is not None:
                live.sequences[index].spelling = self.grammars.vocabulary.tokens
            self._arrivals += 1
            self._sequences += 1
        if request.params.grammar:
            self._hold(live)
        elif live.sequences:
            self._queue(live)

    def _queue(self, live: _Live) -> None:
        """Let a request's choices wait for rows. Those without a token of their own wait for the first one's prompt, to
        share its pages."""
        first, *others = live.sequences.values()
        self.scheduler.waiting.push(first)
        if any(live.request.outputs.values()):
            for sequence in others:
                self.scheduler.waiting.push(sequence)
        else:
            first.forks.extend(others)

    def _hold(self, live: _Live) -> None:
        """Let a request wait until its grammar has been compiled, which an engine that others use must not do."""
        held = _Held(live, self.grammars.compile(live.request.params.grammar))
        for sequence in live.sequences.values():
            sequence.status = Status.HELD
        if held.succeeded:
            self._lost += self._release(held)
        else:
            self._held.append(held)

    def _release(self, held: _Held) -> list[Output]:
        """Let go of a request whose grammar has been compiled. Returns what to tell if that failed."""
        sequences = list(held.live.sequences.values())
        try:
            for sequence in sequences:
                sequence.matcher = held.compiled.result().copy()
                sequence.matcher.resume(sequence.outputs)
                sequence.status = Status.WAITING
        except Exception as error:  # the failure of this request, whatever the compiler ran into
            for sequence in sequences:
                sequence.status = Status.HELD
                self._end(sequence)
            message = str(error) if isinstance(error, GrammarError) else failure(error)
            return [failed(sequence, message) for sequence in sequences]
        if sequences:  # nobody has aborted it meanwhile
            self._queue(held.live)
        return []

    def _release_compiled(self) -> list[Output]:
        ready = [held for held in self._held if held.compiled.done()]
        self._held = [held for held in self._held if held not in ready]
        return [output for held in ready for output in self._release(held)]

    def abort(self, request_id: str, index: int | None = None) -> None:
        """End a request, or one of its choices, without further output. Its pages are free at once."""
        live = self._live.get(request_id)
        if live is None:
            return
        for sequence in [s for i, s in live.sequences.items() if index is None or i == index]:
            self._end(sequence)

    def is_live(self, request_id: str) -> bool:
        """Whether a request has choices that have not ended."""
        return request_id in self._live

    def _check(self, request: Request) -> None:
        params, length = request.params, len(request.prompt_token_ids)
        scheduler, pool = self.scheduler, self.scheduler.pool
        if request.request_id in self._live:
            raise RequestRefused(Refusal.INVALID, f"request id {request.request_id!r} is already in use")
        if length == 0:
            raise RequestRefused(Refusal.INVALID, "the prompt is empty; it needs at least one token")
        self._check_ids(request)
        if length + params.max_tokens > self.max_model_len:
            raise RequestRefused(
                Refusal.TOO_LONG,
                f"{length} prompt tokens and max_tokens {params.max_tokens} are {length + params.max_tokens} tokens, "
                f"over the limit of {self.max_model_len}",
            )
        needed = scheduler.pages_for(length + params.max_tokens)
        if needed > pool.num_pages:
            raise RequestRefused(
                Refusal.TOO_LONG,
                f"{length} prompt tokens and max_tokens {params.max_tokens} need {needed} pages of {pool.page_size} "
                f"tokens, but the KV cache has {pool.num_pages}",
            )
        banned = {token for token in params.stop_token_ids if 0 <= token < self.executor.vocab_size}
        if params.thinking is not None and self.grammars.vocabulary is None:
            raise RequestRefused(Refusal.INVALID, "nobody has said what the model's tokens are")
        if params.min_tokens > 0 and len(banned) == self.executor.vocab_size:
            raise RequestRefused(Refusal.INVALID, "min_tokens bans the stop tokens, and these are the whole vocabulary")
        if not request.resumed:
            self._check_queue(params.n, length)

    def _check_ids(self, request: Request) -> None:
        """Refuse token ids that index nothing. Stop tokens need no check: one that cannot be drawn stops nothing."""
        params, vocab_size = request.params, self.executor.vocab_size
        known = (
            request.prompt_token_ids,
            params.logit_bias,
            params.allowed_token_ids,
            () if params.thinking is None else params.thinking.end,
            *params.bad_words,
            *request.outputs.values(),
        )
        lowest, highest = min(min(ids, default=0) for ids in known), max(max(ids, default=0) for ids in known)
        if lowest < 0 or highest >= vocab_size:
            wrong = lowest if lowest < 0 else highest
            raise RequestRefused(
                Refusal.INVALID,
                f"token id {wrong} is not in the vocabulary; ids go from 0 to {vocab_size - 1}",
            )
        most = max(map(len, request.outputs.values()), default=0)
        if most > params.max_tokens:
            raise RequestRefused(
                Refusal.INVALID, f"{most} tokens were delivered already, more than max_tokens {params.max_tokens}"
            )

    def _check_queue(self, choices: int, length: int) -> None:
        """Refuse what neither the free rows nor the queue can take."""
        scheduler, config = self.scheduler, self.config
        waiting, tokens = self._sequences - scheduler.num_running, scheduler.waiting.tokens
        overflow = waiting + choices - scheduler.table.free_count - config.max_num_queued_reqs
        if overflow > 0 or (waiting and tokens + choices * length > config.max_num_queued_tokens):
            raise RequestRefused(
                Refusal.OVERLOADED,
                f"the queue is full: {waiting} choices with {tokens} tokens are waiting, of at most "
                f"{config.max_num_queued_reqs} choices and {config.max_num_queued_tokens} tokens",
                retry_after=self._drain_seconds(),
            )

    def _drain_seconds(self) -> float:
        """How long the queue takes to drain at the measured rate; between 1 second and 2 minutes."""
        waiting = self._sequences - self.scheduler.num_running
        per_second = self._completions.per_second()
        return min(max(waiting / per_second, 1.0), 120.0) if per_second else 2.0

    # --- steps ----------------------------------------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        """Whether a step would compute anything."""
        return self.scheduler.has_work or bool(self._lost) or any(held.compiled.done() for held in self._held)

    def step(self) -> list[Output]:
        """Run one step and return what it produced, in order of table rows."""
        started = time.monotonic()
        lost, self._lost = self._lost, []
        if self._held:
            lost += self._release_compiled()
        step = self.scheduler.plan(started)
        if step is None:
            return lost
        self._steps += 1
        self._step_tokens = int(step.counts.sum())
        outputs = [output for part, accepted in self.compute(step) for output in self.commit(part, accepted)]
        ended = sum(output.finish_reason is not None for output in outputs)
        self._completions.note(ended, time.monotonic() - started)
        return lost + outputs if lost else outputs

    def compute(self, step: Step) -> list[tuple[Step, Accepted]]:
        """Submit a planned step and wait for what comes of it; nothing is committed.

        What fails is computed again in halves, until whatever breaks it stands alone: its request has failed then.

        Returns:
            The step, or the parts that it was computed in, each with what it brings.
        """
        try:
            batch, places, masked = self.scheduler.table.batch(step)
            return [(step, accept(batch, places, self._execute(batch, masked)))]
        except Exception as error:
            if len(step.rows) == 1:
                sequence = self.scheduler.table.sequence(int(step.rows[0]))
                log.exception("request %s failed", sequence.request.request_id)
                return [(step, Accepted([[]], failures={0: failure(error)}))]
            log.error("a step of %d sequences failed, %r; computing it in halves", len(step.rows), error)
        standing = self.scheduler.standing(step)
        halves = standing[: len(standing) // 2], standing[len(standing) // 2 :]
        return [part for half in halves if half for part in self.compute(step.part(half))]

    def _execute(self, batch: Batch, masked: Masked) -> StepResult:
        """Compute a batch while its masks are written beside it."""
        if batch.logits.masks is None or not any(masked.matchers):
            return self.executor.submit(batch).result()
        written = self.grammars.fill(masked.matchers, batch.logits.masks, masked.allowed)
        try:
            return self.executor.submit(batch, written.result).result()
        finally:
            wait([written])  # nobody else may touch the matchers before

    def commit(self, step: Step, accepted: Accepted) -> list[Output]:
        """Make true what a step brought its sequences: append tokens, publish pages, end what is complete.

        Takes effect once. Sequences that left their row since the step was planned are passed over, and whatever goes
        wrong with one ends that one alone.
        """
        if step.committed:
            return []
        step.committed = True
        table, now = self.scheduler.table, time.monotonic()
        outputs: list[Output] = []
        lost: list[int] = []
        eventful: list[tuple[Sequence, Output]] = []
        rows = step.rows.tolist()
        standing = self.scheduler.standing(step)
        for place in standing:
            sequence = table.sequence(rows[place])
            try:
                output = self._take(sequence, place, accepted, now)
            except GrammarError as error:
                output = failed(sequence, str(error), refused=True)
            except Exception as error:
                log.exception("request %s failed", sequence.request.request_id)
                output = failed(sequence, failure(error))
            if output is None:
                continue
            outputs.append(output)
            if sequence.forks or output.finish_reason is not None:
                eventful.append((sequence, output))
                if output.finish_reason is FinishReason.ERROR:
                    lost.append(place)
        if lost or len(standing) < len(rows):
            step = step.part([place for place in standing if place not in lost])
        self.scheduler.commit(step.rows, step.counts)
        for sequence, output in eventful:
            if sequence.forks and output.finish_reason is not FinishReason.ERROR:
                self.scheduler.fork(sequence, now)
            if output.finish_reason is not None:
                self._end(sequence)
        return outputs

    def _take(self, sequence: Sequence, place: int, accepted: Accepted, now: float) -> Output | None:
        """Append a sequence's new tokens, up to the one that ends it; what to tell of them, if there are any."""
        if accepted.failures and place in accepted.failures:
            return failed(sequence, accepted.failures[place])
        if accepted.undrawable and place in accepted.undrawable:
            return undrawable(sequence, accepted.undrawable[place])
        if place in accepted.prompt_logprobs:
            sequence.prompt_logprobs.extend(accepted.prompt_logprobs[place])
        tokens = accepted.tokens[place]
        if not tokens:
            return None
        logprobs = accepted.logprobs.get(place)
        request, reason = sequence.request, None
        output = Output(request_id=request.request_id, index=sequence.index, token_ids=tokens, logprobs=logprobs)
        if sequence.length == sequence.prompt_length:
            note_first(output, sequence, now)
        room = sequence.max_length - sequence.length  # none with max_tokens 0: only the prompt was wanted
        complete = False
        if sequence.matcher is not None:
            tokens, complete = follow(sequence.matcher, sequence, tokens, room)
        for count, token in enumerate(tokens, 1):
            if token in sequence.stop_token_ids:
                tokens, reason = tokens[:count], FinishReason.STOP
                break
        else:
            reason = FinishReason.STOP if complete else None
        if len(tokens) > room:
            tokens, reason = tokens[:room], FinishReason.LENGTH
        if tokens:
            self.scheduler.table.append(sequence, tokens)
        if reason is None and sequence.length >= sequence.max_length:
            reason = FinishReason.LENGTH
        if reason is not None:
            output.finish_reason = reason
            output.logprobs = logprobs and logprobs[: len(tokens)]
        output.token_ids = tokens
        return output

    def _end(self, sequence: Sequence) -> None:
        live = self._live[sequence.request.request_id]
        del live.sequences[sequence.index]
        self._sequences -= 1
        if not live.sequences:
            del self._live[sequence.request.request_id]
        leader = next((other for other in live.sequences.values() if sequence in other.forks), None)
        if leader is not None:
            leader.forks.remove(sequence)
            sequence.status = Status.FINISHED
        else:
            self.scheduler.remove(sequence)

    # --- what others may know -------------------------------------------------------------------------------------

    def stats(self) -> EngineStats:
        """Where the engine stands now."""
        scheduler = self.scheduler
        table, pool = scheduler.table, scheduler.pool
        return EngineStats(
            running=scheduler.num_running,
            waiting=self._sequences - scheduler.num_running,
            kv_usage=pool.used_count / pool.num_pages,
            stored_tokens=int(table.computed[table.active].sum()),
            held_tokens=int(table.held[table.active].sum()) * pool.page_size,
            prefix_queries=scheduler.prefix_queries,
            prefix_hits=scheduler.prefix_hits,
            preemptions=scheduler.preemptions,
            steps=self._steps,
            step_tokens=self._step_tokens,
        )
