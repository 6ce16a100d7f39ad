"""Finding somebody's own code: "app.py:Sentiment" or "package.module:Sentiment"."""

import contextlib
import importlib
import importlib.util
import logging
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from octavo.errors import ConfigError
from octavo.hosting.code_names import SUFFIX
from octavo.hosting.options import OPTIONS

log = logging.getLogger(__name__)


def find_code(model: str, search_path: Sequence[str] = ()) -> Callable[..., Any]:
    """The function or class of that name; the one model of a module if none is named.

    Args:
        search_path: where modules are looked for beside the usual places.

    Raises:
        ConfigError: there is none, or its module cannot be imported.
    """
    place, _, name = model.partition(":")
    sys.path.extend(each for each in search_path if each not in sys.path)
    module = _import_file(Path(place)) if place.endswith(SUFFIX) else _import(place)
    if not name:
        found = {key: value for key, value in vars(module).items() if hasattr(value, OPTIONS)}
        if len(found) != 1:
            listed = (
                f"{len(found)} models: {', '.join(found)}" if found else "no model (@octavo.model, @octavo.ensemble)"
            )
            raise ConfigError(f"{place} has {listed}; name one, as {place}:NAME")
        [target] = found.values()
    else:
        target = module
        for part in name.split("."):
            target = getattr(target, part, None)
            if target is None:
                there = ", ".join(key for key, value in vars(module).items() if hasattr(value, OPTIONS))
                raise ConfigError(f"{place} has no {name}" + (f"; there are: {there}" if there else ""))
    if not callable(target):
        raise ConfigError(f"{model} is a {type(target).__name__}, no function and no class")
    return target  # type: ignore[no-any-return]


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ConfigError(f"there is no file {path}")
    sys.path.insert(0, str(path.parent.resolve()))
    forget_doubtful_bytecode(path.parent)
    name = path.stem if path.stem.isidentifier() and path.stem not in sys.modules else f"octavo_own_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # pydantic and pickles look types up there
    _run(str(path), lambda: spec.loader.exec_module(module))  # type: ignore[union-attr]
    return module


def forget_doubtful_bytecode(folder: Path) -> None:
    """Have files of Python code compiled anew that were compiled within the second of their last change.

    Python takes compiled code for that of a file if its size and the second of its change are the same: of a file that
    was changed twice within a second it would run what is no longer there.
    """
    for source in folder.glob(f"*{SUFFIX}"):
        with contextlib.suppress(OSError):  # there is none, or it is not ours: nobody writes it here either
            compiled = Path(importlib.util.cache_from_source(str(source)))
            if int(compiled.stat().st_mtime) <= int(source.stat().st_mtime):
                compiled.unlink()


def _import(name: str) -> ModuleType:
    sys.path.insert(0, "")
    found: list[ModuleType] = []
    _run(name, lambda: found.append(importlib.import_module(name)))
    return found[0]


def _run(what: str, work: Callable[[], object]) -> None:
    try:
        work()
    except ConfigError as error:
        raise ConfigError(f"{error}{_where(error)}") from error
    except (Exception, SystemExit) as error:
        raise refusal(f"{what} cannot be imported", error) from error


def refusal(what: str, error: BaseException) -> ConfigError:
    """What somebody's code did, in one line; the log has the rest."""
    log.error("%s", what, exc_info=error)
    if isinstance(error, SystemExit):
        return ConfigError(f"{what}: it called sys.exit({error.code!r})")
    where = "" if isinstance(error, SyntaxError) else _where(error)  # which says it itself
    return ConfigError(f"{what}: {type(error).__name__}: {' '.join(str(error).split())[:500]}{where}")


def _where(error: BaseException) -> str:
    """Where somebody's code was when this happened, if it was anywhere."""
    own = Path(__file__).parent.parent
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith("<") and own not in Path(frame.filename).parents:
            return f" ({Path(frame.filename).name}, line {frame.lineno})"
    return ""


def sources_of(target: Callable[..., Any]) -> dict[str, float]:
    """The files that somebody's own code has been loaded from, its own and those of modules from the same folder, each
    with when it was written last."""
    own = getattr(sys.modules.get(target.__module__), "__file__", None)
    if own is None:
        return {}
    folder = Path(own).resolve().parent
    found = {Path(own).resolve()}
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if file and (path := Path(file).resolve()).is_relative_to(folder) and "site-packages" not in path.parts:
            found.add(path)
    return {str(path): path.stat().st_mtime for path in sorted(found) if path.exists()}


def place_of(target: Callable[..., Any]) -> str:
    """How another process finds a function or class. Raises ConfigError: it cannot."""
    name, module = getattr(target, "__qualname__", ""), getattr(target, "__module__", "")
    if "<" in name or not name:
        raise ConfigError(f"{name or target!r} is inside of a function, where no other process finds it")
    if module != "__main__":
        return f"{module}:{name}"
    file = getattr(sys.modules[module], "__file__", None)
    if file is None:
        raise ConfigError(f"{name} is in no file, so that no other process finds it; write it into a module")
    return f"{Path(file).resolve()}:{name}"
