"""What the clients of `soak.py` ask for, and what they must get."""

import asyncio
import itertools
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.shared_memory import SharedMemory

import numpy as np
from tritonclient.grpc import InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from soak_models import CRASHES, FAILS, IDLE_SECONDS, QUEUE, RAISES, SLOW
from soak_wires import LEFT, LOST, OK, Ask, Grpc, Http, Outcome, Wire

DOUBLING = ("first", "second", "steady", "steady", "both", "asks")
FACTORS = {"both": 4.0, "asks": 6.0}
"""What models make of numbers, if it is not twice as much."""

SIZES = (4, 16, 1024, 65_536, 262_144)

KINDS = {
    "right": 60,
    "slow": 4,
    "fails": 6,
    "raises": 2,
    "wrong shape": 5,
    "unknown model": 2,
    "unknown version": 2,
    "no JSON": 2,
    "half a body": 2,
    "leaves": 6,
    "too late": 2,
    "too many": 1,
    "sequence": 4,
    "words": 4,
    "leaves words": 2,
    "kept": 8,
    "region": 2,
    "looks": 2,
    "new connection": 2,
}
"""What clients do, and how often."""

REGION = "soak_region_"
"""How the names of clients' memory begin."""

KEPT = 40
"""Different numbers that clients ask for whose answers are kept."""

KILLED_BEFORE = 10.0
"""Seconds before a request in which a kill explains an error that tells of it: other frontends may hear of it late."""


class Shift:
    """When there is load: from its beginning to its end, but for pauses."""

    def __init__(self) -> None:
        self._ends = 0.0
        self._busy = 0
        self._open = asyncio.Event()
        self._idle = asyncio.Event()

    def begin(self, seconds: float) -> None:
        """There is from now on, for so long."""
        self._ends = time.monotonic() + seconds
        self._open.set()

    async def turns(self, seconds: float = 0.0) -> AsyncIterator[None]:
        """Something may be done, and again so many seconds after it was done. A pause waits for it to be done."""
        while await self.sleep(seconds):
            await self._open.wait()
            self._busy += 1
            try:
                yield
            finally:
                self._busy -= 1
                if not self._busy:
                    self._idle.set()

    async def sleep(self, seconds: float) -> bool:
        """Wait for so long, or until it ends. Returns whether it goes on."""
        left = self._ends - time.monotonic()
        await asyncio.sleep(max(min(seconds, left), 0.0))
        return left > seconds

    async def pause(self) -> None:
        """Have nobody begin anything, and wait for what is being done."""
        self._open.clear()
        while self._busy:
            self._idle.clear()
            await self._idle.wait()

    def resume(self) -> None:
        """Go on."""
        self._open.set()


