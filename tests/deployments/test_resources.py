"""Several deployments share one machine."""

from pathlib import Path

import pytest

from octavo.deployments import resources
from octavo.deployments.resources import divide
from octavo.deployments.settings import DeploymentSettings
from octavo.engine.config import EngineConfig
from octavo.engine.loader import load_engine, measure
from octavo.errors import ConfigError


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight cores and 100 MB, of which 60 MB are left."""
    monkeypatch.setattr(resources, "physical_cores", lambda: 8)
    for module in (resources, __import__("octavo.engine.config", fromlist=["config"])):
        monkeypatch.setattr(module, "memory_total", lambda: 100_000_000)
        monkeypatch.setattr(module, "memory_available", lambda: 60_000_000)


def settings(name: str, model: Path, **engine: object) -> DeploymentSettings:
    config = EngineConfig(model=str(model), backend="reference", **engine)  # type: ignore[arg-type]
    return DeploymentSettings(name=name, model=name, engine=config)


def test_one_deployment_is_left_as_it_is(tiny_model: Path) -> None:
    alone = settings("a", tiny_model)
    assert divide([alone]) == [alone]


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ((None, None), [4, 4]),
        ((None, None, None), [3, 3, 2]),
        ((6, None), [6, 2]),
        ((8, None, None), [8, 1, 1]),
        ((20, 20), [20, 20]),
    ],
)
def test_threads_are_shared_by_those_that_leave_them_open(
    machine: None, tiny_model: Path, named: tuple[int | None, ...], expected: list[int]
) -> None:
    deployments = [settings(str(number), tiny_model, threads=threads) for number, threads in enumerate(named)]
    assert [each.engine.threads for each in divide(deployments)] == expected


def test_memory_is_shared_by_those_that_leave_it_open(machine: None, tiny_model: Path) -> None:
    weights = measure(settings("a", tiny_model).engine).weight_bytes
    left = (60_000_000 - 4 * weights - 10_000_000) // 2
    small, large, named, other = divide(
        [
            settings("small", tiny_model, max_num_seqs=1, max_model_len=16),
            settings("large", tiny_model, max_num_seqs=10_000),
            settings("named", tiny_model, kv_cache_memory_bytes=10_000_000),
            settings("other", tiny_model, max_num_seqs=10_000),
        ]
    )
    assert named.engine.kv_cache_memory_bytes == 10_000_000
    assert small.engine.kv_cache_memory_bytes == 4096  # all that it can use: a page
    assert large.engine.kv_cache_memory_bytes == pytest.approx((left - 4096) / 2, abs=1)
    assert other.engine.kv_cache_memory_bytes == pytest.approx((left - 4096) / 2, abs=1)


def test_what_runs_keeps_what_it_has(machine: None, tiny_model: Path) -> None:
    info = load_engine(settings("a", tiny_model, kv_cache_memory_bytes=2**20).engine).info
    running = {"a": info, "b": info}
    [further] = divide([settings("c", tiny_model)], running)
    assert further.engine.threads == 2 + 1  # of eight cores, three sharers
    [heir] = divide([settings("a", tiny_model)], {"b": info}, {"a": info})
    assert heir.engine.threads == 4  # beside the one that stays
    with pytest.raises(ConfigError, match=r"need [\d,]+ bytes of memory together \(a [\d,]+, b [\d,]+, c [\d,]+\)"):
        divide([settings("c", tiny_model, kv_cache_memory_bytes=99_000_000)], running)


def test_the_sum_is_checked(machine: None, tiny_model: Path) -> None:
    half = 60_000_000
    with pytest.raises(ConfigError, match="there are 100,000,000 bytes here; lower kv_cache_memory_bytes"):
        divide([settings(name, tiny_model, kv_cache_memory_bytes=half) for name in "ab"])


def test_what_cannot_work_is_said_of_the_deployment(machine: None, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^b: max_model_len 9999 is more than the 256 positions"):
        divide([settings("a", tiny_model), settings("b", tiny_model, max_model_len=9999)])
    with pytest.raises(ConfigError, match=r"^b: "):
        divide([settings("a", tiny_model), settings("b", tmp_path / "nothing")])
