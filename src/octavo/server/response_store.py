"""Responses that clients may come back to: bounded in number, bytes and age; in memory, or in a file of SQLite's that
several processes share and that outlives them.

All work is done in one thread of its own: a slow disk holds up neither the event loop nor what is done to texts.
"""

import asyncio
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import orjson

from octavo.errors import ConfigError, OctavoError
from octavo.server import large_json

VERSION = 1
"""Of the tables, as `PRAGMA user_version`."""

BUSY_SECONDS = 5.0
"""For which another process may keep the database to itself."""

TABLES = """
CREATE TABLE responses (
    number INTEGER PRIMARY KEY,
    tenant TEXT NOT NULL,
    id TEXT NOT NULL,
    previous TEXT,
    created REAL NOT NULL,
    used REAL NOT NULL,
    beat REAL, -- when whoever works on it last said so; NULL once nobody does
    response BLOB NOT NULL,
    input BLOB NOT NULL,
    size INTEGER NOT NULL,
    UNIQUE (tenant, id)
);
CREATE INDEX responses_by_use ON responses (used);
CREATE INDEX responses_by_age ON responses (created);
CREATE TABLE items (
    tenant TEXT NOT NULL,
    id TEXT NOT NULL,
    response INTEGER NOT NULL REFERENCES responses (number) ON DELETE CASCADE,
    PRIMARY KEY (tenant, id, response) -- a response may repeat an item of an earlier one
) WITHOUT ROWID;
CREATE INDEX items_by_response ON items (response);
CREATE TABLE totals (responses INTEGER NOT NULL, bytes INTEGER NOT NULL);
INSERT INTO totals VALUES (0, 0);
CREATE TRIGGER more AFTER INSERT ON responses
BEGIN UPDATE totals SET responses = responses + 1, bytes = bytes + NEW.size; END;
CREATE TRIGGER less AFTER DELETE ON responses
BEGIN UPDATE totals SET responses = responses - 1, bytes = bytes - OLD.size; END;
CREATE TRIGGER other AFTER UPDATE OF size ON responses
BEGIN UPDATE totals SET bytes = bytes + NEW.size - OLD.size; END;
"""

T = TypeVar("T")


class StoreError(OctavoError):
    """The store cannot do what it is asked."""


class StoreFull(StoreError):
    """There is no room, even if all were removed that may be."""


class NotStored(StoreError):
    """There is no response with this id, or not any more."""

    def __init__(self, id: str) -> None:  # noqa: A002 - what it is
        super().__init__(f"Response with id '{id[:100]}' not found.")
        self.id = id


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredResponse:
    """A response, and what it answers.

    Attributes:
        tenant: whose it is; nobody else sees it.
        previous: the id of the response whose conversation it goes on with.
        response: the object as clients get it, as JSON.
        input: the items that are new in it, each with its id, as a JSON array.
        item_ids: of input and output; unknown of what comes from the store.
        created: seconds since the epoch.
        beat: when its worker last said that it goes on, None if nobody works on it.
    """

    tenant: str
    id: str
    previous: str | None
    response: bytes
    input: bytes
    created: float
    item_ids: Sequence[str] = ()
    beat: float | None = None

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.response) + len(self.input)

    def at(self, response: bytes, item_ids: Sequence[str], *, beat: float | None = None) -> "StoredResponse":
        """The same when it has come further, with the ids of its output's items."""
        return replace(self, response=response, item_ids=[*self.item_ids, *item_ids], beat=beat)

    def parsed(self) -> dict[str, Any]:
        """The response."""
        response: dict[str, Any] = _parsed(self.response)
        return response

    def input_items(self) -> list[dict[str, Any]]:
        """What is new in it."""
        items: list[dict[str, Any]] = _parsed(self.input)
        return items

    def items(self) -> list[dict[str, Any]]:
        """What it adds to the conversation."""
        return [*self.input_items(), *self.parsed()["output"]]


def _parsed(data: bytes) -> Any:
    try:
        return large_json.loads(data)
    except (orjson.JSONDecodeError, large_json.TooManyValuesError) as error:
        raise StoreError(f"A stored response cannot be read: {error}.") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreLimits:
    """Bounds: beyond them what was not used for longest goes first.

    Attributes:
        responses, bytes: of all tenants together.
        seconds: after which a response is gone. conversation_bytes: of the responses that a request goes on with.
    """

    responses: int
    bytes: int
    seconds: float
    conversation_bytes: int


