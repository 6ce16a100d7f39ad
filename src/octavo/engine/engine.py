"""The engine: requests in, tokens out, one step at a time."""

import logging
import math
import time
from dataclasses import dataclass, field

import numpy as np

from octavo.backends.protocol import Executor, Int32, LogitRows, StepResult
from octavo.engine.config import EngineConfig
from octavo.engine.pages import PagePool, root_key
from octavo.engine.request import FinishReason, Output, Refusal, Request, RequestRefused, TokenLogprobs
from octavo.engine.scheduler import Scheduler, Step
from octavo.engine.sequence import Sequence, Status
from octavo.engine.table import SequenceTable

log = logging.getLogger(__name__)


@dataclass(slots=True)
class EngineStats:
    """Where the engine stands. Counters grow from the engine's start.

    Attributes:
        running, waiting: sequences that hold a row, and all others that have not ended.
        kv_usage: share of the pages that sequences own, 0 to 1.
        stored_tokens, held_tokens: tokens in pages, and the capacity of the pages that sequences hold, now.
        prefix_queries, prefix_hits: prompt tokens looked up in the prefix cache, and found.
        preemptions: sequences that lost their pages for a while.
        steps: steps run. step_tokens: tokens computed by the last one.
    """

    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0
    stored_tokens: int = 0
    held_tokens: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    preemptions: int = 0
    steps: int = 0
    step_tokens: int = 0


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
        self._completions = _Rate()

    # --- requests -------------------------------------------------------------------------------------------------

    def add(self, request: Request) -> None:
        """Queue a request.

        Raises:
            RequestRefused: it can never be served, or not now. Nothing has changed then.
        """
        self._check(request)
        now = time.monotonic()
        live = self._live[request.request_id] = _Live(request)
        salt_key = root_key(request.cache_salt)
        leader: Sequence | None = None
        for index in range(request.params.n):
            if index in request.finished:
                continue
            sequence = Sequence(
                request,
                index,
                number=self._arrivals,
                arrival=now,
                salt_key=salt_key,
            )
            self._arrivals += 1
            self._sequences += 1
            live.sequences[index] = sequence
            # Choices without a token of their own wait for the first one's prompt, to share its pages.
            if leader is not None and not any(request.outputs.values()):
                leader.forks.append(sequence)
            else:
                leader = leader or sequence
                self.scheduler.waiting.push(sequence)

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
        highest = max(max(request.prompt_token_ids), max(params.logit_bias, default=0))
        lowest = min(min(request.prompt_token_ids), min(params.logit_bias, default=0))
        if lowest < 0 or highest >= self.executor.vocab_size:
            wrong = lowest if lowest < 0 else highest
            raise RequestRefused(
                Refusal.INVALID,
                f"token id {wrong} is not in the vocabulary; ids go from 0 to {self.executor.vocab_size - 1}",
            )
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
        if params.min_tokens > 0 and len(set(params.stop_token_ids)) >= self.executor.vocab_size:
            raise RequestRefused(Refusal.INVALID, "min_tokens bans the stop tokens, and these are the whole vocabulary")
        if not request.resumed:
            self._check_queue(params.n, length)

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
        return self.scheduler.has_work

    def step(self) -> list[Output]:
        """Run one step and return what it produced, in order of table rows.

        A step that fails is run again one sequence at a time, so that what one request breaks ends that request alone.
        """
        started = time.monotonic()
        step = self.scheduler.schedule(started)
        if step is None:
            return []
        self._steps += 1
        self._step_tokens = int(step.counts.sum())
        try:
            outputs = self._run(step)
        except Exception:
            log.exception("a step of %d sequences failed; running them one by one", len(step.rows))
            outputs = self._run_one_by_one(step)
        ended = sum(output.finish_reason is not None for output in outputs)
        self._completions.note(ended, time.monotonic() - started)
        return outputs

    def _run_one_by_one(self, step: Step) -> list[Output]:
        outputs = []
        for i, row in enumerate(step.rows):
            copies = {int(row): step.copies[int(row)]} if int(row) in step.copies else {}
            sequence = self.scheduler.table.sequence(int(row))
            try:
                outputs += self._run(Step(step.rows[i : i + 1], step.counts[i : i + 1], copies))
            except Exception as error:
                log.error("request %s failed: %r", sequence.request.request_id, error)
                outputs.append(self._fail(sequence, f"the engine failed on this request: {type(error).__name__}"))
        return outputs

    def _run(self, step: Step) -> list[Output]:
        copies = np.array(list(step.copies.values()), np.int32).reshape(-1, 2)
        batch, owners = self.scheduler.table.batch(step.rows, step.counts, copies)
        result = self.executor.submit(batch).result()
        self.scheduler.advance(step)
        return self._collect(batch.logits, owners, result)

    def _collect(self, logits: LogitRows, owners: Int32, result: StepResult) -> list[Output]:
        """Give every row of a result to its sequence; scored prompt tokens come last (see `SequenceTable.batch`)."""
        table = self.scheduler.table
        now = time.monotonic()
        drawn = int(np.count_nonzero(logits.targets < 0))
        for i in range(drawn, len(owners)):
            table.sequence(int(owners[i])).prompt_logprobs.append(_logprobs(logits, result, i))
        outputs = []
        tokens = result.tokens.tolist()
        for i in range(drawn):
            sequence = table.sequence(int(owners[i]))
            logprobs = [_logprobs(logits, result, i)] if sequence.params.logprobs is not None else None
            outputs.append(self._append(sequence, tokens[i], logprobs, now))
        return outputs

    def _append(self, sequence: Sequence, token: int, logprobs: list[TokenLogprobs] | None, now: float) -> Output:
        """Add a drawn token to its sequence; end the sequence when that was its last."""
        output = Output(request_id=sequence.request.request_id, index=sequence.index)
        first = sequence.num_outputs == sequence.delivered
        if first:
            output.cached_tokens = sequence.cached_tokens
            started = sequence.first_scheduled or now
            output.queue_seconds = started - sequence.arrival
            output.prefill_seconds = now - started
            if sequence.wants_prompt_logprobs:
                output.prompt_logprobs = sequence.prompt_logprobs
        if sequence.length < sequence.max_length:  # with max_tokens 0 only the prompt was wanted
            self.scheduler.table.append_token(sequence, token)
            output.token_ids, output.logprobs = [token], logprobs
        if output.token_ids and token in sequence.stop_token_ids:
            output.finish_reason = FinishReason.STOP
        elif sequence.length >= sequence.max_length:
            output.finish_reason = FinishReason.LENGTH
        if first and sequence.forks:
            self.scheduler.fork(sequence, now)
        if output.finish_reason is not None:
            self._end(sequence)
        return output

    def _fail(self, sequence: Sequence, message: str) -> Output:
        self._end(sequence)
        return Output(
            request_id=sequence.request.request_id,
            index=sequence.index,
            finish_reason=FinishReason.ERROR,
            error=message,
        )

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


class _Rate:
    """Events per second of work, averaged with weights that fade over half a minute of it."""

    _WINDOW = 30.0

    def __init__(self) -> None:
        self._events = self._seconds = 0.0

    def note(self, events: int, seconds: float) -> None:
        fade = math.exp(-seconds / self._WINDOW)
        self._events = self._events * fade + events
        self._seconds = self._seconds * fade + seconds

    def per_second(self) -> float:
        return self._events / self._seconds if self._events else 0.0


def _logprobs(logits: LogitRows, result: StepResult, row: int) -> TokenLogprobs:
    count = max(int(logits.num_logprobs[row]), 0)
    return TokenLogprobs(
        float(result.logprobs[row]), result.top_tokens[row, :count].tolist(), result.top_logprobs[row, :count].tolist()
    )
