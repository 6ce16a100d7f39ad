"""Models' own figures, as Prometheus gets them: those of all processes together."""

from types import SimpleNamespace
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from octavo.hosting.wire import Family, Sample
from octavo.server.inference.model_figures import COUNTER, GAUGE, HISTOGRAM, ModelFiguresCollector


def scraped(*models: list[Family]) -> dict[str, tuple[str, dict[tuple[str, ...], float]]]:
    """The type of each family, and its samples by name and the values of their labels."""
    hosted = [SimpleNamespace(client=SimpleNamespace(figures=each)) for each in models]
    registry = CollectorRegistry()
    deployments: Any = SimpleNamespace(hosted=hosted)
    registry.register(ModelFiguresCollector(deployments))
    return {
        family.name: (family.type, {(each.name, *each.labels.values()): each.value for each in family.samples})
        for family in text_string_to_metric_families(generate_latest(registry).decode())
    }


def sample(value: float, changed: float = 0.0, **labels: str) -> Sample:
    return Sample(labels, value, changed)


def test_counters_add_up_and_the_gauge_that_was_set_last_counts() -> None:
    first = [
        Family("seen_total", "Seen.", COUNTER, (sample(2, model="a"), sample(5, model="b"))),
        Family("spent", "Spent.", COUNTER, (sample(1.5),)),
        Family("level", "Level.", GAUGE, (sample(7, 20.0),)),
    ]
    second = [
        Family("seen_total", "Seen.", COUNTER, (sample(3, model="a"),)),
        Family("level", "Level.", GAUGE, (sample(9, 10.0),)),
    ]
    found = scraped(first, second)
    assert found["seen"] == ("counter", {("seen_total", "a"): 5, ("seen_total", "b"): 5})
    assert found["spent"] == ("unknown", {("spent",): 1.5})
    assert found["level"] == ("gauge", {("level",): 7})


def test_histograms_add_up() -> None:
    one = Sample({"a": "b"}, 4.5, 0.0, (1.0, 2.5), (1, 0, 2))
    kind, samples = scraped([Family("size", "Size.", HISTOGRAM, (one,))] * 2)["size"]
    assert kind == "histogram"
    assert samples == {
        ("size_bucket", "b", "1"): 2,
        ("size_bucket", "b", "2.5"): 2,
        ("size_bucket", "b", "+Inf"): 6,
        ("size_count", "b"): 6,
        ("size_sum", "b"): 9,
    }


def test_a_name_has_the_meaning_that_it_had_first() -> None:
    found = scraped([Family("x", "X.", GAUGE, (sample(1),))], [Family("x", "Y.", COUNTER, (sample(2),))])
    assert found == {"x": ("gauge", {("x",): 1})}
