"""A model's statistics as Triton's extension has them, which is exactly what perf_analyzer and model_analyzer read."""

from collections.abc import Iterable
from typing import Any

from octavo.deployments.hosted import HostedDeployment
from octavo.hosting.inference import Statistics
from octavo.server.context import Server


async def model_statistics(server: Server, models: Iterable[HostedDeployment]) -> list[dict[str, Any]]:
    """What all frontends have seen of some models: "model_stats"."""
    models = list(models)
    seen = await server.together.statistics(models)
    return [model_stats(*each) for each in zip(models, seen, strict=True)]


def model_stats(deployment: HostedDeployment, seen: Statistics) -> dict[str, Any]:
    """One entry of "model_stats". Durations are nanoseconds.

    Inputs and outputs are moved while requests wait and batches are computed: their own times are 0, and counted.
    """
    computed = seen.success - seen.cache_hits
    return {
        "name": deployment.name,
        "version": deployment.version,
        "last_inference": round(seen.last * 1e3),
        "inference_count": seen.inferences,
        "execution_count": seen.executions,
        "inference_stats": {
            "success": _duration(seen.success, seen.success_time),
            "fail": _duration(seen.failure, seen.failure_time),
            "queue": _duration(seen.success, seen.queue),
            "compute_input": _duration(computed, 0),
            "compute_infer": _duration(computed, seen.compute),
            "compute_output": _duration(computed, 0),
            "cache_hit": _duration(seen.cache_hits, seen.cache_hit_time),
            "cache_miss": _duration(seen.cache_misses, seen.cache_miss_time),
        },
        "response_stats": {},
        "batch_stats": [
            {
                "batch_size": size,
                "compute_input": _duration(batches.count, 0),
                "compute_infer": _duration(batches.count, batches.compute),
                "compute_output": _duration(batches.count, 0),
            }
            for size, batches in sorted(seen.batches.items())
        ],
        "memory_usage": [],
    }


def _duration(count: int, nanoseconds: int) -> dict[str, int]:
    return {"count": count, "ns": nanoseconds}
