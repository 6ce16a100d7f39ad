"""Figures that models have of their own, as Prometheus metrics: those of all their processes together."""

from collections.abc import Iterable, Iterator
from itertools import accumulate

from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric, UnknownMetricFamily
from prometheus_client.registry import Collector

from octavo.deployments import Deployments
from octavo.hosting.wire import Family, Sample

COUNTER, GAUGE, HISTOGRAM = range(3)
_TOTAL = "_total"

Labels = tuple[tuple[str, str], ...]


class ModelFiguresCollector(Collector):
    """Reads the figures at the moment of the scrape."""

    def __init__(self, deployments: Deployments) -> None:
        self._deployments = deployments

    def collect(self) -> Iterator[Metric]:
        """One family after the other."""
        by_name: dict[str, list[Family]] = {}
        for deployment in self._deployments.hosted:
            for family in deployment.client.figures:
                by_name.setdefault(family.name, []).append(family)
        for families in by_name.values():
            yield from _metric(families)


def _metric(families: list[Family]) -> Iterator[Metric]:
    """Families of one name as one. Models that mean something else by it than the first have theirs left out."""
    first = families[0]
    same = [each for each in families if each.kind == first.kind]
    samples = _together(first.kind, (sample for each in same for sample in each.samples))
    name, text = first.name, first.description
    if first.kind == HISTOGRAM:
        histogram = HistogramMetricFamily(name, text)
        for sample in samples.values():
            bounds = [*(f"{each:.15g}" for each in sample.bounds), "+Inf"]  # as Triton writes them
            counts = accumulate(sample.buckets)
            for bound, count in zip(bounds, counts, strict=True):
                histogram.add_sample(f"{name}_bucket", {**sample.labels, "le": bound}, count)
            histogram.add_sample(f"{name}_count", sample.labels, sum(sample.buckets))
            histogram.add_sample(f"{name}_sum", sample.labels, sample.value)
        yield histogram
        return
    family = _family(first.kind, name, text)
    for sample in samples.values():
        family.add_sample(name, sample.labels, sample.value)
    yield family


def _family(kind: int, name: str, text: str) -> Metric:
    """A counter that does not end in `_total` is none to the client library: its type is left open."""
    if kind == GAUGE:
        return GaugeMetricFamily(name, text)
    if name.endswith(_TOTAL):
        return Metric(name.removesuffix(_TOTAL), text, "counter")
    return UnknownMetricFamily(name, text)


def _together(kind: int, samples: Iterable[Sample]) -> dict[Labels, Sample]:
    """By their labels: counters and histograms added up, the gauge that was set last."""
    found: dict[Labels, Sample] = {}
    for each in samples:
        key = tuple(sorted(each.labels.items()))
        other = found.get(key)
        if other is None or (kind == GAUGE and each.changed > other.changed):
            found[key] = each
        elif kind != GAUGE and other.bounds == each.bounds:
            buckets = tuple(map(sum, zip(each.buckets, other.buckets, strict=True)))
            changed = max(each.changed, other.changed)
            found[key] = Sample(each.labels, each.value + other.value, changed, each.bounds, buckets)
    return found
