"""Streams over gRPC and of events: several requests, final answers, errors in between, ensembles."""

import json
from typing import Any

import pytest

from tests.triton.comparing import Both, number_input, say_the_same, streamed, text_input
from tests.triton.servers import Served


def repeat(count: int, **more: Any) -> tuple[str, dict[str, Any]]:
    return "repeat", {"inputs": [number_input("IN", 1, value=count)], **more}


def says(words: str, model: str = "says", **more: Any) -> tuple[str, dict[str, Any]]:
    return model, {"inputs": [text_input("WORDS", words)], **more}


@pytest.mark.parametrize("final", [False, True])
@pytest.mark.parametrize("count", [1, 3])
def test_streams_are_equal(both: Both, count: int, final: bool) -> None:
    request = repeat(count, request_id="it", enable_empty_final_response=final)
    ours, theirs = (streamed(each, request, answers=count + final) for each in both)
    assert ours == theirs


def test_a_stream_without_results_has_a_final_answer_if_it_is_wanted(both: Both) -> None:
    request = repeat(0, request_id="it", enable_empty_final_response=True)
    ours, theirs = (streamed(each, request, answers=1) for each in both)
    assert ours == theirs == [("it", {}, True)]


def test_one_answer_after_the_other_of_several_requests(both: Both) -> None:
    requests = [repeat(count, request_id=f"{count}", enable_empty_final_response=True) for count in (3, 1, 0, 2)]
    found = []
    for server in both:
        answers = streamed(server, *requests, answers=3 + 1 + 2 + 4)
        found.append({name: [each for each in answers if each[0] == name] for name in "0123"})
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("words", "answers"),
    [("one two", 3), ("one last", 2), ("last", 1), ("one fails", 3), ("fails", 2)],
)
def test_final_flags_and_errors_of_a_stream(both: Both, words: str, answers: int) -> None:
    request = says(words, request_id="it", enable_empty_final_response=True)
    fails = "fails" in words
    counts = (answers - fails, answers)
    ours, theirs = (streamed(each, request, answers=count) for each, count in zip(both, counts, strict=True))
    if fails:  # an error ends the request here, and Triton sends a final answer after it
        assert theirs.pop() == ("it", {}, True)
    assert ours == theirs


def test_models_of_one_answer_in_a_stream(both: Both) -> None:
    requests = [
        ("errors", {"inputs": [number_input("IN", 1, value=value)], "request_id": f"{value}"}) for value in (7, 1, 8)
    ]
    ours, theirs = (sorted(streamed(each, *requests, answers=3), key=str) for each in both)
    assert ours == theirs


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        ("nothing", [number_input("IN", 1, value=1)]),
        ("repeat", []),
        ("repeat", [number_input("OTHER", 1, value=1)]),
        ("repeat", [number_input("IN", 2, value=1)]),
    ],
)
def test_a_mistake_in_a_stream_leaves_it_open(both: Both, model: str, inputs: list[Any]) -> None:
    requests = ((model, {"inputs": inputs}), repeat(1, request_id="next"))
    ours, theirs = (streamed(each, *requests, answers=2) for each in both)
    assert say_the_same(ours[0], theirs[0])
    assert ours[1] == theirs[1]


# --- ensembles --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", ["one", "one three four", "one last", ""])
def test_an_ensemble_whose_first_step_streams(both: Both, words: str) -> None:
    request = says(words, "says_upper", request_id="it", enable_empty_final_response=True)
    found = []
    for server in both:
        answers = streamed(server, request, until=lambda came: came[-1][-1])
        assert [last for *_, last in answers[:-1]] == [False] * (len(answers) - 1)
        # In any order in Triton; the last one is known as such if nothing is computed any more.
        found.append(sorted(str(outputs) for _, outputs, _ in answers if outputs))
    assert found[0] == found[1]
    assert len(found[0]) == len(words.split())


def test_an_error_of_an_ensemble_names_its_step(both: Both) -> None:
    request = says("one two four", "says_upper", request_id="it")
    ours = streamed(both[0], request, answers=2)
    assert ours[0] == ("it", {"UPPER": [b"ONE"]}, False)
    assert ours[1] == "in ensemble 'says_upper', step 1 of model 'upper': not two"
    theirs = streamed(both[1], says("two", "says_upper"), answers=1)
    assert theirs == ["in ensemble 'says_upper', not two"]


# --- events -----------------------------------------------------------------------------------------------------------


def events(server: Served, path: str, body: Any) -> tuple[int, str, list[Any]]:
    answer = server.ask("POST", f"/v2/models/{path}", json=body)
    kind = answer.headers["content-type"]
    if kind != "text/event-stream; charset=utf-8":
        return answer.status_code, kind, [answer.json()]
    lines = [line for line in answer.text.split("\n\n") if line]
    found = [json.loads(line.removeprefix("data: ")) for line in lines]
    for each in found:  # Triton's ensembles say that there is no sequence
        for name in ("sequence_id", "sequence_start", "sequence_end"):
            each.pop(name, None)
    return answer.status_code, kind, sorted(found, key=str) if path.startswith("says_upper") else found


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("repeat/generate_stream", {"IN": 3}),
        ("repeat/generate_stream", {"IN": 0}),
        ("errors/generate_stream", {"IN": 7}),
        ("says/generate_stream", {"WORDS": "one two three", "id": "it"}),
        ("says/generate_stream", {"WORDS": "one last three"}),
        ("says/generate_stream", {"WORDS": "one fails"}),
        ("says/generate_stream", {}),
        ("says_upper/generate_stream", {"WORDS": "one three"}),
        ("nothing/generate_stream", {"WORDS": "one three"}),
    ],
)
def test_events_are_equal(both: Both, path: str, body: Any) -> None:
    ours, theirs = (events(each, path, body) for each in both)
    if theirs[0] != 200:
        assert say_the_same(ours[2][0]["error"], theirs[2][0]["error"])
        assert (ours[0], ours[1]) == (theirs[0], "application/json")
    else:
        assert ours == theirs
