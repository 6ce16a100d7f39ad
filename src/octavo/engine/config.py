"""The settings of one engine, and what they come to on this machine. Checked before weights are read."""

import os
from dataclasses import dataclass
from pathlib import Path

from octavo.errors import ConfigError
from octavo.settings import QUANTITY, TOKENS, check, setting

DEFAULT_KV_BYTES = 4 * 2**30
"""KV memory on a CPU when nothing is said: this much, or half of what is available if that is less."""

DEFAULT_BATCHED_TOKENS = 256

KV_ITEMSIZE = {"fp32": 4, "fp16": 2, "int8": 1}
"""Bytes of an element of the KV cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """What an engine serves (`model` is a folder with a checkpoint, or a GGUF file) and within which bounds. Names are
    vLLM's where the meaning is the same."""

    model: str
    max_model_len: int | None = setting(
        None,
        help="Tokens of prompt and output that a sequence may have.",
        kind=TOKENS,
        least=2,
        most=2**31,
        without="what model and KV cache allow",
    )
    max_num_seqs: int = setting(128, help="Sequences that run at once.", least=1, most=2**16)
    max_num_batched_tokens: int | None = setting(
        None,
        help="Tokens a step computes at most; bounds the gap between two tokens of a stream.",
        kind=TOKENS,
        least=1,
        most=2**31,
        without=f"{DEFAULT_BATCHED_TOKENS}, or one for each sequence if that is more",
    )
    max_num_queued_reqs: int = setting(
        1024, help="Requests that may wait; more are refused with Retry-After.", least=0, most=2**31
    )
    max_num_queued_tokens: int = setting(1_000_000, help="Tokens that may wait.", kind=TOKENS, least=1, most=2**48)
    page_size: int = setting(16, help="Tokens per KV page.", aliases=("--block-size",), least=1, most=2**16)
    kv_cache_dtype: str = setting(
        "auto", help="How keys and values are stored; auto is fp16 on a CPU.", choices=("auto", *KV_ITEMSIZE)
    )
    kv_cache_memory_bytes: int | None = setting(
        None,
        help="Memory for keys and values.",
        kind=QUANTITY,
        least=1,
        most=2**63,
        without="4 GiB each, or less: all deployments together get half of what is available",
    )
    gpu_memory_utilization: float | None = setting(
        None,
        help="Share of the device's memory (on a CPU the machine's) for weights and KV together.",
        above=0,
        most=1,
        without="see kv_cache_memory_bytes",
    )
    tensor_parallel_size: int = setting(1, help="Devices to split a model over.", least=1, most=2**16)
    dtype: str = setting("auto", help="Of the computation.", metavar="auto|float32")
    backend: str = setting(
        "auto",
        help="cpu has native kernels, reference is numpy; auto is the faster that there is.",
        choices=("auto", "cpu", "reference"),
    )
    isa: str = setting(
        "auto",
        help="Instruction set of the native kernels; `octavo info` lists those this machine has.",
        metavar="auto|avx512vnni|avx2|portable",
    )
    threads: int | None = setting(
        None,
        help="Threads that compute.",
        least=1,
        most=1024,
        without="one for each physical core, divided between the deployments",
    )
    quantization: str | None = setting(
        None, help="Quantise weights that are not quantised yet.", choices=("q8", "q4"), without="none"
    )
    enable_prefix_caching: bool = setting(True, help="Share the pages of equal prefixes between requests.")

    @property
    def batched_tokens(self) -> int:
        """Tokens a step computes at most: `max_num_batched_tokens`, or what it is by default."""
        return self.max_num_batched_tokens or max(DEFAULT_BATCHED_TOKENS, self.max_num_seqs)

    def validate(self) -> None:
        """Check what can be checked without the model.

        Raises:
            ConfigError: with the setting, its value and one that works.
        """
        check(self)
        if self.batched_tokens < self.max_num_seqs:
            raise ConfigError(
                f"max_num_batched_tokens {self.max_num_batched_tokens} is less than max_num_seqs {self.max_num_seqs}: "
                "every running sequence needs one token a step; raise the first or lower the second",
                "max_num_batched_tokens",
                "max_num_seqs",
            )
        if self.tensor_parallel_size != 1:
            raise ConfigError(
                f"tensor_parallel_size {self.tensor_parallel_size} needs as many GPUs; the CPU backend runs with 1",
                "tensor_parallel_size",
            )
        if self.dtype not in ("auto", "float32"):
            raise ConfigError(f"dtype {self.dtype!r} is not available on a CPU; use auto or float32", "dtype")


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
            f"use at most {model_max_len}",
            "max_model_len",
        )
    wanted_len = config.max_model_len or model_max_len
    if config.kv_cache_memory_bytes is not None:
        budget = config.kv_cache_memory_bytes
    elif config.gpu_memory_utilization is not None:
        budget = int(config.gpu_memory_utilization * memory_total()) - weight_bytes
    else:
        useful = useful_kv_bytes(config, page_bytes=page_bytes, model_max_len=model_max_len)
        budget = min((memory_available() - weight_bytes) // 2, useful)
    total = memory_total()
    if budget > total:
        raise ConfigError(
            f"a KV cache of {budget:,} bytes is more than the {total:,} bytes of memory here; "
            f"set kv_cache_memory_bytes to {max(total - weight_bytes, 0) // 2:,} or less",
            "kv_cache_memory_bytes",
        )
    num_pages = budget // page_bytes
    if num_pages < 1:
        raise ConfigError(
            f"a KV cache of {max(budget, 0):,} bytes holds no page: a page of {page_size} tokens of this model takes "
            f"{page_bytes:,} bytes, beside {weight_bytes:,} bytes of weights; set kv_cache_memory_bytes to at "
            f"least {page_bytes:,}",
            "kv_cache_memory_bytes",
        )
    if config.max_model_len is None:
        return num_pages, min(wanted_len, num_pages * page_size)
    needed = -(-wanted_len // page_size)
    if needed > num_pages:
        raise ConfigError(
            f"max_model_len {wanted_len} needs {needed} pages of {page_size} tokens, {needed * page_bytes:,} bytes, "
            f"but the KV cache has {num_pages} pages; set max_model_len to {num_pages * page_size} or less, or "
            f"kv_cache_memory_bytes to {needed * page_bytes:,} or more",
            "max_model_len",
            "kv_cache_memory_bytes",
        )
    return num_pages, wanted_len


def useful_kv_bytes(config: EngineConfig, *, page_bytes: int, model_max_len: int) -> int:
    """KV memory that an engine takes if nothing is said and there is enough: all sequences at their longest, within
    bounds. The arguments are those of `size_kv_cache`."""
    pages = -(-(config.max_model_len or model_max_len) // config.page_size)
    return min(DEFAULT_KV_BYTES, config.max_num_seqs * pages * page_bytes)


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
