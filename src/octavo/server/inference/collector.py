"""Hosted models' figures as Prometheus metrics, under Triton's names, so that its dashboards work unchanged.

Triton's counters do not end in `_total`, as the client library has it for all that are declared to be some: their type
is left open.
"""

from collections.abc import Callable, Iterator

from prometheus_client.core import GaugeMetricFamily, Metric, UnknownMetricFamily
from prometheus_client.registry import Collector

from octavo.deployments import Deployments, HostedDeployment
from octavo.hosting.inference import Statistics
from octavo.hosting.response_cache import CacheFigures, ResponseCache

_COUNTERS: tuple[tuple[str, str, Callable[[Statistics], int]], ...] = (
    ("nv_inference_request_success", "Requests that succeeded.", lambda seen: seen.success),
    ("nv_inference_count", "Items that were computed.", lambda seen: seen.inferences),
    ("nv_inference_exec_count", "Batches that were computed.", lambda seen: seen.executions),
    (
        "nv_inference_request_duration_us",
        "Of requests that succeeded, from arrival to end.",
        lambda seen: seen.success_time // 1000,
    ),
    ("nv_inference_queue_duration_us", "That requests waited.", lambda seen: seen.queue // 1000),
    ("nv_inference_compute_input_duration_us", "Within the time that requests wait.", lambda seen: 0),
    ("nv_inference_compute_infer_duration_us", "That requests were computed.", lambda seen: seen.compute // 1000),
    ("nv_inference_compute_output_duration_us", "Within the time that requests are computed.", lambda seen: 0),
)

_OF_CACHES: tuple[tuple[str, str, Callable[[Statistics], int]], ...] = (
    ("nv_cache_num_hits_per_model", "Requests whose answer was in the cache.", lambda seen: seen.cache_hits),
    ("nv_cache_num_misses_per_model", "Requests whose answer was not.", lambda seen: seen.cache_misses),
    (
        "nv_cache_hit_duration_per_model",
        "That it took to find answers, in microseconds.",
        lambda seen: seen.cache_hit_time // 1000,
    ),
    (
        "nv_cache_miss_duration_per_model",
        "That it took to look for answers and to put them there, in microseconds.",
        lambda seen: seen.cache_miss_time // 1000,
    ),
)
"""Of models whose answers are kept."""

_OF_THE_CACHE: tuple[tuple[str, str, Callable[[CacheFigures], float]], ...] = (
    ("nv_cache_util", "Share of the response cache that is used, 0 to 1.", lambda seen: seen.utilization),
    ("nv_cache_num_entries", "Answers in the response cache.", lambda seen: seen.entries),
    ("nv_cache_num_lookups", "Answers that were looked for.", lambda seen: seen.hits + seen.misses),
    ("nv_cache_num_hits", "Of those, the ones that were found.", lambda seen: seen.hits),
    ("nv_cache_num_misses", "And those that were not.", lambda seen: seen.misses),
    ("nv_cache_num_evictions", "Answers that made room for others.", lambda seen: seen.evictions),
    (
        "nv_cache_lookup_duration",
        "That answers were looked for, in microseconds.",
        lambda seen: seen.lookup_time // 1000,
    ),
    (
        "nv_cache_insertion_duration",
        "That answers were put there, in microseconds.",
        lambda seen: seen.insertion_time // 1000,
    ),
)
"""As Triton's local cache has them."""


class CacheCollector(Collector):
    """Reads the figures of the cache, which are those of all frontends."""

    def __init__(self, cache: ResponseCache) -> None:
        self._cache = cache

    def collect(self) -> Iterator[Metric]:
        """One gauge after the other."""
        figures = self._cache.figures
        for name, text, value in _OF_THE_CACHE:
            yield GaugeMetricFamily(name, text, value=value(figures))


class HostedCollector(Collector):
    """Reads the models' own figures at the moment of the scrape, so that requests cost nothing."""

    def __init__(self, deployments: Deployments) -> None:
        self._deployments = deployments

    def collect(self) -> Iterator[Metric]:
        """One family after the other, with a sample per model."""
        models = [(each.client, _labels(each)) for each in self._deployments.hosted]
        caching = [(client, labels) for client, labels in models if client.caches]
        for counters, counted in ((_COUNTERS, models), (_OF_CACHES, caching)):
            for name, text, value in counters if counted else ():
                family = UnknownMetricFamily(name, text)
                for client, labels in counted:
                    family.add_sample(name, labels, value(client.statistics))
                yield family
        failures = UnknownMetricFamily("nv_inference_request_failure", "Requests that failed.")
        for client, labels in models:
            seen = client.statistics
            counts = {"REJECTED": seen.rejected, "CANCELED": seen.canceled, "BACKEND": seen.failed_computing}
            counts["OTHER"] = seen.failure - sum(counts.values())
            for reason, count in counts.items():
                failures.add_sample(failures.name, {**labels, "reason": reason}, count)
        yield failures
        pending = GaugeMetricFamily("nv_inference_pending_request_count", "Requests that wait or are computed.")
        for client, labels in models:
            pending.add_sample(pending.name, labels, client.pending)
        yield pending


def _labels(model: HostedDeployment) -> dict[str, str]:
    """A model's, with the tags that its configuration gives it."""
    info = model.client.info
    tags = (info.config or {}).get("metric_tags", {}) if info is not None else {}
    return {**tags, "model": model.name, "version": model.version}
