"""The settings of one engine, and what they come to on this machine. Checked before weights are read."""

import os
from dataclasses import dataclass
from pathlib import Path

from octavo.errors import ConfigError

DEFAULT_KV_BYTES = 4 * 2**30
"""KV memory on a CPU when nothing is said: this much, or half of what is available if that is less."""


KV_ITEMSIZE = {"fp32": 4, "fp16": 2, "int8": 1}
"""Bytes of an element of the KV cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """What an engine serves and within which bounds. Names are vLLM's where the meaning is the same.

    Attributes:
        model: a folder with a checkpoint, or a GGUF file.
        backend: "cpu" (native kernels), "reference" (numpy), or "auto", the fastest there is.
        isa: instruction set of the native kernels; "auto" is the best this machine has.
        threads: that compute; None is one for each physical core.
        quantization: of weights that are not quantised yet: "q8", "q4" or None.
        dtype: of the computation; "auto" or "float32", other types need a GPU.
        max_model_len: tokens of prompt and output a sequence may have; None: what model and KV cache allow.
        max_num_seqs: sequences that run at once.
        max_num_batched_tokens: tokens a step computes at most. It bounds the gap between two tokens of a stream.
        page_size: tokens per KV page.
        kv_cache_dtype: how keys and values are stored: "fp32", "fp16", "int8", or "auto", the backend's own.
        kv_cache_memory_bytes: KV memory; None derives it.
        gpu_memory_utilization: share of the device's memory for weights and KV together; None leaves it to defaults.
        tensor_parallel_size: devices a model is split over.
        enable_prefix_caching: whether sequences share the pages of equal prefixes.
        max_num_queued_reqs, max_num_queued_tokens: what may wait; more is refused with the time to retry after.
    """

    model: str
    backend: str = "auto"
    isa: str = "auto"
    threads: int | None = None
    quantization: str | None = None
    dtype: str = "auto"
    max_model_len: int | None = None
    max_num_seqs: int = 128
    max_num_batched_tokens: int = 256
    page_size: int = 16
    kv_cache_dtype: str = "auto"
    kv_cache_memory_bytes: int | None = None
    gpu_memory_utilization: float | None = None
    tensor_parallel_size: int = 1
    enable_prefix_caching: bool = True
    max_num_queued_reqs: int = 1024
    max_num_queued_tokens: int = 1_000_000

    def validate(self) -> None:
        """Check what can be checked without the model.

        Raises:
            ConfigError: with the setting, its value and one that works.
        """
        for name, most in (("max_num_seqs", 2**16), ("page_size", 2**16), ("max_num_queued_tokens", 2**48)):
            _require(1 <= getattr(self, name) <= most, name, getattr(self, name), f"from 1 to {most}")
        _require(self.max_num_queued_reqs >= 0, "max_num_queued_reqs", self.max_num_queued_reqs, "at least 0")
        if self.max_model_len is not None:
            _require(self.max_model_len >= 2, "max_model_len", self.max_model_len, "at least 2")
        if self.gpu_memory_utilization is not None:
            inside = 0.0 < self.gpu_memory_utilization <= 1.0
            _require(inside, "gpu_memory_utilization", self.gpu_memory_utilization, "above 0 and at most 1")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ConfigError(
                f"max_num_batched_tokens {self.max_num_batched_tokens} is less than max_num_seqs {self.max_num_seqs}: "
                "every running sequence needs one token a step; raise the first or lower the second"
            )
        if self.tensor_parallel_size != 1:
            raise ConfigError(
                f"tensor_parallel_size {self.tensor_parallel_size} needs as many GPUs; the CPU backend runs with 1"
            )
        if self.dtype not in ("auto", "float32"):
            raise ConfigError(f"dtype {self.dtype!r} is not available on a CPU; use auto or float32")
        _one_of("backend", self.backend, ("auto", "cpu", "reference"))
        _one_of("kv_cache_dtype", self.kv_cache_dtype, ("auto", *KV_ITEMSIZE))
        if self.quantization is not None:
            _one_of("quantization", self.quantization, ("q8", "q4"))
        if self.threads is not None:
            _require(1 <= self.threads <= 1024, "threads", self.threads, "from 1 to 1024")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What an engine came to once its model was known.

    Attributes:
        max_model_len: tokens a sequence may have. vocab_size: token ids are below it.
        num_pages, page_size: the KV cache. max_num_seqs: sequences that run at once.
        max_num_queued_reqs, max_num_queued_tokens: what may wait.
        backend: what computes. isa: the instruction set of its kernels, None without native ones.
        threads: that compute. kv_cache_dtype: how keys and values are stored.
        weight_bytes, kv_cache_bytes: memory of the weights, and of all pages.
    """

    max_model_len: int
    vocab_size: int
    num_pages: int
    page_size: int
    max_num_seqs: int
    max_num_queued_reqs: int
    max_num_queued_tokens: int
    backend: str
    isa: str | None
    threads: int
    kv_cache_dtype: str
    weight_bytes: int
    kv_cache_bytes: int


