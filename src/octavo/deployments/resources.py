"""One machine for several deployments: its memory and threads divided before any weights are read."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from octavo.backends.common.cores import physical_cores
from octavo.deployments.settings import DeploymentSettings
from octavo.engine.config import EngineConfig, ModelInfo, memory_available, memory_total, size_kv_cache, useful_kv_bytes
from octavo.errors import ConfigError, OctavoError

if TYPE_CHECKING:
    from octavo.engine.loader import Footprint


def divide(
    deployments: Sequence[DeploymentSettings],
    staying: Mapping[str, ModelInfo] | None = None,
    leaving: Mapping[str, ModelInfo] | None = None,
) -> list[DeploymentSettings]:
    """Say for every deployment how many threads and how much KV memory it has.

    What settings name holds. Threads and KV memory that they leave open are shared equally; nobody gets more KV memory
    than it could use, and all together get half of what is left beside weights. A deployment that has the machine for
    itself is returned as it is: its engine decides.

    Args:
        staying: what is loaded already, by name. It keeps what it has.
        leaving: what is loaded, too, but will end soon. Its memory is still taken, its threads are not counted.

    Raises:
        ConfigError: a model's files cannot be read, settings cannot work for it, or all together do not fit.
    """
    staying = staying or {}
    running = {**staying, **(leaving or {})}
    if len(deployments) == 1 and not running:
        return list(deployments)
    from octavo.engine.loader import measure  # with numpy, which who serves one model need not load

    configs = _with_threads([each.engine for each in deployments], len(staying))
    footprints = []
    for each, config in zip(deployments, configs, strict=True):
        with _about(each):
            footprints.append(measure(config))
    budgets = _kv_budgets(configs, footprints, running)
    _check_sum([each.name for each in deployments], footprints, budgets, running)
    divided = []
    for each, config, footprint, budget in zip(deployments, configs, footprints, budgets, strict=True):
        config = replace(config, kv_cache_memory_bytes=budget)
        with _about(each):
            size_kv_cache(
                config,
                weight_bytes=footprint.weight_bytes,
                page_bytes=footprint.page_bytes,
                model_max_len=footprint.model_max_len,
            )
        divided.append(replace(each, engine=config))
    return divided


def _with_threads(configs: Sequence[EngineConfig], staying: int) -> list[EngineConfig]:
    """Those that name no number of threads share what is left of the cores; each has one at least."""
    left = physical_cores() - sum(config.threads or 0 for config in configs)
    sharers = [position for position, config in enumerate(configs) if config.threads is None]
    shares = dict.fromkeys(sharers, 1)
    for number, position in enumerate(sharers):
        share, rest = divmod(max(left, 0), len(sharers) + staying)
        shares[position] = max(share + (number < rest), 1)
    return [replace(config, threads=shares.get(position, config.threads)) for position, config in enumerate(configs)]


@contextmanager
def _about(settings: DeploymentSettings) -> Iterator[None]:
    """Errors say which deployment they are about."""
    try:
        yield
    except OctavoError as error:
        raise ConfigError(f"{settings.name}: {error}", *getattr(error, "settings", ())) from None


def _kv_budgets(
    configs: Sequence[EngineConfig], footprints: Sequence["Footprint"], running: Mapping[str, ModelInfo]
) -> list[int]:
    """KV memory of each, in bytes."""
    total = memory_total()
    budgets: dict[int, int] = {}
    useful: dict[int, int] = {}
    for position, (config, footprint) in enumerate(zip(configs, footprints, strict=True)):
        if config.kv_cache_memory_bytes is not None:
            budgets[position] = config.kv_cache_memory_bytes
        elif config.gpu_memory_utilization is not None:
            budgets[position] = int(config.gpu_memory_utilization * total) - footprint.weight_bytes
        else:
            useful[position] = useful_kv_bytes(
                config, page_bytes=footprint.page_bytes, model_max_len=footprint.model_max_len
            )
    committed = sum(info.weight_bytes + info.kv_cache_bytes for info in running.values())
    weights = sum(footprint.weight_bytes for footprint in footprints)
    left = max((min(memory_available(), total - committed) - weights - sum(budgets.values())) // 2, 0)
    # The one that can use least first: what it leaves is for the others.
    for number, position in enumerate(sorted(useful, key=lambda each: useful[each])):
        budgets[position] = min(useful[position], left // (len(useful) - number))
        left -= budgets[position]
    return [budgets[position] for position in range(len(configs))]


def _check_sum(
    names: Sequence[str], footprints: Sequence["Footprint"], budgets: Sequence[int], running: Mapping[str, ModelInfo]
) -> None:
    takes = {name: info.weight_bytes + info.kv_cache_bytes for name, info in running.items()}
    for name, footprint, budget in zip(names, footprints, budgets, strict=True):
        takes[name] = takes.get(name, 0) + footprint.weight_bytes + max(budget, 0)
    total, needed = memory_total(), sum(takes.values())
    if needed > total:
        parts = ", ".join(f"{name} {size:,}" for name, size in takes.items())
        raise ConfigError(
            f"the deployments need {needed:,} bytes of memory together ({parts}), but there are {total:,} bytes here; "
            "lower kv_cache_memory_bytes, or serve fewer or smaller models",
            "kv_cache_memory_bytes",
        )
