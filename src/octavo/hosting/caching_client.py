"""A frontend's end of a model whose answers are kept: what was asked before is answered without the model."""

import asyncio
import hashlib
import itertools
import logging
import secrets
import struct
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import NamedTuple

import msgspec

from octavo.hosting.errors import Code, InferenceError
from octavo.hosting.inference import BodyCall, Digest, Inference, Outline, Outlined
from octavo.hosting.info import HostedInfo
from octavo.hosting.model_client import ModelClient
from octavo.hosting.pending import Pending, Result
from octavo.hosting.response_cache import KEY_BYTES, ResponseCache
from octavo.hosting.tensors import Buffer
from octavo.hosting.wire import Family, Infer, Output, Part
from octavo.worker.control import WorkerState

log = logging.getLogger(__name__)

INLINE_BYTES = 2**20
"""Of what is asked, which the event loop digests in a millisecond at most. More is for a thread."""

_BOUNDED = "multipart/"
"""Bodies of this type have a boundary of their own each: none of them comes twice."""

_HEAD_SIZE = struct.Struct("<I")

OnEnd = Callable[[Pending], None]


class _Wish(NamedTuple):
    """What is asked for.

    Attributes:
        size: bytes. digest: finds out where its answer is kept. ask: asks the model.
        trace: has it written down, if the model need not be asked.
    """

    size: int
    digest: Callable[[], bytes]
    ask: Callable[[OnEnd | None], Pending]
    trace: OnEnd | None = None


class _Head(msgspec.Struct, frozen=True, array_like=True):
    """What is kept of an answer before its bytes."""

    parts: tuple[Part, ...]
    media_type: str
    parameters: dict[str, bool | int | float | str] | None


_encoder = msgspec.msgpack.Encoder()
_heads: "msgspec.msgpack.Decoder[_Head]" = msgspec.msgpack.Decoder(_Head)