class ResponseStore:
    """The responses of a server.

    Args:
        path: of the database; None is in memory, for this process alone.
        clock: seconds since the epoch.

    Raises:
        ConfigError: the database cannot be opened. From all other methods StoreError: it failed.
    """

    def __init__(self, path: str | None, limits: StoreLimits, clock: Callable[[], float] = time.time) -> None:
        self._limits = limits
        self._clock = clock
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="octavo-store")
        self._where = path or "memory"
        try:
            self._database = self._thread.submit(_open, path).result()
        except (sqlite3.Error, OSError, RuntimeError) as error:
            self._thread.shutdown()
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(f"cannot keep responses in {path}: {reason}", "store") from error
        except ConfigError:
            self._thread.shutdown()
            raise

    def close(self) -> None:
        """Let go of the database when what was asked before is done."""
        self._thread.submit(self._database.close)
        self._thread.shutdown()

    async def add(self, new: StoredResponse) -> None:
        """Keep a response, and remove others for it. Raises StoreFull."""
        await self._do(self._add, new)

    async def get(self, tenant: str, id: str) -> StoredResponse:  # noqa: A002
        """A tenant's response. Raises NotStored."""
        return await self._do(self._get, tenant, id)

    async def conversation(self, tenant: str, id: str) -> list[StoredResponse]:  # noqa: A002
        """A response after all that it goes on with, which all count as used now. Raises NotStored, StoreFull."""
        return await self._do(self._conversation, tenant, id)

    async def items(self, tenant: str, ids: list[str]) -> dict[str, dict[str, Any]]:
        """Those of the items that are there, by their ids."""
        return await self._do(self._items, tenant, ids)

    async def delete(self, tenant: str, id: str) -> None:  # noqa: A002
        """Remove a response. Raises NotStored."""
        await self._do(self._delete, tenant, id)

    async def replace(self, new: StoredResponse) -> bool:
        """Write down how far a response has come that is being worked on. Returns whether it still was."""
        return await self._do(self._replace, new)

    async def beat(self, tenant: str, id: str) -> bool:  # noqa: A002
        """Say that a response is being worked on. Returns whether it still should be."""
        return await self._do(self._beat, tenant, id)

    async def _do(self, work: Callable[..., T], *args: Any) -> T:
        def in_transaction() -> T:
            with _transaction(self._database):
                return work(*args)

        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, in_transaction)
        except sqlite3.Error as error:
            raise StoreError(f"The store of responses ({self._where}) failed: {error}.") from error

    # In the thread, each within a transaction.

    def _add(self, new: StoredResponse) -> None:
        now = self._clock()
        self._make_room(now, new.size)
        row = (new.tenant, new.id, new.previous, new.created, now, new.beat, new.response, new.input, new.size)
        columns = "tenant, id, previous, created, used, beat, response, input, size"
        added = self._database.execute(f"INSERT INTO responses ({columns}) VALUES (?,?,?,?,?,?,?,?,?)", row)
        self._index(new, added.lastrowid)

    def _make_room(self, now: float, size: int) -> None:
        limits = self._limits
        self._database.execute("DELETE FROM responses WHERE created < ?", (now - limits.seconds,))
        while True:
            [(responses, total)] = self._database.execute("SELECT responses, bytes FROM totals")
            if responses < limits.responses and total + size <= limits.bytes:
                return
            removed = self._database.execute(
                "DELETE FROM responses WHERE number = (SELECT number FROM responses WHERE beat IS NULL "
                "ORDER BY used, number LIMIT 1)"
            )
            if removed.rowcount == 0:
                raise StoreFull(
                    f"A response of {size:,} bytes has no room in the store, which holds {limits.responses:,} "
                    f"responses and {limits.bytes:,} bytes; those being worked on have {total:,}."
                )

    def _index(self, new: StoredResponse, number: int | None) -> None:
        rows = [(new.tenant, item, number) for item in new.item_ids]
        self._database.executemany("INSERT OR IGNORE INTO items VALUES (?,?,?)", rows)

    def _get(self, tenant: str, id: str) -> StoredResponse:  # noqa: A002
        oldest = self._clock() - self._limits.seconds
        rows = self._database.execute(
            "SELECT previous, created, beat, response, input FROM responses "
            "WHERE tenant = ? AND id = ? AND created >= ?",
            (tenant, id, oldest),
        ).fetchall()
        if not rows:
            raise NotStored(id)
        [(previous, created, beat, response, items)] = rows
        return StoredResponse(
            tenant=tenant,
            id=id,
            previous=previous,
            response=response,
            input=items,
            created=created,
            beat=beat,
        )

    def _conversation(self, tenant: str, id: str) -> list[StoredResponse]:  # noqa: A002
        found: list[StoredResponse] = []
        wanted: str | None = id
        size, now = 0, self._clock()
        while wanted is not None:
            [found_size] = self._database.execute(
                "UPDATE responses SET used = ? WHERE tenant = ? AND id = ? RETURNING size", (now, tenant, wanted)
            ).fetchone() or [0]
            size += found_size
            if size > self._limits.conversation_bytes:
                most = self._limits.conversation_bytes
                raise StoreFull(f"The conversation of response '{id}' has more than {most:,} bytes.")
            found.append(self._get(tenant, wanted))
            wanted = found[-1].previous
        return found[::-1]

    def _items(self, tenant: str, ids: list[str]) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        all_wanted = set(ids)
        for wanted in all_wanted:
            if wanted in found:
                continue
            row = self._database.execute(
                "SELECT responses.id FROM items JOIN responses ON number = items.response WHERE items.tenant = ? "
                "AND items.id = ? ORDER BY items.response DESC LIMIT 1",
                (tenant, wanted),
            ).fetchone()
            if row is None:
                continue
            try:
                stored = self._get(tenant, row[0])
            except NotStored:  # it is too old
                continue
            found |= {item["id"]: item for item in stored.items() if item["id"] in all_wanted}
        return found

    def _delete(self, tenant: str, id: str) -> None:  # noqa: A002
        self._get(tenant, id)
        self._database.execute("DELETE FROM responses WHERE tenant = ? AND id = ?", (tenant, id))

    def _replace(self, new: StoredResponse) -> bool:
        row = self._database.execute(
            "UPDATE responses SET response = ?, size = ?, beat = ? "
            "WHERE tenant = ? AND id = ? AND beat IS NOT NULL RETURNING number",
            (new.response, new.size, new.beat, new.tenant, new.id),
        ).fetchone()
        if row is None:
            return False
        self._index(new, row[0])
        return True

    def _beat(self, tenant: str, id: str) -> bool:  # noqa: A002
        found = self._database.execute(
            "UPDATE responses SET beat = ? WHERE tenant = ? AND id = ? AND beat IS NOT NULL",
            (self._clock(), tenant, id),
        )
        return found.rowcount == 1


