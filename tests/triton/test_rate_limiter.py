"""Instances that wait for resources: who waits for whom, whose turn it is, and which models are refused, as in
Triton. What differs is in docs/from-triton.md."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.deployments.test_rate_limiter import CODE, CONFIG, group
from tests.triton.servers import Served, serving

MODELS = {
    "one": group("R"),
    "other": group("R"),
    "free": "",
    "elsewhere": group("S"),
    "shared": group("ALL", count=2),
    "urgent": group("P"),
    "patient": group("P", priority=3),
    "greedy": group("R:9"),
    "unknown": group("UNKNOWN"),
}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, Served]]:
    """Octavo and Triton, with a rate limiter."""
    models = tmp_path_factory.mktemp("models")
    for name, config in MODELS.items():
        version = models / name / "1"
        version.mkdir(parents=True)
        (models / name / "config.pbtxt").write_text(CONFIG + config)
        (version / "model.py").write_text(CODE)
    options = ["--rate-limit=execution_count", *(f"--rate-limit-resource={each}:1" for each in ("R", "S", "P", "ALL"))]
    with ExitStack() as started:
        octavo, triton = [
            started.enter_context(serving(name, models, tmp_path_factory.mktemp(name), *options))
            for name in ("octavo", "triton")
        ]
        yield octavo, triton


def ask(served: Served, model: str, path: object = "") -> list[int]:
    """When a request was begun and ended, in which process, and how many that has computed."""
    tensor = {"name": "PATH", "shape": [1], "datatype": "BYTES", "data": [str(path)]}
    answer = served.ask("POST", f"/v2/models/{model}/infer", json={"inputs": [tensor]})
    found: list[int] = answer.raise_for_status().json()["outputs"][0]["data"]
    return found


def wait_for(path: Path) -> None:
    ends = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < ends
        time.sleep(0.01)


@pytest.mark.parametrize(("holder", "waiting"), [("one", "other"), ("shared", "shared")])
def test_the_same_wait_for_each_other(both: tuple[Served, Served], holder: str, waiting: str, tmp_path: Path) -> None:
    for served in both:
        path = tmp_path / served.name
        with ThreadPoolExecutor() as pool:
            held = pool.submit(ask, served, holder, path)
            wait_for(Path(f"{path}.begun"))
            for each in ("free", "elsewhere", "free"):
                ask(served, each)
            waits = pool.submit(ask, served, waiting)  # and from now on all others wait, too, in Triton
            time.sleep(0.5)
            assert not waits.done()
            path.touch()
            assert held.result()[1] <= waits.result()[0]


def test_priorities_divide_the_turns_alike(both: tuple[Served, Served], tmp_path: Path) -> None:
    for served in both:
        path = tmp_path / served.name
        with ThreadPoolExecutor(16) as pool:
            held = pool.submit(ask, served, "urgent", path)
            wait_for(Path(f"{path}.begun"))
            asked = [(name, pool.submit(ask, served, name)) for name in ("urgent", "patient") for _ in range(7)]
            time.sleep(1)  # Triton does not say what waits
            path.touch()
            held.result()
            turns = [name for _, name in sorted((each.result()[0], name) for name, each in asked)]
        assert 5 <= turns[:8].count("urgent") <= 7, (served.name, turns)


def test_the_same_models_are_refused(both: tuple[Served, Served]) -> None:
    for served in both:
        index = {each["name"]: each for each in served.ask("POST", "/v2/repository/index").json()}
        assert {name for name, each in index.items() if each["state"] != "READY"} == {"greedy", "unknown"}
        for name, there, needed in (("greedy", 1, 9), ("unknown", 0, 1)):
            resource = "R" if name == "greedy" else "UNKNOWN"
            assert (
                f'Resource count for "{resource}" is limited to {there} which will prevent scheduling of one or more '
                f"model instances, the minimum required count is {needed}" in index[name]["reason"]
            )


@pytest.mark.parametrize("model", ["one", "patient", "shared", "free"])
def test_configurations_show_the_same_limits(both: tuple[Served, Served], model: str) -> None:
    shown = [served.ask("GET", f"/v2/models/{model}/config").json()["instance_group"] for served in both]
    assert shown[0] == shown[1]
