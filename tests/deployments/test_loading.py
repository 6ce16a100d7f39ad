"""Deployments as they are opened from a model's files."""

from pathlib import Path

from octavo.deployments.loading import open_deployment
from octavo.deployments.settings import DeploymentSettings
from octavo.engine.client import EngineClient
from octavo.engine.config import EngineConfig
from octavo.text.bounds import WORK_LIMIT


def test_the_first_conversation_does_not_wait_for_its_template(tiny_model: Path) -> None:
    settings = DeploymentSettings(name="tiny", model="tiny", engine=EngineConfig(model=str(tiny_model)))
    template = open_deployment(settings, EngineClient()).tokenizer.chat_template
    assert template is not None
    # With less work than there is at most a template that is not compiled yet is refused.
    assert template.render([{"role": "user", "content": "hi"}], WORK_LIMIT - 1)
