"""`pb_utils.MetricFamily`: figures of a model's own, which the server shows among its metrics."""

import bisect
import re
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from typing import ClassVar

from octavo.hosting.triton.python_backend.errors import TritonModelException
from octavo.hosting.wire import Family, Sample

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")

_GONE = (
    "Invalid metric operation as the corresponding 'MetricFamily' has been deleted. The 'MetricFamily' object should "
    "be deleted AFTER its corresponding 'Metric' objects have been deleted."
)


class MetricKind(IntEnum):
    """What a figure is."""

    COUNTER = 0
    GAUGE = 1
    HISTOGRAM = 2


class _Registry:
    """All families of this process.

    Attributes:
        used: whether there has ever been one. changed: whether something has changed since `collect`.
        on_change: called when it has, by whatever thread.
    """

    def __init__(self) -> None:
        self.used = False
        self.changed = False
        self.on_change: Callable[[], None] = lambda: None
        self.changing = threading.Lock()
        self._families: weakref.WeakSet[MetricFamily] = weakref.WeakSet()
        self._figures: weakref.WeakValueDictionary[tuple[object, ...], Figure] = weakref.WeakValueDictionary()

    def add(self, family: "MetricFamily") -> None:
        for each in self._families:
            if each.name == family.name and each.kind is not family.kind:
                raise TritonModelException(
                    f"Failed to create metric family: '{family.name}' is there, and is a {each.kind.name}"
                )
        self._families.add(family)
        self.used = True

    def figure(self, name: str, labels: dict[str, str], bounds: tuple[float, ...]) -> "Figure":
        """The figure of that name with these labels, which is one however often it is asked for."""
        key = (name, *sorted(labels.items()))
        found = self._figures.get(key)
        if found is None:
            found = self._figures[key] = Figure(labels, bounds)
        return found

    def note(self) -> None:
        """Something has changed."""
        if not self.changed:
            self.changed = True
            self.on_change()

    def collect(self) -> tuple[Family, ...]:
        """What all families say now."""
        with self.changing:
            self.changed = False
            found: dict[str, tuple[MetricFamily, set[Figure]]] = {}
            for each in self._families:
                found.setdefault(each.name, (each, set()))[1].update(metric.figure for metric in each.metrics)
            return tuple(
                Family(name, family.description, family.kind.value, tuple(each.sample() for each in figures))
                for name, (family, figures) in found.items()
            )


registry = _Registry()


class MetricFamily:
    """Figures of one name, with different labels. They are shown for as long as the model holds it, and them.

    Args:
        kind: `MetricFamily.COUNTER`, `GAUGE` or `HISTOGRAM`.

    Raises:
        TritonModelException: a name that Prometheus does not have, or that is there as something else.
    """

    COUNTER: ClassVar = MetricKind.COUNTER
    GAUGE: ClassVar = MetricKind.GAUGE
    HISTOGRAM: ClassVar = MetricKind.HISTOGRAM

    def __init__(self, name: str, description: str, kind: MetricKind) -> None:
        if not isinstance(name, str) or _NAME.fullmatch(name) is None:
            raise TritonModelException(f"Failed to create metric family: '{name}' is no name of a metric")
        self.name = name
        self.description = str(description)
        self.kind = MetricKind(kind)
        self.metrics: weakref.WeakSet[Metric] = weakref.WeakSet()
        with registry.changing:
            registry.add(self)

    def Metric(  # noqa: N802 - Triton's name
        self, labels: Mapping[str, str] | None = None, buckets: Sequence[float] | None = None
    ) -> "Metric":
        """A figure with labels.

        Args:
            buckets: the upper bounds of a histogram's, in rising order.

        Raises:
            TritonModelException: labels that Prometheus does not have; buckets of something else, or a histogram
                without.
        """
        if self.kind is MetricKind.HISTOGRAM and buckets is None:
            raise TritonModelException("Must specify buckets for histogram metric.")
        if self.kind is not MetricKind.HISTOGRAM and buckets is not None:
            raise TritonModelException("Unexpected buckets found for non-histogram metric.")
        bounds = tuple(map(float, buckets or ()))
        if list(bounds) != sorted(set(bounds)):
            raise TritonModelException(f"Error when creating Metric: the buckets {bounds} do not rise")
        for name, value in (labels or {}).items():
            if not isinstance(name, str) or not isinstance(value, str) or _LABEL.fullmatch(name) is None:
                raise TritonModelException(f"Error when creating Metric: {name!r}: {value!r} is no label")
        with registry.changing:
            metric = Metric(self.kind, registry.figure(self.name, dict(labels or {}), bounds))
            self.metrics.add(metric)
            registry.note()
        return metric

    def __del__(self) -> None:
        for each in getattr(self, "metrics", ()):  # which it has none of if its arguments were wrong
            each.live = False
        registry.note()


class Figure:
    """What a metric counts. Attributes: value: the sum of a histogram's."""

    def __init__(self, labels: dict[str, str], bounds: tuple[float, ...]) -> None:
        self.labels = labels
        self.value = 0.0
        self._bounds = bounds
        self._buckets = [0] * (len(bounds) + 1)
        self._changed = time.time()

    def set(self, value: float) -> None:
        """Change it."""
        self.value, self._changed = float(value), time.time()
        registry.note()

    def observe(self, value: float) -> None:
        """Count a value of a histogram."""
        self._buckets[bisect.bisect_left(self._bounds, value)] += 1
        self.set(self.value + value)

    def sample(self) -> Sample:
        """What is shown of it."""
        return Sample(self.labels, self.value, self._changed, self._bounds, tuple(self._buckets))


class Metric:
    """A figure. Made by `MetricFamily.Metric`.

    Attributes:
        live: whether its family is there.
    """

    def __init__(self, kind: MetricKind, figure: Figure) -> None:
        self.live = True
        self.figure = figure
        self._kind = kind

    def increment(self, value: float) -> None:
        """Add to a counter or gauge. Raises TritonModelException: a histogram's, or less than 0 to a counter."""
        about = "Failed to increment metric value"
        self._require(about, MetricKind.COUNTER, MetricKind.GAUGE)
        if self._kind is MetricKind.COUNTER and value < 0:
            raise TritonModelException(
                f"{about}: TRITONSERVER_METRIC_KIND_COUNTER does not support negative increments"
            )
        with registry.changing:
            self.figure.set(self.figure.value + value)

    def set(self, value: float) -> None:
        """Set a gauge. Raises TritonModelException: it is none."""
        self._require("Failed to set metric value", MetricKind.GAUGE)
        with registry.changing:
            self.figure.set(value)

    def observe(self, value: float) -> None:
        """Add an observation to a histogram. Raises TritonModelException: it is none."""
        self._require("Failed to observe metric value", MetricKind.HISTOGRAM)
        with registry.changing:
            self.figure.observe(value)

    def value(self) -> float:
        """Of a counter or gauge, as this process knows it. Raises TritonModelException: a histogram's."""
        self._require("Failed to get metric value", MetricKind.COUNTER, MetricKind.GAUGE)
        return self.figure.value

    def _require(self, about: str, *kinds: MetricKind) -> None:
        if not self.live:
            raise TritonModelException(f"{about}: {_GONE}")
        if self._kind not in kinds:
            raise TritonModelException(f"{about}: Unsupported TRITONSERVER_MetricKind: it is a {self._kind.name}")
