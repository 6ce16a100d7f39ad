"""The sampling parameters of requests that leave them open."""

import logging
import math
from pathlib import Path

import pytest

from octavo.deployments import GenerationDefaults
from octavo.deployments.loading import open_deployment
from octavo.deployments.settings import DeploymentSettings
from octavo.engine.client import EngineClient
from octavo.engine.config import EngineConfig
from octavo.weights.catalogue import catalogue, recommended_sampling

RECOMMENDED = {"temperature": 0.2, "top_p": 0.9}


def test_what_the_authors_recommend_holds_where_the_checkpoint_says_nothing() -> None:
    of_authors = GenerationDefaults.from_config({"eos_token_id": 2, "temperature": None}, RECOMMENDED)
    assert of_authors == GenerationDefaults(temperature=0.2, top_p=0.9)
    of_checkpoint = GenerationDefaults.from_config({"top_k": 40.0}, RECOMMENDED)
    assert of_checkpoint == GenerationDefaults(top_k=40)
    assert GenerationDefaults.from_config({}) == GenerationDefaults()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -1),
        ("temperature", math.nan),
        ("temperature", True),
        ("temperature", 10**400),
        ("top_p", 0),
        ("top_p", 1.5),
        ("top_k", -2),
        ("top_k", 1.5),
        ("top_k", math.inf),
        ("min_p", 2),
        ("repetition_penalty", 0),
        ("repetition_penalty", "x"),
        ("repetition_penalty", [1]),
    ],
)
def test_what_no_request_could_ask_for_is_no_default(
    name: str, value: object, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert GenerationDefaults.from_config({name: value}, RECOMMENDED) == GenerationDefaults()
    [message] = caplog.messages
    assert message.startswith(f"generation_config.json: {name} is ")
    assert "must be" in message


def test_the_catalogue_carries_what_can_be_used(caplog: pytest.LogCaptureFixture) -> None:
    assert recommended_sampling("smollm2:135m") == RECOMMENDED
    assert recommended_sampling("HuggingFaceTB/SmolLM2-1.7B-Instruct") == RECOMMENDED
    assert recommended_sampling("Qwen/Qwen3-0.6B")["top_k"] == 20
    assert recommended_sampling("gpt2") == recommended_sampling("someone/else") == {}
    for entry in catalogue():
        defaults = GenerationDefaults.from_config({}, entry.sampling)
        assert {name: getattr(defaults, name) for name in entry.sampling} == entry.sampling
    assert caplog.messages == []


def test_a_deployment_of_a_model_of_the_catalogue_recommends_it(tiny_model: Path) -> None:
    def defaults(model: str) -> GenerationDefaults:
        settings = DeploymentSettings(name="it", model=model, engine=EngineConfig(model=str(tiny_model)))
        return open_deployment(settings, EngineClient()).defaults

    assert defaults("smollm2:135m") == GenerationDefaults(temperature=0.2, top_p=0.9)
    assert defaults(str(tiny_model)) == GenerationDefaults()
