"""Who is to blame: ledgers with simulated workers, which die when they have computed some request for some steps."""

import itertools

import pytest

from octavo.worker.ledger import MAX_DEATHS, WINDOW_SECONDS, Entry, Ledger


class Job(Entry):
    def __init__(self, steps: int) -> None:
        super().__init__()
        self.left = steps


class Simulation:
    """A worker that computes all it is sent, a step of each at a time, and dies of those in `deadly` after so many."""

    def __init__(self, jobs: dict[str, int], deadly: dict[str, int]) -> None:
        self.ledger: Ledger[Job] = Ledger()
        self.deadly = deadly
        self.jobs = {key: Job(steps) for key, steps in jobs.items()}
        self.deaths = self.steps = 0
        self.culprits: list[str] = []
        for key, job in self.jobs.items():
            self.ledger.add(key, job)

    def run(self) -> None:
        while self.ledger:
            self.ledger.take()
            if not self._step():
                self._die()

    def _step(self) -> bool:
        self.steps += 1
        for key, job in self.jobs.items():
            if job.in_worker:
                self.ledger.note_step(key, job)
                job.left -= 1
        if any(self.jobs[key].in_worker and self.jobs[key].steps >= steps for key, steps in self.deadly.items()):
            return False
        for key, job in self.jobs.items():
            if job.in_worker and job.left <= 0:
                job.in_worker = False
                self.ledger.remove(key)
        return True

    def _die(self) -> None:
        self.deaths += 1
        culprit = self.ledger.note_death()
        if culprit is not None:
            key = next(key for key, job in self.jobs.items() if job is culprit)
            self.culprits.append(key)
            culprit.in_worker = False
            self.ledger.remove(key)


@pytest.mark.parametrize("deadly_steps", [1, 2, 15, 16, 17, 80])
@pytest.mark.parametrize("requests", [1, 2, 16, 150])
@pytest.mark.parametrize("place", [0.0, 0.4, 0.99])
def test_the_culprit_alone_is_found(requests: int, deadly_steps: int, place: float) -> None:
    jobs = {str(i): 2000 for i in range(requests)}
    culprit = str(int(place * requests))
    jobs[culprit] = 100_000
    simulation = Simulation(jobs, {culprit: deadly_steps})
    simulation.run()
    assert simulation.culprits == [culprit]
    assert MAX_DEATHS <= simulation.deaths <= 12


def test_two_culprits_are_found_one_after_the_other() -> None:
    jobs = {str(i): 1000 for i in range(20)}
    simulation = Simulation(jobs, {"3": 1, "11": 40})
    simulation.run()
    assert sorted(simulation.culprits) == ["11", "3"]


def test_a_newcomer_that_kills_is_found_without_trying_those_that_ran_well() -> None:
    simulation = Simulation({str(i): 1000 for i in range(20)}, {})
    ledger = simulation.ledger
    ledger.take()
    for _ in range(30):
        simulation._step()
    simulation.jobs["new"] = new = Job(1000)
    ledger.add("new", new)
    ledger.take()
    simulation.deadly = {"new": 1}
    simulation.run()
    assert simulation.culprits == ["new"]
    assert simulation.deaths == MAX_DEATHS


def test_two_deaths_without_a_culprit_hold_nobody_up_for_long() -> None:
    simulation = Simulation({str(i): 400 for i in range(16)}, {})
    for _ in range(2):
        simulation.ledger.take()
        for _ in range(50):
            simulation._step()
        simulation._die()
    simulation.run()
    assert not simulation.culprits
    assert simulation.steps < 100 + 16 * 16 + 400


def test_deaths_long_ago_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(step=WINDOW_SECONDS / (MAX_DEATHS - 1) + 1)
    monkeypatch.setattr("time.monotonic", lambda: float(next(clock)))
    simulation = Simulation({"it": 1000}, {})
    for _ in range(10):
        simulation.ledger.take()
        simulation._step()
        simulation._die()
    assert not simulation.culprits


def test_what_is_on_trial_is_alone_and_newcomers_wait() -> None:
    simulation = Simulation({"a": 100, "b": 100}, {})
    ledger = simulation.ledger
    for _ in range(2):
        assert len(ledger.take()) == 2
        simulation._die()
    assert ledger.take() == [simulation.jobs["a"]]
    simulation.jobs["c"] = Job(100)
    ledger.add("c", simulation.jobs["c"])
    assert not ledger.takes_all
    assert ledger.take() == []
    ledger.remove("a")  # aborted, say
    assert ledger.take() == [simulation.jobs["b"]]
    for _ in range(16):
        simulation._step()
    assert ledger.take() == [simulation.jobs["c"]]
    assert ledger.takes_all


def test_what_was_recalled_is_sent_again_and_nobody_is_blamed() -> None:
    simulation = Simulation({"a": 100, "b": 100}, {})
    for _ in range(5):
        assert len(simulation.ledger.take()) == 2
        simulation.ledger.recall()
    assert all(not job.deaths for job in simulation.jobs.values())
