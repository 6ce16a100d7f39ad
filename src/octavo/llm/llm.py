"""`LLM`: a model in a Python program, without a server."""

import asyncio
import queue
import random
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from functools import partial
from types import TracebackType
from typing import Any, NoReturn, Self

from octavo.deployments import Deployment
from octavo.deployments.prepare import SEED_BITS, Prepared, prepare
from octavo.deployments.request import GenerationRequest
from octavo.deployments.settings import DeploymentSettings
from octavo.engine.config import ModelInfo
from octavo.errors import InvalidRequest
from octavo.grammar.compiler import NotCompiled
from octavo.llm.background import Background, tell
from octavo.llm.generation import Generator
from octavo.llm.loading import ModelLike, deployment_settings, find, ready, running
from octavo.llm.outputs import RequestOutput, StreamChunk
from octavo.llm.params import SamplingParams
from octavo.llm.progress import counting_prompts, counting_weights
from octavo.llm.prompts import Messages, Params, PromptLike, chat_requests, raw_requests, stream_request
from octavo.text import Tokenizer


class LLM:
    """A language model: text, token ids or conversations in, text out. Usable from any thread, with or without a
    running event loop, by many callers at once; what runs at the same time is computed together.

        with LLM("smollm2:135m") as llm:
            for output in llm.generate(["The capital of France is", "2 + 2 ="], SamplingParams(max_tokens=8)):
                print(output.text)

    The engine ends with `close`, with the context, when the object is collected, and when the program ends.

    Args:
        model: a short name, a Hugging Face repository id, a folder or a .gguf file.
        in_process: compute on a thread of this process; otherwise a worker process computes, which leaves the GIL to
            the program, and is started again when it dies.
        seed: of the seeds that prompts without one get; None is different ones every time.
        progress: whether bars on standard error show how far fetching, loading and batches are; None: on a terminal.
        settings: those of the engine under the names of `octavo serve`'s flags (`max_num_seqs=8`).

    Raises:
        OctavoError: no such model, or one that cannot be loaded with these settings. One line says why.
    """

    def __init__(
        self,
        model: ModelLike,
        *,
        in_process: bool = False,
        seed: int | None = None,
        progress: bool | None = None,
        **settings: Any,
    ) -> None:
        self._progress = progress
        self._seeds = random.Random(seed)
        wanted = deployment_settings(model, settings)
        self.model = wanted.model
        found = find(wanted, progress=progress)
        with counting_weights(self.model, progress) as report:
            generating = partial(_generating, found, in_process=in_process, report=report)
            self._background = Background("LLM", generating)
        self._generator = self._background.value

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("an LLM cannot be sent to another process; make one there")

    def __repr__(self) -> str:
        return f"LLM({self.model!r})"

    def close(self) -> None:
        """End the engine and what it is computing. May be called again."""
        self._background.close()

    @property
    def tokenizer(self) -> Tokenizer:
        """Text to token ids and back."""
        return self._generator.deployment.tokenizer

    @property
    def max_model_len(self) -> int:
        """Tokens of prompt and output together that a request may have."""
        return self._generator.deployment.context_length

    # --- whole answers --------------------------------------------------------------------------------------------

    def generate(
        self,
        prompts: PromptLike | Sequence[PromptLike],
        sampling_params: Params = None,
        *,
        progress: bool | None = None,
    ) -> list[RequestOutput]:
        """Continue one prompt or several. The outputs come in the prompts' order.

        Args:
            prompts: texts, or lists of token ids.
            sampling_params: for all prompts, or one for each.
            progress: whether a bar shows how far the batch is; None: several prompts on a terminal.

        Raises:
            InvalidRequest: a prompt or its parameters cannot be served. Nothing has been computed then.
            BatchError: some of several prompts failed; it has the outputs of the others.
            OctavoError: the only prompt failed.
        """
        return self._complete(raw_requests(prompts, sampling_params), progress)

    async def agenerate(
        self, prompts: PromptLike | Sequence[PromptLike], sampling_params: Params = None
    ) -> list[RequestOutput]:
        """`generate` for programs with an event loop, which goes on meanwhile."""
        return await self._acomplete(raw_requests(prompts, sampling_params))

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        sampling_params: Params = None,
        *,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        progress: bool | None = None,
    ) -> list[RequestOutput]:
        """Reply to one conversation or several. The outputs come in the conversations' order.

        Args:
            messages: OpenAI's: `{"role": "user", "content": "Hi"}`, or several lists of them.
            sampling_params: for all conversations, or one for each.
            add_generation_prompt: end with the beginning of a reply; None: unless the last message is continued.
            continue_final_message: go on with the last message instead of replying to it.
            chat_template_kwargs: variables for the model's chat template.
            progress: whether a bar shows how far the batch is; None: several conversations on a terminal.

        Raises:
            InvalidRequest: a conversation or its parameters cannot be served. Nothing has been computed then.
            BatchError: some of several failed; it has the outputs of the others.
            OctavoError: the only one failed.
        """
        requests = chat_requests(
            messages,
            sampling_params,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            variables=chat_template_kwargs or {},
        )
        return self._complete(requests, progress)

    async def achat(
        self,
        messages: Messages | Sequence[Messages],
        sampling_params: Params = None,
        *,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """`chat` for programs with an event loop, which goes on meanwhile."""
        requests = chat_requests(
            messages,
            sampling_params,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            variables=chat_template_kwargs or {},
        )
        return await self._acomplete(requests)

    # --- streams --------------------------------------------------------------------------------------------------

    def stream(
        self, prompt: PromptLike | Messages, sampling_params: SamplingParams | None = None
    ) -> Iterator[StreamChunk]:
        """Continue one prompt, or reply to one conversation, a piece at every step. The request begins with the first
        piece that is asked for; to leave the iteration ends it.

        Raises:
            InvalidRequest: at once if the prompt or its parameters cannot be served.
            OctavoError: while iterating, if it fails.
        """
        [request] = self._prepare([stream_request(prompt, sampling_params)])
        return self._stream(request)

    def _stream(self, request: Prepared) -> Iterator[StreamChunk]:
        arrived: queue.SimpleQueue[StreamChunk | Future[None]] = queue.SimpleQueue()
        end = self._background.submit(self._generator.stream(request, arrived.put))
        end.add_done_callback(arrived.put)
        try:
            while isinstance(item := arrived.get(), StreamChunk):
                yield item
            self._background.result(end)
        finally:
            end.cancel()  # if it has not ended

    async def astream(
        self, prompt: PromptLike | Messages, sampling_params: SamplingParams | None = None
    ) -> AsyncIterator[StreamChunk]:
        """`stream` for programs with an event loop, which goes on meanwhile. All errors come while iterating."""
        [request] = await asyncio.to_thread(self._prepare, [stream_request(prompt, sampling_params)])
        loop = asyncio.get_running_loop()
        arrived: asyncio.Queue[StreamChunk | Future[None]] = asyncio.Queue()

        def put(item: StreamChunk | Future[None]) -> None:
            tell(loop, arrived.put_nowait, item)

        end = self._background.submit(self._generator.stream(request, put))
        end.add_done_callback(put)
        try:
            while isinstance(item := await arrived.get(), StreamChunk):
                yield item
            self._background.result(end)
        finally:
            end.cancel()  # if it has not ended

    # --- what they share ------------------------------------------------------------------------------------------

    def _complete(self, requests: Sequence[GenerationRequest], progress: bool | None) -> list[RequestOutput]:
        prepared = self._prepare(requests)
        with counting_prompts(len(requests), self._progress if progress is None else progress) as ended:
            return self._background.run(self._generator.complete(prepared, ended))

    async def _acomplete(self, requests: Sequence[GenerationRequest]) -> list[RequestOutput]:
        prepared = await asyncio.to_thread(self._prepare, requests)
        return await self._background.arun(self._generator.complete(prepared, lambda _: None))

    def _prepare(self, requests: Sequence[GenerationRequest]) -> list[Prepared]:
        """Render, tokenise and check, before anything is computed. Raises InvalidRequest."""
        self._background.check()
        deployment = self._generator.deployment
        info = deployment.engine.info
        assert info is not None  # an LLM exists once its engine is ready
        prepared = []
        for position, request in enumerate(requests):
            try:
                prepared.append(self._prepare_one(request, deployment, info))
            except InvalidRequest as error:
                if len(requests) == 1:
                    raise
                message = f"prompt {position}: {error}"
                raise InvalidRequest(message, error.field, context_length=error.context_length) from None
        return prepared

    def _prepare_one(self, request: GenerationRequest, deployment: Deployment, info: ModelInfo) -> Prepared:
        while True:
            try:
                return prepare(request, deployment, info, lambda: self._seeds.getrandbits(SEED_BITS))
            except NotCompiled as missing:
                missing.begin("").result()


@asynccontextmanager
async def _generating(
    found: DeploymentSettings, *, in_process: bool, report: Callable[[int, int], None]
) -> AsyncIterator[Generator]:
    async with running([found], in_process=in_process) as [deployment]:
        await ready(deployment, report)
        yield Generator(deployment, found.engine)
