"""A scripted engine behind the real `OutputStream`, a small real tokenizer, and a server around them in a thread."""

import asyncio
import contextlib
import json
import sys
import tempfile
import threading
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import tokenizers
import uvloop
from tokenizers import decoders, models, pre_tokenizers, trainers

from octavo.deployments import Deployment, Deployments, GenerationDefaults
from octavo.engine.client import EngineFailed, EngineState, EngineUnavailable, OutputStream
from octavo.engine.config import ModelInfo
from octavo.engine.request import FinishReason, Output, PromptLogprobs, Refusal, Request, RequestRefused, TokenLogprobs
from octavo.engine.stats import EngineStats
from octavo.server.listener import bind
from octavo.server.run import serve
from octavo.server.settings import ServerSettings
from octavo.text import Tokenizer, load_tokenizer
from octavo.weights.checkpoint import Checkpoint

MODEL = "org/tiny-chat"
ALIAS = "tiny"
CONTEXT = 512
CORPUS = [
    "What is the capital of France? The capital of France is Paris, and it has been for a long time.",
    "A sheet that is folded four times makes sixteen pages: größere Bücher, où est la bibliothèque ?",
    "紙を四回折る 😀👩‍👩‍👧 and tokens 0 1 2 3 4 5 6 7 8 9",
]
TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "{% for name in message if name not in ('role', 'content', 'name', 'tool_calls') %}[{{ name }}]{% endfor %}"
    "{% if message.tool_calls is defined and message.tool_calls|length != 1 %}"
    "{{ raise_exception('one call at a time') }}{% endif %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{{ opening | default('') }}{% endif %}"
)


