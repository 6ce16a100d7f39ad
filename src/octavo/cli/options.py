"""Command-line options that several commands share. Flags carry vLLM's names where the meaning is the same."""

import functools
import inspect
import re
from collections.abc import Callable
from typing import Annotated, Any

import typer

from octavo.engine.config import EngineConfig
from octavo.errors import ConfigError
from octavo.weights.catalogue import DEFAULT_MODEL

DEFAULTS = EngineConfig(model=DEFAULT_MODEL)

_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "ki": 1024, "mi": 1024**2, "gi": 1024**3}


def quantity(text: str) -> int:
    """A whole number, plain or with a unit: 512, 8k (8,000), 8Ki (8,192), 512MiB, 4GiB."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]i?)?b?", str(text).strip(), re.IGNORECASE)
    if match is None:
        raise typer.BadParameter(f"{text!r} is no quantity; write 4096, 8k, 512MiB or 4GiB")
    return int(float(match[1]) * _UNITS[(match[2] or "").lower()])


ModelArgument = Annotated[
    str | None,
    typer.Argument(metavar="[MODEL]", help="A short name, a Hugging Face repository id, a folder or a .gguf file."),
]
ModelOption = Annotated[str | None, typer.Option("--model", metavar="MODEL", help="The same, as an option.")]


def choose_model(argument: str | None, option: str | None = None) -> str:
    """The model named in either way, or the default one."""
    if argument is not None and option is not None and argument != option:
        raise ConfigError(f"two models were named, {argument!r} and {option!r} (--model); name one")
    return argument or option or DEFAULT_MODEL


def _engine_options(
    max_model_len: Annotated[
        int | None,
        typer.Option(
            parser=quantity,
            metavar="N",
            help="Tokens a sequence may have. Default: what model and KV cache allow.",
        ),
    ] = DEFAULTS.max_model_len,
    max_num_seqs: Annotated[int, typer.Option(help="Sequences that run at once.")] = DEFAULTS.max_num_seqs,
    max_num_batched_tokens: Annotated[
        int | None,
        typer.Option(
            parser=quantity,
            metavar="N",
            help="Tokens a step computes at most; bounds the gap between two tokens of a stream. "
            f"Default: {DEFAULTS.max_num_batched_tokens}, or one for each sequence if that is more.",
        ),
    ] = None,
    page_size: Annotated[
        int, typer.Option("--page-size", "--block-size", help="Tokens per KV page.")
    ] = DEFAULTS.page_size,
    kv_cache_dtype: Annotated[
        str, typer.Option(help="How keys and values are stored: auto (fp16 on a CPU), fp32, fp16 or int8.")
    ] = DEFAULTS.kv_cache_dtype,
    kv_cache_memory_bytes: Annotated[
        int | None,
        typer.Option(
            parser=quantity,
            metavar="N",
            help="Default: 4 GiB, or half of what is available if that is less.",
        ),
    ] = DEFAULTS.kv_cache_memory_bytes,
    gpu_memory_utilization: Annotated[
        float | None,
        typer.Option(help="Share of the device's memory (on a CPU the machine's) for weights and KV together."),
    ] = DEFAULTS.gpu_memory_utilization,
    tensor_parallel_size: Annotated[
        int, typer.Option(help="Devices to split a model over.")
    ] = DEFAULTS.tensor_parallel_size,
    dtype: Annotated[str, typer.Option(help="Of the computation: auto or float32.")] = DEFAULTS.dtype,
    backend: Annotated[str, typer.Option(help="auto, cpu (native kernels) or reference (numpy).")] = DEFAULTS.backend,
    isa: Annotated[
        str, typer.Option(help="Instruction set of the native kernels; `octavo info` lists those this machine has.")
    ] = DEFAULTS.isa,
    threads: Annotated[
        int | None, typer.Option(help="Threads that compute. Default: one for each physical core.")
    ] = None,
    quantization: Annotated[
        str | None, typer.Option(help="Quantise weights that are not quantised yet: q8 or q4.")
    ] = DEFAULTS.quantization,
    enable_prefix_caching: Annotated[
        bool,
        typer.Option(
            "--enable-prefix-caching/--no-enable-prefix-caching",
            help="Share the pages of equal prefixes between requests.",
        ),
    ] = DEFAULTS.enable_prefix_caching,
) -> dict[str, Any]:
    """The settings of `EngineConfig` that every command with an engine takes."""
    if max_num_batched_tokens is None:
        max_num_batched_tokens = max(DEFAULTS.max_num_batched_tokens, max_num_seqs)
    return {
        "max_model_len": max_model_len,
        "max_num_seqs": max_num_seqs,
        "max_num_batched_tokens": max_num_batched_tokens,
        "page_size": page_size,
        "kv_cache_memory_bytes": kv_cache_memory_bytes,
        "gpu_memory_utilization": gpu_memory_utilization,
        "tensor_parallel_size": tensor_parallel_size,
        "dtype": dtype,
        "backend": backend,
        "isa": isa,
        "threads": threads,
        "quantization": quantization,
        "kv_cache_dtype": kv_cache_dtype,
        "enable_prefix_caching": enable_prefix_caching,
    }


def engine_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the engine's options. It receives them together, as its argument `engine`."""
    shared = inspect.signature(_engine_options).parameters
    own = inspect.signature(command)

    @functools.wraps(command)
    def run(**given: Any) -> None:
        engine = _engine_options(**{name: given.pop(name) for name in shared})
        command(engine=engine, **given)

    parameters = [parameter for name, parameter in own.parameters.items() if name != "engine"]
    run.__signature__ = own.replace(parameters=[*parameters, *shared.values()])  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in [*parameters, *shared.values()]}
    return run
