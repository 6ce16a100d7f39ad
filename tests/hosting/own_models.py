"""Models of somebody's own, for tests."""

import asyncio
import ctypes
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Literal, NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, field_validator

import octavo


class Label(BaseModel):
    label: Literal["short", "long"]
    score: float


class Sums(TypedDict):
    total: NDArray[np.float32]
    count: int


@octavo.model(max_batch_size=8)
class Classify:
    """Has what a classifier has."""

    def load(self) -> None:
        self.limit = 5

    def predict(self, text: list[str]) -> list[Label]:
        return [Label(label="long" if len(each) > self.limit else "short", score=len(each) / 10) for each in text]


@octavo.model(max_batch_size=8)
def identity(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return x


@octavo.model(max_batch_size=8)
def batches(x: list[int]) -> list[int]:
    """Each is told how many were computed with it."""
    time.sleep(0.02)
    return [len(x)] * len(x)


@octavo.model(max_batch_size=4)
def sums(x: NDArray[np.float32], times: list[int]) -> list[Sums]:
    return [{"total": row.sum(keepdims=True) * n, "count": row.size} for row, n in zip(x, times, strict=True)]


@octavo.model
def plain(number: float, name: str = "x", flags: list[bool] | None = None) -> dict[str, object]:
    return {"number": number, "name": name, "flags": flags}


@octavo.model
def words(prompt: str, pause: float = 0.0) -> Iterator[str]:
    for word in prompt.split():
        time.sleep(pause)
        yield word


@octavo.model
def endless(path: str) -> Iterator[int]:
    """Says in a file when it was ended."""
    try:
        n = 0
        while True:
            yield (n := n + 1)
            time.sleep(0.001)
    finally:
        Path(path).write_text("ended")


@octavo.model
async def patient(seconds: float, cancels: bool = False) -> float:
    if cancels:
        raise asyncio.CancelledError
    await asyncio.sleep(seconds)
    return seconds


@octavo.model
async def restless(path: str) -> AsyncIterator[int]:
    """Waits for nothing, and says in a file when it was ended."""
    try:
        while True:
            yield 1
    finally:
        os.close(os.open(path, os.O_CREAT))


@octavo.model
def untidy(n: int) -> Iterator[int]:
    try:
        yield from range(n)
    finally:
        raise RuntimeError("cannot end")


class NoException(BaseException):
    pass


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("cannot say")


class Picky(BaseModel):
    key: str

    @field_validator("key")
    @classmethod
    def known(cls, key: str) -> str:
        return {"a": "b"}[key]


class Point(NamedTuple):
    x: int
    y: timedelta


@octavo.model
def odd(do: str = "", picky: Picky | None = None) -> object:
    """Fails in ways of its own; tells its process's number otherwise."""
    match do:
        case "raise":
            raise NoException("not even an exception")
        case "mute":
            raise Mute
        case "later":
            return asyncio.sleep(0.001, "waited")
        case "point":
            return Point(1, timedelta(1))
        case "read":
            return input()
    return os.getpid()


@octavo.model
async def counted(n: int) -> AsyncIterator[int]:
    for each in range(n):
        await asyncio.sleep(0)
        yield each


@octavo.model(max_batch_size=4)
class Fragile:
    """Does what it is told."""

    def predict(self, do: list[str]) -> list[object]:
        if len(do) > 1:
            time.sleep(0.01)
        return [self._one(each) for each in do]

    def _one(self, do: str) -> object:
        match do:
            case "die":
                os._exit(3)
            case "crash":
                ctypes.string_at(0)
            case "sleep":
                time.sleep(0.3)
            case "hang":
                while True:
                    time.sleep(1)
            case "raise":
                raise RuntimeError("told to")
            case "exit":
                sys.exit(4)
            case "refuse":
                return octavo.InvalidRequest("this is no good")
            case "unwritable":
                return object()
            case "nan":
                return float("nan")
        return os.getpid()


@octavo.model(max_batch_size=4)
def wrong_rows(x: list[int]) -> list[int]:
    return [1, 2, 3][: len(x) + 1]


@octavo.model(max_batch_size=8)
class Keeps:
    """Keeps every array, changes it, and gives back how many it has kept unchanged by others."""

    def load(self) -> None:
        self.kept: list[NDArray[np.float32]] = []

    def predict(self, x: NDArray[np.float32]) -> list[bool]:
        x += len(self.kept)
        self.kept.append(x)
        return [all((each == each.flat[0]).all() for each in self.kept)] * len(x)


@octavo.model
def shout(file: bytes, times: int = 1) -> bytes:
    return file.upper() * times
