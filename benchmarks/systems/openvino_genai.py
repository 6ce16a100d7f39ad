"""OpenVINO GenAI: its continuous batching pipeline, which reads GGUF files as they are."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openvino
import openvino_genai

from systems import Info, System
from workloads import Work


class OpenVino:
    """A loaded pipeline."""

    def __init__(self, model: Path, threads: int, works: list[Work]) -> None:
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.enable_prefix_caching = False
        streams = max(work.streams for work in works)
        scheduler.max_num_seqs = max(streams, scheduler.max_num_seqs)
        scheduler.max_num_batched_tokens = max(streams, scheduler.max_num_batched_tokens)
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(
            str(model), scheduler, "CPU", {"INFERENCE_NUM_THREADS": threads}
        )
        self._requests = 0
        vocab_size = len(self._pipeline.get_tokenizer().get_vocab())
        self.info = Info(openvino_genai.__version__, vocab_size, {"openvino": openvino.__version__})

    def generate(self, prompts: list[list[int]], output_len: int) -> Iterator[list[int]]:
        """Queue all prompts and step until they are answered."""
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = output_len
        config.ignore_eos = True
        config.do_sample = False
        handles = []
        for prompt in prompts:
            ids = openvino.Tensor(np.array([prompt], np.int64))
            handles.append(self._pipeline.add_request(self._requests, ids, config))
            self._requests += 1
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
            yield [
                stream
                for stream, handle in enumerate(handles)
                if handle.can_read()
                for output in handle.read().values()
                for _ in output.generated_ids
            ]


def load(model: Path, threads: int, works: list[Work]) -> System:
    """Load with OpenVINO's defaults, less the prefix cache."""
    return OpenVino(model, threads, works)