def size_kv_cache(config: EngineConfig, *, weight_bytes: int, page_bytes: int, model_max_len: int) -> tuple[int, int]:
    """Divide the memory.

    Args:
        weight_bytes: what the weights take on the device. page_bytes: what one page of all layers takes.
        model_max_len: the longest sequence the model was made for.

    Returns:
        The number of pages and the longest sequence served.

    Raises:
        ConfigError: the budget holds no page, or not the sequence length that was asked for.
    """
    page_size = config.page_size
    if config.max_model_len is not None and config.max_model_len > model_max_len:
        raise ConfigError(
            f"max_model_len {config.max_model_len} is more than the {model_max_len} positions of this model; "
            f"use at most {model_max_len}"
        )
    wanted_len = config.max_model_len or model_max_len
    if config.kv_cache_memory_bytes is not None:
        budget = config.kv_cache_memory_bytes
    elif config.gpu_memory_utilization is not None:
        budget = int(config.gpu_memory_utilization * memory_total()) - weight_bytes
    else:
        useful = config.max_num_seqs * -(-wanted_len // page_size) * page_bytes
        budget = min(DEFAULT_KV_BYTES, (memory_available() - weight_bytes) // 2, useful)
    total = memory_total()
    if budget > total:
        raise ConfigError(
            f"a KV cache of {budget:,} bytes is more than the {total:,} bytes of memory here; "
            f"set kv_cache_memory_bytes to {max(total - weight_bytes, 0) // 2:,} or less"
        )
    num_pages = budget // page_bytes
    if num_pages < 1:
        raise ConfigError(
            f"a KV cache of {max(budget, 0):,} bytes holds no page: a page of {page_size} tokens of this model takes "
            f"{page_bytes:,} bytes, beside {weight_bytes:,} bytes of weights; set kv_cache_memory_bytes to at "
            f"least {page_bytes:,}"
        )
    if config.max_model_len is None:
        return num_pages, min(wanted_len, num_pages * page_size)
    needed = -(-wanted_len // page_size)
    if needed > num_pages:
        raise ConfigError(
            f"max_model_len {wanted_len} needs {needed} pages of {page_size} tokens, {needed * page_bytes:,} bytes, "
            f"but the KV cache has {num_pages} pages; set max_model_len to {num_pages * page_size} or less, or "
            f"kv_cache_memory_bytes to {needed * page_bytes:,} or more"
        )
    return num_pages, wanted_len


def memory_total() -> int:
    """Bytes of memory this process may use: the machine's, or the control group's limit if that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _control_group("memory.max")
    return total if limit is None else min(total, limit)


def memory_available() -> int:
    """Bytes of memory that can still be taken without swapping."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # not Linux
        available = memory_total()
    limit, used = _control_group("memory.max"), _control_group("memory.current")
    return available if limit is None or used is None else min(available, limit - used)


def _control_group(name: str) -> int | None:
    try:
        text = Path("/sys/fs/cgroup", name).read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"{name} {value!r} is unknown; use {', '.join(known[:-1])} or {known[-1]}")


def _require(holds: bool, name: str, value: object, range_: str) -> None:
    if not holds:
        raise ConfigError(f"{name} is {value}, but must be {range_}")
