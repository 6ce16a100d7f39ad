"""What a server offers: names, and the models behind them."""

from octavo.deployments.defaults import GenerationDefaults
from octavo.deployments.deployment import Deployment

__all__ = ["Deployment", "GenerationDefaults"]