def _open(path: str | None) -> sqlite3.Connection:
    place = ":memory:"
    if path is not None:
        place = str(Path(path).expanduser().absolute())
        os.close(os.open(place, os.O_RDWR | os.O_CREAT, 0o600))  # what clients say is for nobody else to read
    database = sqlite3.connect(place, timeout=BUSY_SECONDS, isolation_level=None)
    try:
        if path is not None:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")
        database.execute("PRAGMA foreign_keys = ON")
        database.execute("PRAGMA secure_delete = ON")  # what a client has deleted is not to be found in the file
        with _transaction(database):
            [(version,)] = database.execute("PRAGMA user_version")
            [(tables,)] = database.execute("SELECT count(*) FROM sqlite_master")
            if version == 0 and tables == 0:
                for statement in _statements(TABLES):
                    database.execute(statement)
                database.execute(f"PRAGMA user_version = {VERSION}")
            elif version != VERSION:
                raise ConfigError(f"{path} is a database of something else; name a file that is not there yet", "store")
    except BaseException:
        database.close()
        raise
    return database


def _statements(script: str) -> Iterator[str]:
    """The statements of a script: `executescript` would end the transaction."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


@contextmanager
def _transaction(database: sqlite3.Connection) -> Iterator[None]:
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:  # some errors have ended it
            database.execute("ROLLBACK")
        raise
