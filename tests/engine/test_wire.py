"""What engines and frontends send each other."""

import gc
from array import array

from octavo.engine.request import Output, PromptLogprobs, TokenLogprobs
from octavo.engine.wire import StepDone, decode_for_frontend, encode


def test_a_scored_prompt_is_read_without_an_object_for_every_token() -> None:
    """A frontend reads a message in one piece, and garbage collections go through whatever it has become."""
    count, top = 10_000, 3
    scored = PromptLogprobs(
        array("f", range(count)), array("i", range(count * top)), array("f", range(count * top, 0, -1))
    )
    data = memoryview(encode(StepDone([Output(request_id="a", token_ids=[7], prompt_logprobs=scored)])))
    gc.collect()
    gc.disable()
    try:
        before = len(gc.get_objects())
        message = decode_for_frontend(data)
        assert len(gc.get_objects()) - before < 100
    finally:
        gc.enable()
    assert isinstance(message, StepDone)
    read = message.outputs[0].prompt_logprobs
    assert read is not None
    assert read == scored
    assert len(read) == count
    assert read[2] == read[2 - count] == TokenLogprobs(2.0, [6, 7, 8], [29994.0, 29993.0, 29992.0])
    assert read[1:3] == [read[1], read[2]] == list(read)[1:3]
