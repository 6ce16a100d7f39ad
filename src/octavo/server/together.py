"""What all frontends of a server have seen together: each counts what it does, and asks the others when it is asked."""

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence

import msgspec
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from octavo.deployments import Deployments, HostedDeployment
from octavo.hosting.inference import Statistics, added
from octavo.worker.control import raw

STATISTICS, METRICS = "statistics", "metrics"
"""What frontends ask each other for."""

CREATED = "_created"
"""When a series began: of several, when the first one did."""

Gather = Callable[[str], Awaitable[list[msgspec.Raw]]]


class Seen(msgspec.Struct, array_like=True):
    """What a frontend has seen of a model."""

    name: str
    version: str
    statistics: Statistics


class Family(msgspec.Struct, array_like=True):
    """Metrics of one name, as a frontend has them."""

    name: str
    documentation: str
    type: str
    samples: list[tuple[str, dict[str, str], float]]


_question: "msgspec.json.Decoder[str]" = msgspec.json.Decoder(str)
_statistics: "msgspec.json.Decoder[list[Seen]]" = msgspec.json.Decoder(list[Seen])
_metrics: "msgspec.json.Decoder[list[Family]]" = msgspec.json.Decoder(list[Family])


class Together:
    """All frontends, as one of them sees them.

    Args:
        deployments: what this one offers. counted: metrics of what it does by itself. known: those that every frontend
            has alike, and its process's own.

    Attributes:
        gather: asks the others; None if there are none.
    """

    gather: Gather | None = None

    def __init__(self, deployments: Deployments, counted: CollectorRegistry, known: CollectorRegistry) -> None:
        self._deployments = deployments
        self._counted = counted
        self._known = known

    async def statistics(self, models: Iterable[HostedDeployment]) -> list[Statistics]:
        """Of each of some models."""
        found: dict[tuple[str, str], list[Statistics]] = {}
        if self.gather is not None:
            for each in [one for answer in await self.gather(STATISTICS) for one in _statistics.decode(answer)]:
                found.setdefault((each.name, each.version), []).append(each.statistics)
        return [added([each.client.statistics, *found.get((each.name, each.version), ())]) for each in models]

    async def metrics(self) -> Collector:
        """All of them, for the encoders of the client library."""
        if self.gather is None:
            return _Both(self._known, self._counted)
        others = [_metrics.decode(answer) for answer in await self.gather(METRICS)]
        return _Both(self._known, _Merged([_families(self._counted), *others]))

    def answer(self, question: msgspec.Raw) -> msgspec.Raw:
        """What another frontend wants to know."""
        if _question.decode(question) == METRICS:
            return raw(_families(self._counted))
        models = self._deployments.hosted
        return raw([Seen(each.name, each.version, each.client.statistics) for each in models])


def _families(collector: Collector) -> list[Family]:
    return [
        Family(metric.name, metric.documentation, metric.type, [(each[0], each[1], each[2]) for each in metric.samples])
        for metric in collector.collect()
    ]


class _Both(Collector):
    """One collector's families, and then another one's."""

    def __init__(self, first: Collector, second: Collector) -> None:
        self._first = first
        self._second = second

    def collect(self) -> Iterator[Metric]:
        """One family after the other."""
        yield from self._first.collect()
        yield from self._second.collect()


class _Merged(Collector):
    """Several frontends' families as one."""

    def __init__(self, frontends: Sequence[list[Family]]) -> None:
        self._frontends = frontends

    def collect(self) -> Iterator[Metric]:
        """One family after the other."""
        by_name: dict[str, list[Family]] = {}
        for family in (each for families in self._frontends for each in families):
            by_name.setdefault(family.name, []).append(family)
        for families in by_name.values():
            first = families[0]
            metric = Metric(first.name, first.documentation, first.type)
            for (name, labels), value in _summed(families).items():
                metric.add_sample(name, dict(labels), value)
            yield metric


def _summed(families: Sequence[Family]) -> Mapping[tuple[str, tuple[tuple[str, str], ...]], float]:
    found: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for name, labels, value in (sample for family in families for sample in family.samples):
        key = (name, tuple(labels.items()))
        if key not in found:
            found[key] = value
        elif name.endswith(CREATED):
            found[key] = min(found[key], value)
        else:
            found[key] += value
    return found
