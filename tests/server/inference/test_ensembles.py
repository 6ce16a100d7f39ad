"""Ensembles over HTTP: a model like any other, also of language models."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from octavo.deployments import Deployments
from octavo.deployments.hosted import HostedDeployment
from octavo.deployments.step_models import OfferedModels
from octavo.hosting.datatypes import Datatype
from octavo.hosting.ensemble import Ensemble
from octavo.hosting.ensemble_client import EnsembleClient
from octavo.hosting.errors import Code, InferenceError
from octavo.server.settings import ServerSettings
from tests.hosting.ensembles import ensemble, model, specs, step
from tests.server.fake import MODEL, FakeEngine, make_tokenizer, running_all, served
from tests.server.inference.fake import FakeClient, fake

TEXT = specs("text", datatype=Datatype.BYTES, dims=(1,))
LABEL = specs("label", datatype=Datatype.BYTES, dims=(1,))

CHAIN = ensemble("chain", step("one", {"x": "x"}, {"y": "middle"}), step("ten", {"x": "middle"}, {"y": "y"}))
MANY = ensemble("many", step("repeat", {"x": "x"}, {"y": "middle"}), step("ten", {"x": "middle"}, {"y": "y"}))
ASK = ensemble(
    "ask",
    step("write", {"text": "question"}, {"prompt": "prompt"}),
    step(MODEL, {"text_input": "prompt", "exclude_input_in_output": "alone"}, {"text_output": "answer"}),
    step("classify", {"text": "answer"}, {"label": "label"}),
    inputs=(
        *specs("question", datatype=Datatype.BYTES, dims=(1,)),
        *specs("alone", datatype=Datatype.BOOL, optional=True),
    ),
    outputs=(*LABEL, *specs("answer", datatype=Datatype.BYTES, dims=(-1,))),
)
TELL = ensemble(
    "tell",
    step(
        MODEL,
        {"text_input": "prompt", "stream": "stream", "sampling_parameters": "how"},
        {"text_output": "piece", "num_output_tokens": "tokens"},
    ),
    inputs=(
        *specs("prompt", "how", datatype=Datatype.BYTES, dims=(1,)),
        *specs("stream", datatype=Datatype.BOOL, dims=(1,)),
    ),
    outputs=(*specs("piece", datatype=Datatype.BYTES), *specs("tokens", datatype=Datatype.UINT32)),
)


def _models() -> list[HostedDeployment]:
    def prompt(text: np.ndarray) -> dict[str, Any]:
        return {"prompt": np.array([b"tell: " + text[0]], object)}

    def classify(text: np.ndarray) -> dict[str, Any]:
        return {"label": np.array([b"long" if len(text[0]) > 8 else b"short"], object)}

    return [
        model("one", lambda x: {"y": x + 1}),
        model("ten", lambda x: {"y": x + 10}),
        model("repeat", lambda x: {"y": x}, results=3),
        model("write", prompt, TEXT, specs("prompt", datatype=Datatype.BYTES, dims=(1,))),
        model("classify", classify, specs("text", datatype=Datatype.BYTES), LABEL),
    ]


class Site:
    """A server with ensembles. Attributes: models: what they ask, by name."""

    def __init__(self, url: str, models: dict[str, FakeClient], engine: FakeEngine) -> None:
        self.web = httpx.Client(base_url=url, timeout=20)
        self.models, self.engine = models, engine

    def infer(self, name: str, **inputs: tuple[str, list[Any]]) -> httpx.Response:
        tensors = [
            {"name": each, "datatype": datatype, "shape": [len(data)], "data": data}
            for each, (datatype, data) in inputs.items()
        ]
        return self.web.post(f"/v2/models/{name}/infer", json={"inputs": tensors})

    def outputs(self, name: str, **inputs: tuple[str, list[Any]]) -> dict[str, Any]:
        answer = self.infer(name, **inputs)
        assert answer.status_code == 200, answer.text
        return {each["name"]: each["data"] for each in answer.json()["outputs"]}


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with tempfile.TemporaryDirectory() as folder:
        engine = FakeEngine(make_tokenizer(Path(folder)))
        models = _models()
        deployments = Deployments()

        def made(each: Ensemble) -> HostedDeployment:
            client = EnsembleClient(each, OfferedModels(deployments))
            return HostedDeployment(name=each.name, client=client, created=1)

        deployments.offer([served(engine), *models, *map(made, (CHAIN, MANY, ASK, TELL))])
        with running_all(ServerSettings(), deployments) as url:
            yield Site(url, {each.name: fake(each) for each in models}, engine)


def test_an_inference(site: Site) -> None:
    assert site.outputs("chain", x=("FP32", [1, 2])) == {"y": [12.0, 13.0]}


def test_what_is_said_of_it(site: Site) -> None:
    about = site.web.get("/v2/models/chain").json()
    assert about["platform"] == "ensemble"
    assert about["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1]}]
    config = site.web.get("/v2/models/chain/config").json()
    assert config["ensemble_scheduling"]["step"] == [
        {
            "model_name": name,
            "model_version": -1,
            "input_map": {"x": x},
            "output_map": {"y": y},
            "model_namespace": "",
        }
        for name, x, y in (("one", "x", "middle"), ("ten", "middle", "y"))
    ]
    assert not config.keys() & {"dynamic_batching", "optimization"}
    assert (config["platform"], config["backend"], config["instance_group"]) == ("ensemble", "", [])
    assert site.web.get("/v2/models/chain/ready").status_code == 200


def test_it_is_counted_and_so_are_its_models(site: Site) -> None:
    def counts(name: str) -> tuple[int, int]:
        [found] = site.web.get(f"/v2/models/{name}/stats").json()["model_stats"]
        return found["inference_count"], found["inference_stats"]["success"]["count"]

    before = [counts(name) for name in ("chain", "one", "ten")]
    site.outputs("chain", x=("FP32", [1]))
    after = [counts(name) for name in ("chain", "one", "ten")]
    assert after == [(count + 1, success + 1) for count, success in before]
    assert 'nv_inference_request_success{model="chain",version="1"}' in site.web.get("/metrics").text


def test_generate_and_its_stream(site: Site) -> None:
    answer = site.web.post("/v2/models/chain/generate", json={"x": 1.0})
    assert answer.json() == {"model_name": "chain", "model_version": "1", "y": 12.0}
    with site.web.stream("POST", "/v2/models/many/generate_stream", json={"x": 5.0}) as events:
        lines = [json.loads(line.removeprefix("data: ")) for line in events.iter_lines() if line]
    assert [each["y"] for each in lines] == [15.0] * 3


def test_one_with_many_results_has_no_single_one(site: Site) -> None:
    answer = site.infer("many", x=("FP32", [1]))
    assert answer.status_code == 501
    assert "decoupled" in answer.json()["error"]


def test_an_error_names_the_step(site: Site) -> None:
    site.models["ten"].error = InferenceError("it is tired", Code.INTERNAL)
    try:
        answer = site.infer("chain", x=("FP32", [1]))
    finally:
        site.models["ten"].error = None
    assert answer.status_code == 500
    assert answer.json() == {"error": "in ensemble 'chain', step 1 of model 'ten': it is tired"}


def test_a_language_model_is_a_step(site: Site) -> None:
    """Of what it is told it makes the answer, which begins with that unless it is wanted alone."""
    site.engine.reply = lambda prompt, _: f"<{prompt}>"
    site.engine.step_seconds = 0.0
    try:
        with_prompt = site.outputs("ask", question=("BYTES", ["hi"]))
        alone = site.outputs("ask", question=("BYTES", ["hi"]), alone=("BOOL", [True]))
    finally:
        site.engine.reset()
    assert with_prompt["answer"][0].startswith("tell: hi")
    assert with_prompt["answer"][0] == "tell: hi" + alone["answer"][0]
    assert alone["answer"][0].startswith("<tell")
    assert with_prompt["label"] == ["long"]


def test_its_text_in_pieces(site: Site) -> None:
    site.engine.reply = lambda prompt, _: "one two three four five six"
    body = {"prompt": "count", "stream": True, "how": json.dumps({"max_tokens": "4", "temperature": 0.0})}
    try:
        with site.web.stream("POST", "/v2/models/tell/generate_stream", json=body) as events:
            found = [json.loads(line.removeprefix("data: ")) for line in events.iter_lines() if line]
    finally:
        site.engine.reset()
    assert [each["tokens"] for each in found] == [1, 2, 3, 4]
    assert "one two three four five six".startswith("".join(each["piece"] for each in found))


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("[1]", "'sampling_parameters' is no JSON object"),
        ("{", "'sampling_parameters' is no JSON"),
        ('{"temperature": "hot"}', "'sampling_parameters' has 'temperature'"),
        ('{"max_tokens": 0}', "'sampling_parameters' has 'max_tokens'"),
    ],
)
def test_parameters_that_there_are_none_of(site: Site, how: str, words: str) -> None:
    body = {"prompt": "count", "stream": True, "how": how}
    answer = site.web.post("/v2/models/tell/generate_stream", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith(f"in ensemble 'tell', step 0 of model '{MODEL}': {words}")
    assert not site.engine.ledger
