"""vLLM on a CPU: its engine in this process, in float32, from a folder that `export_float.py` writes."""

import os
from collections.abc import Iterator
from pathlib import Path

# Read while vLLM is imported. Its engine in this process is what lets steps be timed.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB, all of it taken at once

import vllm
from vllm.sampling_params import RequestOutputKind

from systems import Info, System
from workloads import Work

MIN_STREAMS = 128
"""Sequences that run at once, if no work has more of them."""


class Vllm:
    """A loaded engine."""

    def __init__(self, model: Path, threads: int, works: list[Work]) -> None:
        cores = sorted(os.sched_getaffinity(0))[:threads]
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", ",".join(map(str, cores)))
        llm = vllm.LLM(
            model=str(model),
            skip_tokenizer_init=True,
            dtype="float32",
            enforce_eager=True,
            max_model_len=max(work.length for work in works),
            max_num_seqs=max(MIN_STREAMS, *(work.streams for work in works)),
            enable_prefix_caching=False,
        )
        self._engine = llm.llm_engine
        self._requests = 0
        self.info = Info(vllm.__version__, llm.model_config.get_vocab_size(), {"dtype": "float32", "mode": "eager"})

    def generate(self, prompts: list[list[int]], output_len: int) -> Iterator[list[int]]:
        """Queue all prompts and step until they are answered."""
        params = vllm.SamplingParams(
            temperature=0.0,
            max_tokens=output_len,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        streams: dict[str, int] = {}
        for stream, prompt in enumerate(prompts):
            request_id = str(self._requests)
            self._requests += 1
            streams[request_id] = stream
            self._engine.add_request(request_id, {"prompt_token_ids": prompt}, params)
        while self._engine.has_unfinished_requests():
            outputs = self._engine.step()
            yield [streams[output.request_id] for output in outputs for _ in output.outputs[0].token_ids]


def load(model: Path, threads: int, works: list[Work]) -> System:
    """Load with vLLM's defaults, less the prefix cache and compilation."""
    return Vllm(model, threads, works)
