"""llama.cpp through the C API that llama-cpp-python binds, batched as its own batch benchmark does it.

All prompts are prefilled in batches of 2,048 tokens, then every step decodes one token of each sequence.
"""

import ctypes
from collections.abc import Iterator
from pathlib import Path

import llama_cpp
import numpy as np

from systems import Info, System
from workloads import Work

BATCH_TOKENS = 2048


class LlamaCpp:
    """A loaded model, with one context for every number of streams.

    A context divides its cells evenly among its sequences and is made for their number, as it is by llama.cpp's own
    benchmarks; one for all works would hold the longest prompt once for every stream.
    """

    def __init__(self, model: Path, threads: int, works: list[Work]) -> None:
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(str(model).encode(), llama_cpp.llama_model_default_params())
        if not self._model:
            raise RuntimeError(f"cannot load {model.name}")
        vocabulary = llama_cpp.llama_model_get_vocab(self._model)
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(vocabulary)
        lengths: dict[int, int] = {}
        for work in works:
            lengths[work.streams] = max(work.length, lengths.get(work.streams, 0))
        self._contexts = {streams: self._context(streams, length, threads) for streams, length in lengths.items()}
        self._batch = llama_cpp.llama_batch_init(BATCH_TOKENS, 0, 1)
        features = llama_cpp.llama_print_system_info().decode().strip(" |")
        self.info = Info(llama_cpp.__version__, self._vocab_size, {"system_info": features})

    def _context(self, streams: int, length: int, threads: int) -> ctypes.c_void_p:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = streams * length
        params.n_batch = BATCH_TOKENS
        params.n_seq_max = streams
        params.n_threads = params.n_threads_batch = threads
        context: ctypes.c_void_p | None = llama_cpp.llama_init_from_model(self._model, params)
        if not context:
            raise RuntimeError(f"cannot make a context for {streams} sequences of {length} tokens")
        return context

    def generate(self, prompts: list[list[int]], output_len: int) -> Iterator[list[int]]:
        """Prefill all prompts, then decode them together."""
        context = self._contexts[len(prompts)]
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), False)
        tokens = [0] * len(prompts)
        for stream, prompt in enumerate(prompts):
            for position, token in enumerate(prompt):
                self._put(token, position, stream, wanted=position == len(prompt) - 1)
                if self._batch.n_tokens == BATCH_TOKENS:
                    yield self._decode(context, tokens)
        if self._batch.n_tokens:
            yield self._decode(context, tokens)
        for step in range(output_len - 1):
            for stream, prompt in enumerate(prompts):
                self._put(tokens[stream], len(prompt) + step, stream, wanted=True)
            yield self._decode(context, tokens)

    def _put(self, token: int, position: int, stream: int, *, wanted: bool) -> None:
        batch, row = self._batch, self._batch.n_tokens
        batch.token[row] = token
        batch.pos[row] = position
        batch.n_seq_id[row] = 1
        batch.seq_id[row][0] = stream
        batch.logits[row] = wanted
        batch.n_tokens = row + 1

    def _decode(self, context: ctypes.c_void_p, tokens: list[int]) -> list[int]:
        """Compute the batch; store the most probable next tokens, and return the streams they belong to."""
        batch = self._batch
        status = llama_cpp.llama_decode(context, batch)
        if status != 0:
            raise RuntimeError(f"llama_decode returned {status}")
        produced = []
        for row in range(batch.n_tokens):
            if batch.logits[row]:
                logits = llama_cpp.llama_get_logits_ith(context, row)
                tokens[batch.seq_id[row][0]] = int(np.ctypeslib.as_array(logits, (self._vocab_size,)).argmax())
                produced.append(batch.seq_id[row][0])
        batch.n_tokens = 0
        return produced


def load(model: Path, threads: int, works: list[Work]) -> System:
    """Load with llama.cpp's defaults: flash attention where it can, float16 KV, repacked weights."""
    return LlamaCpp(model, threads, works)