class CachingClient(ModelClient):
    """Asks a model, unless its answer is in the cache, where it is found by the outputs that are wanted and by the
    inputs: their names, datatypes, shapes and bytes. A body is found by its type and bytes.

    Args:
        inner: asks the model. cache: of all models of the server.
        name: of this load of the model: no other one of the server ever has it.
    """

    def __init__(self, inner: ModelClient, cache: ResponseCache, name: str) -> None:
        super().__init__(inner.version)
        self.statistics = inner.statistics
        self._inner = inner
        self._cache = cache
        self._name = name
        self._edition: str | None = None
        self._model: Digest = hashlib.sha256()
        self._numbers = itertools.count(secrets.randbits(31) << 32)
        self._in_order: deque[tuple[Pending, bool]] = deque()
        """Those of a model that keeps the order of requests, and whether the answer was in the cache."""
        self._beside: dict[Pending, asyncio.Task[None]] = {}
        self._warned = False

    @cached_property
    def _loop(self) -> asyncio.AbstractEventLoop:
        """Where this is used. To ask for it costs a call of the operating system each time."""
        return asyncio.get_running_loop()

    # --- the model ----------------------------------------------------------------------------------------------------

    @property
    def state(self) -> WorkerState:
        """As `ModelClient.state`."""
        return self._inner.state

    @property
    def failure(self) -> str | None:
        """As `ModelClient.failure`."""
        return self._inner.failure

    @property
    def info(self) -> HostedInfo | None:
        """As `ModelClient.info`."""
        return self._inner.info

    @property
    def available(self) -> HostedInfo | None:
        """As `ModelClient.available`."""
        return self._inner.available

    @property
    def edition(self) -> str:
        """As `ModelClient.edition`."""
        return self._inner.edition

    @property
    def figures(self) -> Sequence[Family]:
        """As `ModelClient.figures`."""
        return self._inner.figures

    @property
    def pending(self) -> int:
        """As `ModelClient.pending`."""
        return self._inner.pending

    @property
    def caches(self) -> bool:
        """As `ModelClient.caches`."""
        info = self._inner.info
        return info is not None and info.response_cache

    async def confirms(self) -> bool:
        """As `ModelClient.confirms`."""
        return await self._inner.confirms()

    async def ready(self) -> HostedInfo:
        """As `ModelClient.ready`."""
        return await self._inner.ready()

    def outline(self, inference: Inference) -> Outlined:
        """As `ModelClient.outline`."""
        return self._inner.outline(inference)

    def close(self) -> None:
        """As `ModelClient.close`."""
        self._inner.close()

    # --- requests -----------------------------------------------------------------------------------------------------

    def begin(self, inference: Inference | Outlined, on_end: OnEnd | None = None) -> Pending:
        """As `ModelClient.begin`."""
        inner, began = self._inner, time.perf_counter_ns()
        info = inner.available
        if info is None or not info.response_cache:
            return inner.begin(inference, on_end)
        if isinstance(inference, Inference):
            inference = inner.outline(inference)
        outline = inference.outline
        digest = partial(self._digest, outline, inference.tensors)
        trace = None if inference.trace is None else partial(self._trace, inference)
        return self._begin(info, began, _Wish(outline.size, digest, partial(inner.begin, inference), trace), on_end)

    def begin_call(self, call: BodyCall, on_end: OnEnd | None = None) -> Pending:
        """As `ModelClient.begin_call`."""
        inner, began = self._inner, time.perf_counter_ns()
        info = inner.available
        if info is None or not info.response_cache or call.media_type.lower().startswith(_BOUNDED):
            return inner.begin_call(call, on_end)
        wish = _Wish(len(call.body), partial(self._digest_of_body, call), partial(inner.begin_call, call))
        return self._begin(info, began, wish, on_end)

    def _begin(self, info: HostedInfo, began: int, wish: _Wish, on_end: OnEnd | None) -> Pending:
        ordered = info.queue.preserve_ordering
        if wish.size > INLINE_BYTES and not ordered:
            pending = self._own(began, on_end)
            self._beside[pending] = self._loop.create_task(self._follow(pending, wish))
            return pending
        key = wish.digest()
        found = self._cache.get(key)
        spent = time.perf_counter_ns() - began
        if found is None:
            pending = wish.ask(partial(self._on_end, key, spent, on_end))
            if ordered and not pending.ended:
                self._in_order.append((pending, False))
            return pending
        pending = self._own(began, on_end)
        self._settle(pending, wish, found, spent)
        if self._in_order:
            self._in_order.append((pending, True))
        else:
            pending.end()
        return pending

    def _own(self, began: int, on_end: OnEnd | None) -> Pending:
        """A request that the model does not know of."""
        pending = Pending(self._loop, Infer(next(self._numbers), (), 0.0), (), 1, 1, on_end)
        pending.arrived = began
        return pending

    def _trace(self, inference: Outlined, pending: Pending) -> None:
        trace, outline = inference.trace, inference.outline
        assert trace is not None
        trace.start(outline.info.name, self.version, pending.arrived / 1e9, outline.parts, inference.tensors)
        pending.trace = trace

    async def _follow(self, pending: Pending, wish: _Wish) -> None:
        """A request that takes long to digest, from its beginning to its end."""
        try:
            key = await asyncio.to_thread(wish.digest)
            found = self._cache.get(key)
            spent = time.perf_counter_ns() - pending.arrived
            if found is None:
                pending.settle(await self._asked(key, spent, wish.ask))
            else:
                self._settle(pending, wish, found, spent)
        except InferenceError as error:
            pending.settle(error=error)
        except Exception:  # a defect of ours, of which whoever waits has to hear
            log.exception("a request of %s failed", self._name)
            pending.settle(error=InferenceError("the server had an error", Code.INTERNAL))
        del self._beside[pending]
        pending.end()

    async def _asked(self, key: bytes, spent: int, ask: Callable[[OnEnd | None], Pending]) -> Result:
        """The model's answer. Raises InferenceError."""
        asked = ask(None)
        try:
            await asked.wait()
        finally:
            self._inner.leave(asked)
        result = asked.only()
        self._keep(key, result, spent)
        return result

    def leave(self, pending: Pending) -> None:
        """As `ModelClient.leave`."""
        task = self._beside.pop(pending, None)
        if task is not None:  # which leaves the model, if it has asked that already
            task.cancel()
            pending.on_end = None
            pending.settle(error=InferenceError("Request cancelled", Code.CANCELLED))
            pending.end()
            return
        self._inner.leave(pending)
        if (pending, False) in self._in_order:
            self._in_order.remove((pending, False))
            self._end_in_order()

    # --- answers ------------------------------------------------------------------------------------------------------

    def _on_end(self, key: bytes, spent: int, on_end: OnEnd | None, pending: Pending) -> None:
        """The model has answered, or failed. Whoever has the answer finds it in the cache from now on."""
        if not pending.failed:
            self._keep(key, pending.only(), spent)
        if on_end is not None:
            on_end(pending)
        if self._in_order:
            self._end_in_order()

    def _end_in_order(self) -> None:
        while self._in_order:
            pending, found = self._in_order[0]
            if not found and not pending.ended:
                return
            self._in_order.popleft()
            if found:
                pending.end()

    def _keep(self, key: bytes, result: Result, spent: int) -> None:
        began = time.perf_counter_ns()
        output, data = result
        head = _encoder.encode(_Head(output.parts, output.media_type, output.parameters))
        if not self._cache.put(key, [_HEAD_SIZE.pack(len(head)), head, data]) and not self._warned:
            self._warned = True
            log.warning("an answer of %s is not kept: its %d bytes do not fit into the cache", self._name, len(data))
        seen = self.statistics
        seen.cache_misses += 1
        seen.cache_miss_time += spent + time.perf_counter_ns() - began

    def _settle(self, pending: Pending, wish: _Wish, found: bytes, spent: int) -> None:
        if wish.trace is not None:
            wish.trace(pending)
        view = memoryview(found)
        [size] = _HEAD_SIZE.unpack_from(view)
        ends = _HEAD_SIZE.size + size
        head = _heads.decode(view[_HEAD_SIZE.size : ends])
        output = Output(pending.number, head.parts, head.media_type, True, None, head.parameters)
        seen = self.statistics
        seen.success += 1
        seen.success_time += time.perf_counter_ns() - pending.arrived
        seen.cache_hits += 1
        seen.cache_hit_time += spent
        pending.settle((output, view[ends:]))

    # --- keys ---------------------------------------------------------------------------------------------------------

    def _digest(self, outline: Outline, tensors: Sequence[Buffer]) -> bytes:
        """Of a request of tensors, in whichever order they come."""
        model = self._current()
        if outline.digest is None or outline.digest[0] is not model:
            head = model.copy()
            parts = sorted(outline.parts, key=lambda part: part.name)
            head.update(_encoder.encode((_outputs(outline), parts)))
            outline.digest = (model, head)
        digest = outline.digest[1].copy()
        for each in _sorted(outline.parts, tensors):
            digest.update(each)
        return digest.digest()[:KEY_BYTES]

    def _digest_of_body(self, call: BodyCall) -> bytes:
        digest = self._current().copy()
        digest.update(_encoder.encode(call.media_type))
        digest.update(call.body)
        return digest.digest()[:KEY_BYTES]

    def _current(self) -> Digest:
        """Of the model as it is now."""
        edition = self._inner.edition
        if edition != self._edition:
            self._edition = edition
            self._model = hashlib.sha256(_encoder.encode((self._name, edition)))
        return self._model


def _outputs(outline: Outline) -> Sequence[str]:
    """Those that are wanted, by name; none for those that whoever names none gets."""
    wanted = set(outline.outputs)
    return () if wanted == {each.name for each in outline.info.outputs if not each.optional} else sorted(wanted)


def _sorted(parts: Sequence[Part], tensors: Sequence[Buffer]) -> Sequence[Buffer]:
    """The bytes of tensors in the order of their names, in any number of pieces."""
    names = [part.name for part in parts]
    if len(names) < 2 or names == sorted(names):
        return tensors
    whole = memoryview(tensors[0] if len(tensors) == 1 else b"".join(tensors)).cast("B")
    found, at = {}, 0
    for part in parts:
        found[part.name] = whole[at : at + part.size]
        at += part.size
    return [found[name] for name in sorted(names)]