@dataclass
class Tally:
    """What became of requests.

    Attributes:
        wrong: descriptions of what must not be. lost: of requests that were not answered.
        kills: when processes were killed, of models and of frontends.
        generations: what models must at least be that are asked from now on.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    kills: dict[str, list[float]] = field(default_factory=lambda: {"model": [], "frontend": []})
    generations: dict[str, int] = field(default_factory=dict)
    requests: int = 0

    def killed(self, kind: str, began: float) -> bool:
        """Whether a process was killed since a request began, or just before."""
        return any(began - KILLED_BEFORE <= each for each in self.kills[kind])

    def note_wrong(self, began: float, what: str) -> None:
        """Something must not be: of a request that began then."""
        now = time.monotonic()
        since = {kind: f"{now - kills[-1]:.1f} s" for kind, kills in self.kills.items() if kills}
        self.wrong.append(f"{time.strftime('%H:%M:%S')}, after {now - began:.1f} s, last kills {since}: {what}")

    def note(self, kind: str, outcome: Outcome, began: float) -> bool:
        """Count an outcome. Returns whether it is one to be judged: what a kill explains is not."""
        self.requests += 1
        self.outcomes[f"{kind}: {outcome.code}"] += 1
        if outcome.code == LEFT:
            return False
        if outcome.code == LOST:
            if not self.killed("frontend", began):
                self.lost.append(
                    f"{time.strftime('%H:%M:%S')}, after {time.monotonic() - began:.1f} s: {kind}: {outcome.message}"
                )
            return False
        return not self._explained(outcome, began)

    def _explained(self, outcome: Outcome, began: float) -> bool:
        """Whether a process was killed that computed this, or that asked for it, and the error says so."""
        if outcome.code == OK:
            return False
        said = outcome.message
        if "the model failed: " in said or "processes of the model ended" in said:
            return self.killed("model", began)
        return "the server's process that was asked has ended" in said and self.killed("frontend", began)

    def expect(self, began: float, kind: str, outcome: Outcome, code: str, *words: str) -> None:
        """An error must be this one, and say one of these."""
        if outcome.code != code or (words and not any(each in outcome.message for each in words)):
            self.note_wrong(began, f"{kind}: {outcome.code}, not {code}: {outcome.message[:300]!r}")


class Client:
    """One that asks for this and that, over HTTP and over gRPC.

    Args:
        seed: of what it draws. regions: whether it may pass tensors in memory that it has made.
    """

    _sequences = itertools.count(1)

    def __init__(self, port: int, seed: int, tally: Tally, *, regions: bool) -> None:
        self._kinds = {kind: often for kind, often in KINDS.items() if regions or kind != "region"}
        self._drawn = random.Random(seed)
        self._tally = tally
        self._http, self._grpc = Http(port), Grpc(port + 1)
        self._wires: Sequence[Wire] = (self._http, self._grpc)
        self._seed = seed
        self._number = 0
        self._acts = {
            "sequence": self._sequence,
            "words": self._words,
            "too many": self._too_many,
            "region": self._region,
            "looks": self._look,
            "no JSON": self._no_json,
            "half a body": self._half,
            "new connection": self._reconnect,
        }

    async def run(self, shift: Shift) -> None:
        """Ask until it is over."""
        async for _ in shift.turns():
            [kind] = self._drawn.choices(list(self._kinds), list(self._kinds.values()))
            wire = self._drawn.choice(self._wires)
            act, began = self._acts.get(kind), time.monotonic()
            try:
                if act is not None:
                    await act(wire)
                elif kind == "leaves words":
                    await self._words(wire, leave=self._drawn.random() * 0.02)
                else:
                    await self._one(kind, wire)
            except (InferenceServerException, OSError) as error:  # what has no outcome of its own
                if not self._tally.killed("frontend", began):
                    self._tally.note_wrong(began, f"{kind}: {error!r}")
        await self._reconnect(self._http)

    def _ask(self, model: str, array: np.ndarray, **more: object) -> Ask:
        self._number += 1
        name = f"{self._seed}-{self._number}" if self._drawn.random() < 0.5 else ""
        return Ask(model, array.astype(np.float32), name=name, **more)  # type: ignore[arg-type]

    async def _one(self, kind: str, wire: Wire) -> None:
        """A request of one result."""
        model = self._drawn.choice(DOUBLING)
        array = np.full((self._drawn.randint(1, 3), self._drawn.choice(SIZES)), self._drawn.random(), np.float32)
        if kind == "kept":
            model, array = "kept", np.full((1, self._drawn.choice(SIZES)), self._drawn.randint(0, KEPT), np.float32)
        array[0, 0] = {"fails": FAILS, "raises": RAISES, "slow": SLOW}.get(kind, array[0, 0])
        ask = self._ask(model, array)
        match kind:
            case "wrong shape":
                ask.array = array.reshape(-1)
            case "unknown model":
                ask.model = "nowhere"
            case "unknown version":
                ask.version = "7"
            case "leaves":
                ask.leave = self._drawn.random() * 0.01
            case "too late":
                ask.model, ask.timeout, array[0, 0] = "narrow", 1, SLOW
        least, began = self._tally.generations.get(model, 0), time.monotonic()
        outcome = await wire.infer(ask)
        if self._tally.note(kind, outcome, began):
            self._judge(began, kind, ask, outcome, least)

    def _judge(self, began: float, kind: str, ask: Ask, outcome: Outcome, least: int) -> None:
        expect = self._tally.expect
        match kind:
            case "fails":
                # Neighbours of a batch are told apart; a request that raises fails all of it.
                expect(began, kind, outcome, "INTERNAL", "as it was asked to", "as it was told to")
            case "raises":
                expect(began, kind, outcome, "INTERNAL", "as it was told to", "as it was asked to")
            case "wrong shape":
                expect(began, kind, outcome, "INVALID_ARGUMENT", "batch-size", "shape")
            case "unknown model" | "unknown version":
                expect(began, kind, outcome, "NOT_FOUND", "unknown model")
            case "too late" if outcome.code != OK:
                expect(began, kind, outcome, "UNAVAILABLE", "Request timeout expired", "maximum queue size")
            case _ if outcome.code == "INTERNAL" and "as it was told to" in outcome.message:
                pass  # it was in the batch of one that raises
            case _:
                self._judge_answer(began, kind, ask, outcome, least)

    def _judge_answer(self, began: float, kind: str, ask: Ask, outcome: Outcome, least: int) -> None:
        if outcome.code != OK:
            self._tally.note_wrong(began, f"{kind}, {ask.model}: {outcome.code}: {outcome.message[:300]!r}")
        elif not np.array_equal(outcome.arrays[0], ask.array * np.float32(FACTORS.get(ask.model, 2.0))):
            self._tally.note_wrong(began, f"{kind}: a wrong answer of {ask.model} to {ask.array.shape}")
        elif outcome.parameters.get("generation", least) < least:
            self._tally.note_wrong(began, f"{kind}: {ask.model} is {outcome.parameters}, older than generation {least}")

    async def _sequence(self, wire: Wire) -> None:
        """Numbers that are added up; every fourth sequence is left before its end."""
        number, total = next(self._sequences), 0.0
        length = self._drawn.randint(2, 20)
        left = self._drawn.random() < 0.25
        spoken = time.monotonic()
        for at in range(length - left):
            value = float(self._drawn.randint(0, 99))
            total += value
            ask = self._ask("sums", np.full((1, 1), value))
            ask.sequence, ask.start, ask.end = number, at == 0, at == length - 1
            began = time.monotonic()
            outcome = await wire.infer(ask)
            if not self._tally.note("sequence", outcome, began):
                return
            paused, spoken = began - spoken, time.monotonic()
            if outcome.code != OK or outcome.arrays[0].item() != total:
                if paused < IDLE_SECONDS:
                    found = outcome.arrays or outcome.message[:300]
                    self._tally.note_wrong(began, f"sequence {number} at {at}: {outcome.code} {found}, not {total}")
                return

    async def _words(self, wire: Wire, leave: float | None = None) -> None:
        count = self._drawn.randint(0, 50)
        ask = self._ask("words", np.full((1, 1), count))
        ask.leave = leave
        began = time.monotonic()
        outcome = await wire.stream(ask)
        if self._tally.note("words" if leave is None else "leaves words", outcome, began):
            found = [each.item() for each in outcome.arrays]
            if outcome.code != OK or found != list(range(count)):
                self._tally.note_wrong(began, f"{count} words: {outcome.code} {found} {outcome.message[:300]}")

    async def _too_many(self, wire: Wire) -> None:
        """More than may wait, each from a connection of its own if it is of HTTP."""
        wires = [Http(self._http.port) for _ in range(4 * QUEUE)]
        slow = np.full((8, 1), SLOW, np.float32)
        began = time.monotonic()
        outcomes = await asyncio.gather(*(each.infer(self._ask("narrow", slow)) for each in wires))
        for outcome in outcomes:
            if self._tally.note("too many", outcome, began) and outcome.code != OK:
                self._tally.expect(began, "too many", outcome, "UNAVAILABLE", "Exceeds maximum queue size")
        await asyncio.gather(*(each.close() for each in wires))

    async def _region(self, wire: Wire) -> None:
        """A tensor in memory that the client has made, from the frontend that this connection is to."""
        array = np.full((1, 1024), self._drawn.random(), np.float32)
        memory = SharedMemory(f"{REGION}{self._seed}", create=True, size=2 * array.nbytes)
        name, client, began = memory.name, self._grpc.client, time.monotonic()
        try:
            memory.buf[: array.nbytes] = array.tobytes()
            await client.register_system_shared_memory(name, name, memory.size)
            given = InferInput("IN", list(array.shape), "FP32")
            given.set_shared_memory(name, array.nbytes)
            wanted = InferRequestedOutput("OUT")
            wanted.set_shared_memory(name, array.nbytes, array.nbytes)
            await client.infer("steady", [given], outputs=[wanted], client_timeout=60)
            found = np.frombuffer(bytes(memory.buf[array.nbytes : 2 * array.nbytes]), np.float32)
            await client.unregister_system_shared_memory(name)
            outcome = Outcome(OK)
            if not np.array_equal(found, array[0] * 2):
                self._tally.note_wrong(began, "region: a wrong answer")
        except InferenceServerException as error:
            outcome = Outcome(LOST if self._tally.killed("frontend", began) else "FAILED", str(error))
        finally:
            memory.close()
            memory.unlink()
        told = "as it was told to" in outcome.message  # it was in the batch of one that raises
        if self._tally.note("region", outcome, began) and outcome.code != OK and not told:
            self._tally.note_wrong(began, f"region: {outcome.message[:300]}")

    async def _look(self, wire: Wire) -> None:
        """What monitoring asks."""
        began, client = time.monotonic(), self._grpc.client
        try:
            await client.get_inference_statistics()
            await client.get_model_config("steady")
            await client.update_log_settings({"log_verbose_level": self._drawn.randint(0, 1)})
            await client.update_trace_settings("steady", {"trace_rate": str(self._drawn.randint(10, 100))})
            await client.get_model_repository_index()
            outcome = Outcome(OK)
        except InferenceServerException as error:
            outcome = Outcome(LOST, str(error))
        self._tally.note("looks", outcome, began)

    async def _no_json(self, wire: Wire) -> None:
        body = json.dumps({"inputs": [{"name": "IN"}]})[: self._drawn.randint(1, 20)].encode()
        began = time.monotonic()
        found = await self._http.ask("/v2/models/steady/infer", body)
        outcome = found if isinstance(found, Outcome) else Outcome(str(found[0]), found[2].decode(errors="replace"))
        if self._tally.note("no JSON", outcome, began):
            self._tally.expect(began, "no JSON", outcome, "400")

    async def _half(self, wire: Wire) -> None:
        """A client that leaves before it has sent all that it was going to."""
        _, writer = await asyncio.open_connection("127.0.0.1", self._http.port)
        size = self._drawn.choice((100, 100_000, 2_000_000))
        writer.write(
            f"POST /v2/models/steady/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n\r\n".encode()
        )
        writer.write(bytes(size // 2))
        await asyncio.sleep(self._drawn.random() * 0.01)
        writer.transport.abort()
        self._tally.outcomes["half a body: LEFT"] += 1

    async def _reconnect(self, wire: Wire) -> None:
        await asyncio.gather(*(each.close() for each in self._wires))


async def crash(port: int, shift: Shift, seconds: float, tally: Tally) -> None:
    """Have a model end its own process, again and again; in between it must answer."""
    wire = Grpc(port + 1)
    right, last = np.full((1, 4), 1, np.float32), np.full((1, 4), CRASHES, np.float32)
    async for _ in shift.turns(seconds):
        began = time.monotonic()
        outcome = await wire.infer(Ask("crashes", last))
        if tally.note("crashes", outcome, began):
            # It is the request's own doing, and said so.
            tally.expect(began, "crashes", outcome, "INTERNAL", "the model failed: ")
        for _ in range(3):
            began = time.monotonic()
            outcome = await wire.infer(Ask("crashes", right))
            if tally.note("after a crash", outcome, began) and outcome.code != OK:
                tally.note_wrong(began, f"after a crash: {outcome.code} {outcome.message[:300]}")
    await wire.close()