def make_tokenizer(folder: Path, template: str = TEMPLATE, special: Sequence[str] = ()) -> Tokenizer:
    """A byte-level BPE with ChatML's tokens, `special` ones and a template, trained on a few lines."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>", *special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS * 3, trainer)
    backend.save(str(folder / "tokenizer.json"))
    config = {"eos_token": "<|im_end|>", "bos_token": "<|endoftext|>", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return load_tokenizer(Checkpoint(folder, {}, {}, {}, None))


def read_aloud(prompt: str, index: int) -> str:
    """What the engine says unless a test has other plans: different for every prompt and choice."""
    return f"I read {prompt[-24:]!r} as {index} 😀 und höre auf."


class FakeEngine:
    """Continues every prompt with a scripted text, one token per choice and step, through the real `OutputStream`.

    Attributes:
        reply: (prompt text, choice) -> the text that the model "wants" to say before it ends its turn.
        tokens: if set, the ids to say instead, without an end-of-turn token of their own.
        hold: nothing is computed while it is set: requests queue.
        silent: nothing is said of whether requests are accepted.
        capacity: requests beyond so many are refused as overloaded. refuse: refuse every request so.
        fail_after: steps of a request after which the engine is lost. failure_reason: what is said of it then.
        step_seconds: time a step takes.
        aborts: what was aborted, by choice index (None for whole requests).
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.ledger: dict[str, OutputStream] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._steppers: set[asyncio.Task[None]] = set()
        self.reset()

    def reset(self) -> None:
        self.state = EngineState.READY
        self.failure: str | None = None
        self.info: ModelInfo | None = ModelInfo(
            max_model_len=CONTEXT,
            vocab_size=self.tokenizer.vocab_size,
            num_pages=100,
            page_size=16,
            max_num_seqs=64,
            max_num_queued_reqs=1000,
            max_num_queued_tokens=1_000_000,
            isa=None,
            threads=1,
            kv_cache_dtype="fp32",
            backend="fake",
            weight_bytes=0,
            kv_cache_bytes=0,
        )
        self.load_progress = (0, 0)
        self.restarts = 0
        self.stalled = False
        self.reply: Callable[[str, int], str] = read_aloud
        self.tokens: list[int] | None = None
        self.hold = False
        self.silent = False
        self.capacity = 10_000
        self.refuse: RequestRefused | None = None
        self.fail_after: int | None = None
        self.failure_reason = "it was lost"
        self.step_seconds = 0.0
        self.requests: list[Request] = []
        self.aborts: Counter[int | None] = Counter()

    @property
    def stats(self) -> EngineStats:
        open_choices = sum(len(stream.outputs) - len(stream.finished) for stream in self.ledger.values())
        running, waiting = (0, open_choices) if self.hold else (open_choices, 0)
        return EngineStats(running=running, waiting=waiting, kv_usage=open_choices / 100)

    def submit(self, request: Request) -> OutputStream:
        if self.state is EngineState.LOADING:
            raise EngineUnavailable("the model is loading", 2.0)
        if self.state in (EngineState.FAILED, EngineState.STOPPED):
            raise EngineUnavailable("the engine failed: it broke")
        self._loop = asyncio.get_running_loop()
        stream = OutputStream(self, request)
        self.requests.append(replace(request, prompt_token_ids=list(request.prompt_token_ids)))  # for tests to compare
        refusal = self.refuse
        if len(self.ledger) >= self.capacity:
            refusal = RequestRefused(Refusal.OVERLOADED, "the queue is full", 1.0)
        self.ledger[request.request_id] = stream
        if refusal is not None:
            stream.close(refusal)
            return stream
        if not self.silent:
            stream.accepted.set()
        task = self._loop.create_task(self._run(stream))
        self._steppers.add(task)
        task.add_done_callback(self._steppers.discard)
        return stream

    def call(self, function: Callable[..., object], *arguments: object) -> None:
        """Call a function in the server's loop, from a test's thread."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(function, *arguments)

    def drop(self, stream: OutputStream) -> None:
        self.ledger.pop(stream.request.request_id, None)

    def send_abort(self, stream: OutputStream, index: int | None) -> None:
        self.aborts[index] += 1

    async def _run(self, stream: OutputStream) -> None:
        params = stream.request.params
        scripts = [self._script(stream.request, index) for index in range(params.n)]
        step = 0
        while stream.request.request_id in self.ledger:
            await asyncio.sleep(max(self.step_seconds, 0.002 if self.hold else 0.0))
            if self.hold:
                continue
            if step == self.fail_after:
                stream.close(EngineFailed(self.failure_reason))
                return
            live = [index for index in range(params.n) if index not in stream.finished]
            stream.deliver([self._output(stream.request, index, step, scripts[index]) for index in live])
            step += 1

    def _script(self, request: Request, index: int) -> list[int]:
        if self.tokens is not None:
            return self.tokens
        prompt = self.tokenizer.decode(list(request.prompt_token_ids))
        end = max(self.tokenizer.stop_token_ids)
        return [*self.tokenizer.encode(self.reply(prompt, index), add_special_tokens=False), end]

    def _output(self, request: Request, index: int, step: int, script: list[int]) -> Output:
        params = request.params
        output = Output(request_id=request.request_id, index=index)
        if step == 0:
            output.cached_tokens = len(request.prompt_token_ids) // 16 * 16
            output.queue_seconds, output.prefill_seconds = 0.001, 0.002
            if index == 0 and params.prompt_logprobs is not None:
                ids = request.prompt_token_ids[1:]
                entries = [self.logprobs(token, params.prompt_logprobs) for token in ids]
                output.prompt_logprobs = PromptLogprobs(
                    array("f", [entry.logprob for entry in entries]),
                    array("i", [token for entry in entries for token in entry.top_tokens]),
                    array("f", [logprob for entry in entries for logprob in entry.top_logprobs]),
                )
        if params.max_tokens == 0:
            output.finish_reason = FinishReason.LENGTH
            return output
        token = script[step % len(script)]
        output.token_ids = [token]
        if params.logprobs is not None:
            output.logprobs = [self.logprobs(token, params.logprobs)]
        if token in params.stop_token_ids and step >= params.min_tokens:
            output.finish_reason = FinishReason.STOP
        elif step + 1 == params.max_tokens:
            output.finish_reason = FinishReason.LENGTH
        return output

    def logprobs(self, token: int, count: int) -> TokenLogprobs:
        """Made up, but a function of the token; the token is the second most probable."""
        others = [(token + 1 + i) % self.tokenizer.vocab_size for i in range(count)]
        ranked = ([others[0], token, *others[1:]] if others else [])[:count]
        return TokenLogprobs(-(token % 7) - 0.5, ranked, [-(token % 7) - 0.25 * rank for rank in range(1, count + 1)])


def served(engine: FakeEngine, **changes: object) -> Deployment:
    """The fake engine as a model of a server."""
    fields = {
        "name": MODEL,
        "aliases": (ALIAS,),
        "root": MODEL,
        "tokenizer": engine.tokenizer,
        "engine": engine,
        "max_model_len": CONTEXT,
        "created": 1_700_000_000,
        "defaults": GenerationDefaults(),
    }
    return Deployment(**(fields | changes))


@contextlib.contextmanager
def running(settings: ServerSettings, *models: Deployment) -> Iterator[str]:
    """As `running_all`."""
    with running_all(settings, Deployments(models)) as url:
        yield url


@contextlib.contextmanager
def running_all(settings: ServerSettings, deployments: Deployments) -> Iterator[str]:
    """Run the real server on a free port, in a thread with a loop of its own. Yields its URL."""
    listener = bind("127.0.0.1", 0)
    port = listener.getsockname()[1]
    runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    loop = runner.get_loop()

    def run() -> None:
        with runner, contextlib.suppress(asyncio.CancelledError):
            runner.run(serve(settings, deployments, listener))

    def stop() -> None:
        for task in asyncio.all_tasks(loop):
            task.cancel()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        loop.call_soon_threadsafe(stop)
        thread.join()


def main(step_seconds: float, drain_seconds: float, store: str | None = None) -> None:
    """A server in a process of its own: prints its URL and serves until a signal."""
    with tempfile.TemporaryDirectory() as folder:
        engine = FakeEngine(make_tokenizer(Path(folder)))
    engine.step_seconds = step_seconds
    listener = bind("127.0.0.1", 0)
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)  # noqa: T201 - the test reads it
    settings = ServerSettings(shutdown_timeout=drain_seconds, store=store)
    uvloop.run(serve(settings, Deployments([served(engine)]), listener))


if __name__ == "__main__":
    main(float(sys.argv[1]), float(sys.argv[2]), *sys.argv[3:])
