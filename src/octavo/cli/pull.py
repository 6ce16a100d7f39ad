"""`octavo pull`: fetch a model ahead of time, or list those with a short name."""

from pathlib import Path

from octavo.cli.console import fetch, output
from octavo.weights.catalogue import catalogue
from octavo.weights.checkpoint import open_checkpoint
from octavo.weights.hub import resolve


def pull_model(name: str) -> None:
    """Fetch a model, check that it opens, and print where it is."""
    path = fetch(name)
    open_checkpoint(path)
    output.print(f"{name} is at {path}", soft_wrap=True)


def list_models() -> None:
    """Print the catalogue, and which of its models are on this machine."""
    rows = [("name", "model", "here")]
    rows += [(entry.name, entry.description, "yes" if _is_here(entry.name) else "") for entry in catalogue()]
    name, model = (max(len(row[column]) for row in rows) for column in (0, 1))
    for row in rows:
        output.print(f"{row[0]:{name}}  {row[1]:{model}}  {row[2]}".rstrip(), markup=False, soft_wrap=True)


def _is_here(name: str) -> Path | None:
    from octavo.errors import ModelNotFoundError

    try:
        return resolve(name, download=False)
    except ModelNotFoundError:
        return None
