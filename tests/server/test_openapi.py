"""Whatever fits the documented schema, and whatever does not, is answered without a server error."""

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given
from schemathesis.generation import GenerationMode

from tests.properties import examples
from tests.server.fake import FakeEngine

MODES = [GenerationMode.POSITIVE, GenerationMode.NEGATIVE]


@pytest.mark.hypothesis
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
def test_no_input_is_a_server_error(url: str, engine: FakeEngine, mode: GenerationMode) -> None:
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations()]
    # Those of the Open Inference Protocol have tests of their own.
    operations = [each for each in operations if not each.path.startswith("/v2") and "predict" not in each.path]
    assert len(operations) == 20
    if mode is GenerationMode.NEGATIVE:  # routes without parameters cannot be asked wrongly
        operations = [operation for operation in operations if operation.method == "post" and "{" not in operation.path]

    for operation in operations:

        @given(case=operation.as_strategy(generation_mode=mode))
        @examples(4, suppress_health_check=list(HealthCheck))
        def answers(case: schemathesis.Case) -> None:
            response = case.call(timeout=20)
            assert response.status_code < 500
            assert response.headers["x-request-id"]
            if response.status_code >= 400:
                if case.path.startswith("/v1/messages"):
                    assert set(response.json()) == {"type", "error", "request_id"}
                elif case.path == "/generate":
                    assert set(response.json()) == {"detail"}
                else:
                    assert set(response.json()["error"]) == {"message", "type", "param", "code"}

        answers()


def test_the_description(http: httpx.Client) -> None:
    description = http.get("/openapi.json").json()
    assert description["info"]["title"] == "Octavo"
    chat = description["components"]["schemas"]["ChatCompletionRequest"]
    assert chat["required"] == ["messages"]
    assert {"temperature", "top_k", "stream_options", "guided_json"} <= chat["properties"].keys()
    operation = description["paths"]["/v1/chat/completions"]["post"]
    assert operation["summary"] == "Chat completions"
    responses = operation["responses"]
    assert {"200", "400", "401", "404", "429", "503"} <= responses.keys()
    assert "422" not in responses  # the framework's own, which is never sent
