"""What a server offers: names, and the models behind them.

Imported when first asked for: what only reads settings needs neither tokenizers nor engines.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from octavo.deployments.defaults import GenerationDefaults
    from octavo.deployments.deployment import Deployment
    from octavo.deployments.hosted import HostedDeployment
    from octavo.deployments.registry import AnyDeployment, Deployments

_HOMES = {
    "AnyDeployment": "registry",
    "Deployment": "deployment",
    "Deployments": "registry",
    "GenerationDefaults": "defaults",
    "HostedDeployment": "hosted",
}

__all__ = ["AnyDeployment", "Deployment", "Deployments", "GenerationDefaults", "HostedDeployment"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
