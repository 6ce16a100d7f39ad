"""From a deployment's settings to one that answers."""

import time
from pathlib import Path

from octavo.deployments.defaults import GenerationDefaults
from octavo.deployments.deployment import Deployment
from octavo.deployments.settings import DeploymentSettings
from octavo.engine.client import EngineClient
from octavo.models import read_sizes
from octavo.text import load_tokenizer
from octavo.weights.catalogue import recommended_sampling
from octavo.weights.checkpoint import open_checkpoint


def open_deployment(settings: DeploymentSettings, engine: EngineClient) -> Deployment:
    """Read the tokenizer and what else text needs. Takes up to a second: not on the event loop.

    Raises:
        OctavoError: the model's files cannot be read.
    """
    checkpoint = open_checkpoint(Path(settings.engine.model))
    sizes = read_sizes(checkpoint.config, str(checkpoint.config_file))
    return Deployment(
        name=settings.name,
        aliases=settings.names[1:],
        root=settings.model,
        tokenizer=load_tokenizer(checkpoint, sizes.vocab_size),
        engine=engine,
        max_model_len=settings.engine.max_model_len or sizes.max_position_embeddings,
        created=int(time.time()),
        allow_special_tokens_in_messages=settings.allow_special_tokens_in_messages,
        defaults=GenerationDefaults.from_config(checkpoint.generation_config, recommended_sampling(settings.model)),
    )
