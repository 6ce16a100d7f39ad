"""Trace and log settings, and files of traces: the same changes and requests to both servers."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from tritonclient.utils import InferenceServerException

from tests.deployments.test_repository import eventually
from tests.triton.servers import Served
from tests.triton.test_differential import REQUESTS, ask, say_the_same

Both = tuple[Served, Served]

LOG, TRACE, OF_MODEL = "/v2/logging", "/v2/trace/setting", "/v2/models/add_sub/trace/setting"

CLEARED = dict.fromkeys(("trace_level", "trace_rate", "trace_count", "log_frequency"))
USUAL = {"log_info": True, "log_warning": True, "log_error": True, "log_verbose_level": 0, "log_format": "default"}

CHANGES: list[tuple[str, Any]] = [
    (LOG, None),
    (LOG, {"log_info": False, "log_verbose_level": 1, "log_format": "ISO8601"}),
    (LOG, {"log_warning": False, "log_error": None}),
    (LOG, None),
    (LOG, {"log_info": "yes"}),
    (LOG, {"log_verbose_level": -1}),
    (LOG, {"log_verbose_level": True}),
    (LOG, {"log_format": 5}),
    (LOG, {"log_file": "x"}),
    (LOG, USUAL),
    (TRACE, None),
    (TRACE, {}),
    (TRACE, {"trace_rate": "5", "trace_count": "7"}),
    (OF_MODEL, None),
    (OF_MODEL, {"trace_rate": "9", "log_frequency": "3"}),
    (TRACE, {"trace_rate": "11", "log_frequency": "8", "trace_level": ["TENSORS", "TIMESTAMPS"]}),
    (OF_MODEL, None),
    (OF_MODEL, {"trace_rate": None, "trace_level": ["OFF"]}),
    (TRACE, {"trace_level": None, "trace_count": None}),
    (OF_MODEL, {"trace_level": None}),
    (TRACE, {"trace_rate": 5}),
    (TRACE, {"trace_rate": "x"}),
    (TRACE, {"trace_count": "-2"}),
    (TRACE, {"log_frequency": "4294967296"}),
    (TRACE, {"trace_rate": "0", "trace_level": ["TIMESTAMPS"]}),
    (TRACE, {"trace_level": "OFF"}),
    (TRACE, {"trace_level": ["OFF", "TENSORS"]}),
    (TRACE, {"trace_file": "x"}),
    (OF_MODEL, CLEARED),
    (TRACE, CLEARED),
    (OF_MODEL, None),
    ("/v2/models/nothing/trace/setting", None),
    ("/v2/models/broken/trace/setting", {"trace_rate": "x"}),
]

IGNORED: list[tuple[str, Any]] = [
    (LOG, {"log_colour": "red"}),
    (LOG, {"log_verbose_level": 2**32}),
    (TRACE, {"trace_colour": "red"}),
    (TRACE, {"trace_mode": "opentelemetry"}),
    (TRACE, {"trace_level": ["ALL"]}),
    (TRACE, {"trace_rate": "-3"}),
    (TRACE, {"trace_rate": "7x"}),
]
"""What Triton takes for something else, or for nothing."""


@pytest.fixture(autouse=True)
def _as_before(both: Both) -> Iterator[None]:
    yield
    for server in both:
        for path, settings in ((OF_MODEL, CLEARED), (TRACE, CLEARED), (LOG, USUAL)):
            assert server.ask("POST", path, json=settings).status_code == 200


def changed(server: Served, path: str, settings: Any) -> tuple[int, Any]:
    answer = server.ask("GET", path) if settings is None else server.ask("POST", path, json=settings)
    found = answer.json()
    found.pop("trace_file", None)
    return answer.status_code, found


def test_changes_come_to_the_same(both: Both) -> None:
    for path, settings in CHANGES:
        (our_status, ours), (their_status, theirs) = (changed(each, path, settings) for each in both)
        if "error" in theirs:
            assert say_the_same(ours["error"], theirs["error"]), (path, settings)
            assert our_status == their_status or their_status == 500, (path, settings)
        else:
            assert (our_status, ours) == (their_status, theirs), (path, settings)


@pytest.mark.parametrize(("path", "settings"), IGNORED)
def test_what_triton_ignores_is_refused(both: Both, path: str, settings: Any) -> None:
    (our_status, ours), (their_status, _) = (changed(each, path, settings) for each in both)
    assert (our_status, their_status) == (400, 200)
    assert next(iter(settings)) in ours["error"]


def test_grpc_changes_the_same(both: Both) -> None:
    found: list[list[Any]] = []
    for server in both:
        with triton_grpc.InferenceServerClient(server.grpc) as client:
            said: list[Any] = []
            for call, settings in (
                (client.update_trace_settings, {"trace_rate": "5", "trace_level": ["TENSORS", "TIMESTAMPS"]}),
                (client.update_trace_settings, {"trace_rate": None, "trace_level": ["OFF"]}),
                (client.update_trace_settings, {"trace_rate": ["5", "6"]}),
                (client.update_trace_settings, {"log_frequency": "x"}),
                (client.update_trace_settings, {"trace_file": "x"}),
                (client.update_log_settings, {"log_info": False, "log_verbose_level": 3}),
                (client.update_log_settings, {"log_format": "json"}),
                (client.update_log_settings, {"log_file": "x"}),
            ):
                try:
                    answer = call(settings=settings, as_json=True)["settings"]
                    answer.pop("trace_file", None)
                    said.append(answer)
                except InferenceServerException as error:
                    said.append((error.status(), error.message()))
            found.append(said)
    for ours, theirs in zip(*found, strict=True):
        if isinstance(theirs, tuple):
            assert ours[0] == theirs[0]
            assert say_the_same(ours[1], theirs[1])
        else:
            assert ours == theirs


# --- files ------------------------------------------------------------------------------------------------------------


def written(file: Path, count: int) -> list[Any]:
    """What is in the files of so many traces: by trace, heads and tensors and what happened."""
    files = [Path(f"{file}.{number}") for number in range(count)]
    eventually(lambda: all(each.exists() and each.stat().st_size for each in files))
    return [_content(json.loads(each.read_text())) for each in files]


def _content(entries: list[dict[str, Any]]) -> list[Any]:
    """Of each request, those first that were asked first."""
    spans: dict[int, Any] = {}
    for entry in entries:
        head, events, tensors = spans.setdefault(entry["id"], ({}, set(), []))
        if "timestamps" in entry:
            events.update(stamp["name"] for stamp in entry["timestamps"])
        elif "tensor" in entry:
            tensor = entry["tensor"]
            tensors.append((entry["activity"], tensor["name"], tensor["data"], tensor["shape"], tensor["dtype"]))
        else:
            head.update(entry)
    first = min(spans)
    found = []
    for number in sorted(spans):
        head, events, tensors = spans[number]
        own = {**head, "id": number - first}
        if "parent_id" in own:
            own["parent_id"] -= first
            # Triton does not always say of a step of an ensemble that its response is complete.
            events.discard("INFER_RESPONSE_COMPLETE")
        found.append((own, sorted(events), sorted(tensors)))
    return found


def test_files_of_traces_say_the_same(both: Both, trace_files: tuple[Path, Path]) -> None:
    traced = ("with an id", "an ensemble", "bytes", "booleans", "an error of the model's", "generate")
    for server in both:
        settings = {"trace_level": ["TIMESTAMPS", "TENSORS"], "trace_rate": "1", "log_frequency": "1"}
        assert server.ask("POST", TRACE, json=settings).status_code == 200
        for name in traced:
            ask(server, REQUESTS[name])
        with triton_grpc.InferenceServerClient(server.grpc) as client:
            given = triton_grpc.InferInput("IN", [1], "INT32")
            given.set_data_from_numpy(np.array([9], np.int32))
            client.infer("errors", [given], request_id="it")
    ours, theirs = (written(file, len(traced) + 1) for file in trace_files)
    for our, their in zip(ours, theirs, strict=True):
        assert our == their
