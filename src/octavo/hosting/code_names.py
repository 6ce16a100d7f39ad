"""What models of somebody's own are called, found out without running their code: it may take long, or break."""

import ast
from pathlib import Path

from octavo.errors import ConfigError

SUFFIX = ".py"

DECORATORS = ("model", "ensemble")


def names_code(model: str) -> bool:
    """Whether a model is named as code is: "app.py:Sentiment", or "app.py"."""
    return model.partition(":")[0].endswith(SUFFIX)


def models_in(model: str) -> dict[str, str]:
    """The models that are named so, each as "app.py:Sentiment", with the name that requests use.

    Raises:
        ConfigError: the file cannot be read, is no Python, or has none.
    """
    place, _, wanted = model.partition(":")
    decorated = _decorated(Path(place)) if place.endswith(SUFFIX) else {}
    if wanted:
        return {model: decorated.get(wanted) or wanted.rpartition(".")[2].lower()}
    if not decorated:
        raise ConfigError(
            f"{place} has no model: no class or function with @octavo.model or @octavo.ensemble; name one, as "
            f"{place}:NAME"
        )
    return {f"{place}:{name}": called for name, called in decorated.items()}


def _decorated(path: Path) -> dict[str, str]:
    """The models of a file, by what they are called there."""
    try:
        tree = ast.parse(path.read_bytes(), str(path))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except (SyntaxError, ValueError) as error:
        where = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise ConfigError(f"{path} is no Python that can be read: {error.args[0]}{where}") from None
    found = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            for decorator in node.decorator_list:
                call = decorator if isinstance(decorator, ast.Call) else None
                if _last_name(call.func if call else decorator) in DECORATORS:
                    if node.name in found:
                        raise ConfigError(f"{path} has two models that are called {node.name} (line {node.lineno})")
                    found[node.name] = _given_name(call) or node.name.lower()
    return found


def _last_name(node: ast.expr) -> str:
    """Of `octavo.model` and `model`: model."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _given_name(call: ast.Call | None) -> str:
    for keyword in call.keywords if call else ():
        if keyword.arg == "name" and isinstance(keyword.value, ast.Constant) and isinstance(keyword.value.value, str):
            return keyword.value.value
    return ""
