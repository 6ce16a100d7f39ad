"""What a server offers: names, and the models behind them.

Imported when first asked for: what only reads settings needs neither tokenizers nor engines.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from octavo.deployments.defaults import GenerationDefaults
    from octavo.deployments.deployment import Deployment
    from octavo.deployments.registry import Deployments

_HOMES = {"Deployment": "deployment", "Deployments": "registry", "GenerationDefaults": "defaults"}

__all__ = ["Deployment", "Deployments", "GenerationDefaults"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
