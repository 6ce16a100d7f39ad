"""Hosted models' figures as Prometheus metrics, under Triton's names, so that its dashboards work unchanged.

Triton's counters do not end in `_total`, as the client library has it for all that are declared to be some: their type
is left open.
"""

from collections.abc import Callable, Iterator

from prometheus_client.core import GaugeMetricFamily, Metric, UnknownMetricFamily
from prometheus_client.registry import Collector

from octavo.deployments import Deployments, HostedDeployment
from octavo.hosting.inference import Statistics

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


class HostedCollector(Collector):
    """Reads the models' own figures at the moment of the scrape, so that requests cost nothing."""

    def __init__(self, deployments: Deployments) -> None:
        self._deployments = deployments

    def collect(self) -> Iterator[Metric]:
        """One family after the other, with a sample per model."""
        models = [(each.client, _labels(each)) for each in self._deployments.hosted]
        for name, text, value in _COUNTERS:
            family = UnknownMetricFamily(name, text)
            for client, labels in models:
                family.add_sample(name, labels, value(client.statistics))
            yield family
        failures = UnknownMetricFamily("nv_inference_request_failure", "Requests that failed.")
        for client, labels in models:
            seen = client.statistics
            others = seen.failure - seen.rejected - seen.canceled
            for reason, count in (("REJECTED", seen.rejected), ("CANCELED", seen.canceled), ("OTHER", others)):
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
