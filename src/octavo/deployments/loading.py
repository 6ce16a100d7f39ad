"""From a deployment's settings to one that answers."""

import contextlib
import time
from pathlib import Path

from octavo.deployments.defaults import GenerationDefaults
from octavo.deployments.deployment import Deployment
from octavo.deployments.prepare import encode
from octavo.deployments.request import Conversation
from octavo.deployments.settings import DeploymentSettings
from octavo.engine.client import EngineClient
from octavo.errors import InvalidRequest
from octavo.models import read_sizes
from octavo.text import TooManyTokens, load_tokenizer
from octavo.text.answer import AnswerFormat
from octavo.weights.catalogue import recommended_sampling
from octavo.weights.checkpoint import open_checkpoint


def open_deployment(settings: DeploymentSettings, engine: EngineClient) -> Deployment:
    """Read the tokenizer and what else text needs. Takes up to a second: not on the event loop.

    Raises:
        OctavoError: the model's files cannot be read.
    """
    checkpoint = open_checkpoint(Path(settings.engine.model))
    sizes = read_sizes(checkpoint.config, str(checkpoint.config_file))
    tokenizer = load_tokenizer(checkpoint, sizes.vocab_size)
    deployment = Deployment(
        name=settings.name,
        aliases=settings.names[1:],
        root=settings.model,
        tokenizer=tokenizer,
        engine=engine,
        max_model_len=settings.engine.max_model_len or sizes.max_position_embeddings,
        created=int(time.time()),
        allow_special_tokens_in_messages=settings.allow_special_tokens_in_messages,
        trust_request_chat_template=settings.trust_request_chat_template,
        answers=AnswerFormat.of(
            None if tokenizer.chat_template is None else tokenizer.chat_template.source,
            str(checkpoint.config.get("model_type", "")),
            settings.tool_call_parser,
            settings.reasoning_parser,
        ),
        defaults=GenerationDefaults.from_config(checkpoint.generation_config, recommended_sampling(settings.model)),
    )
    _warm(deployment)
    return deployment


def _warm(deployment: Deployment) -> None:
    """Have a conversation written and tokenised: what is compiled at first use is then there before anybody waits."""
    with contextlib.suppress(InvalidRequest, TooManyTokens):  # said to who asks for a conversation
        list(encode(deployment, Conversation(messages=[{"role": "user", "content": "Hi"}]), deployment.max_model_len))
