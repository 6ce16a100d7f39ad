"""Octavo: the engine without HTTP, as `octavo bench` runs it."""

import os
from collections.abc import Iterator
from pathlib import Path

import octavo
from octavo.engine.config import EngineConfig
from octavo.engine.loader import LoadedEngine, load_engine
from octavo.engine.request import Request, SamplingParams
from systems import Info, System
from workloads import Work


class Octavo:
    """A loaded engine."""

    def __init__(self, loaded: LoadedEngine) -> None:
        self._engine = loaded.engine
        self.info = Info(
            octavo.__version__, loaded.info.vocab_size, {"backend": loaded.info.backend, "isa": loaded.info.isa}
        )

    def generate(self, prompts: list[list[int]], output_len: int) -> Iterator[list[int]]:
        """Queue all prompts and step until they are answered."""
        params = SamplingParams(max_tokens=output_len, temperature=0.0)
        for number, prompt in enumerate(prompts):
            self._engine.add(Request(request_id=str(number), prompt_token_ids=prompt, params=params))
        while self._engine.has_work:
            outputs = self._engine.step()
            failed = next((output for output in outputs if output.error is not None), None)
            if failed is not None:
                raise RuntimeError(failed.error)
            yield [int(output.request_id) for output in outputs for _ in output.token_ids]


def load(model: Path, threads: int, works: list[Work]) -> System:
    """Load with the defaults of `octavo serve`, less the prefix cache."""
    streams = max(work.streams for work in works)
    defaults = EngineConfig(model=str(model))
    config = EngineConfig(
        model=str(model),
        threads=threads,
        max_model_len=max(work.length for work in works),
        max_num_seqs=max(streams, defaults.max_num_seqs),
        enable_prefix_caching=False,
        isa=os.environ.get("OCTAVO_ISA", "auto"),
    )
    return Octavo(load_engine(config))
