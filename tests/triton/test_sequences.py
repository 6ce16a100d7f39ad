"""Sequences: what models are told of each request, over HTTP and gRPC, with numbers and texts as ids."""

import json
import time
from typing import Any

import pytest
import tritonclient.grpc as triton_grpc

from tests.triton.comparing import Both, ask, asks, number_input, say_the_same, streamed, tensor
from tests.triton.servers import Served

SequenceId = int | str


def request(model: str, value: int, sequence: SequenceId | None, *, start: bool = False, end: bool = False) -> Any:
    parameters = {} if sequence is None else {"sequence_id": sequence}
    parameters |= {name: True for name, given in (("sequence_start", start), ("sequence_end", end)) if given}
    return asks(model, tensor("IN", "INT32", [1, 1], [value]), parameters=parameters)


def over_http(server: Served, model: str, sequence: SequenceId, values: list[int]) -> list[Any]:
    found = []
    for number, value in enumerate(values):
        answer = ask(server, request(model, value, sequence, start=number == 0, end=number == len(values) - 1))
        outputs = {each["name"]: each["data"][0] for each in answer.json().get("outputs", ())}
        if not outputs:
            return [answer.json()["error"]]
        found.append((outputs["OUT"], json.loads(outputs["SAID"])))
    return found


def over_grpc(server: Served, model: str, sequence: SequenceId, values: list[int]) -> list[Any]:
    found = []
    with triton_grpc.InferenceServerClient(server.grpc) as client:
        for number, value in enumerate(values):
            answer = client.infer(
                model,
                [number_input("IN", 1, 1, value=value)],
                sequence_id=sequence,
                sequence_start=number == 0,
                sequence_end=number == len(values) - 1,
            )
            found.append((answer.as_numpy("OUT").item(), json.loads(answer.as_numpy("SAID").item())))
    return found


@pytest.mark.parametrize("way", [over_http, over_grpc])
@pytest.mark.parametrize(
    ("model", "sequence"),
    [
        ("controls", 17),
        ("controls", 2**63 + 5),
        ("controls_oldest", 18),
        ("controls_oldest", 2**31 - 1),
    ],
)
def test_what_models_are_told(both: Both, way: Any, model: str, sequence: SequenceId) -> None:
    if way is over_grpc and sequence == 2**63 + 5:
        pytest.skip("Triton's client has it as a signed number")
    ours, theirs = (way(each, model, sequence, [1, 2, 3, 4]) for each in both)
    assert ours == theirs
    assert [total for total, _ in ours] == [1, 3, 6, 10]


@pytest.mark.parametrize("way", [over_http, over_grpc])
def test_texts_as_ids(both: Both, way: Any) -> None:
    """Triton's Python models cannot read them; here they are what the client says."""
    ours = way(both[0], "controls_text", "mine", [1, 2, 3])
    assert [total for total, _ in ours] == [1, 3, 6]
    assert {told["CORRID"] for _, told in ours} == {told["correlation_id"] for _, told in ours} == {"mine"}


def test_sequences_beside_one_another(both: Both) -> None:
    found = []
    for server in both:
        totals = []
        for step in range(3):
            for number in (1, 2, 3):
                sent = request("controls", number, 100 + number, start=step == 0, end=step == 2)
                totals.append(ask(server, sent).json()["outputs"][0]["data"][0])
        found.append(totals)
    assert found[0] == found[1] == [1, 2, 3, 2, 4, 6, 3, 6, 9]


def test_a_sequence_in_a_stream(both: Both) -> None:
    requests = [
        (
            "controls_oldest",
            {
                "inputs": [number_input("IN", 1, 1, value=number)],
                "request_id": f"{number}",
                "sequence_id": 7,
                "sequence_start": number == 1,
                "sequence_end": number == 4,
            },
        )
        for number in (1, 2, 3, 4)
    ]
    ours, theirs = (streamed(each, *requests, answers=4) for each in both)
    assert ours == theirs
    assert [outputs["OUT"] for _, outputs, _ in ours] == [[[1]], [[3]], [[6]], [[10]]]


@pytest.mark.parametrize("model", ["controls", "controls_oldest", "controls_idle"])
@pytest.mark.parametrize(
    "how",
    [
        {"sequence": None},
        {"sequence": 0},
        {"sequence": ""},
        {"sequence": 55},
        {"sequence": 55, "end": True},
        {"sequence": None, "start": True},
    ],
)
def test_what_belongs_to_no_sequence(both: Both, model: str, how: dict[str, Any]) -> None:
    ours, theirs = (ask(each, request(model, 1, **how)) for each in both)
    assert say_the_same(ours.json()["error"], theirs.json()["error"])
    assert ours.status_code == theirs.status_code == 400


def test_a_sequence_that_begins_anew(both: Both) -> None:
    found = []
    for server in both:
        answers = [ask(server, request("controls", 5, 61, start=start)) for start in (True, False, True, False)]
        found.append([each.json()["outputs"][0]["data"][0] for each in answers])
        ask(server, request("controls", 0, 61, end=True))
    assert found[0] == found[1] == [5, 10, 5, 10]


def test_a_sequence_of_one_request(both: Both) -> None:
    ours, theirs = (over_http(each, "controls", 62, [9]) for each in both)
    assert ours == theirs


def test_an_idle_sequence_is_over(both: Both) -> None:
    errors = []
    for server in both:
        assert ask(server, request("controls_idle", 1, 5, start=True)).is_success
        deadline = time.monotonic() + 30
        while (answer := ask(server, request("controls_idle", 1, 5))).is_success:
            assert time.monotonic() < deadline
            time.sleep(1)
        errors.append(answer.json()["error"])
        assert answer.status_code == 400
    assert say_the_same(*errors)
