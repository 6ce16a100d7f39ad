"""What would come of a repository's models, found out without starting anything."""

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from octavo.errors import ConfigError
from octavo.hosting.config import ENSEMBLE
from octavo.hosting.runtimes import RUNTIMES
from octavo.hosting.triton import Config
from octavo.hosting.triton.backends import PYTHON, backend_named, complete_backend, model_file
from octavo.hosting.triton.checks import troubles
from octavo.hosting.triton.labels import read_labels
from octavo.hosting.triton.layout import WARMUP_FOLDER, ModelFolder, chosen_versions, models_of
from octavo.hosting.triton.planning import written_config

LIBRARIES = {
    "onnx": "onnxruntime",
    "torch": "torch",
    "tensorflow": "tensorflow",
    "openvino": "openvino",
    "tensorrt": "tensorrt",
}
"""What the runtimes of repositories import."""

MODEL_CLASS = "TritonPythonModel"

KIND_GPU = 1
"""`ModelInstanceGroup.Kind`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelReport:
    """A model.

    Attributes:
        versions: that would be served. computed_by: a backend, or "ensemble"; empty if nobody knows.
        troubles: why it would not work; none if it would, as far as can be seen.
        notes: what of its configuration has no effect, and what only starting it would tell.
    """

    name: str
    versions: tuple[int, ...] = ()
    computed_by: str = ""
    troubles: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def report_of(repositories: Sequence[Path], *, config_name: str = "", completes: bool = True) -> list[ModelReport]:
    """Look at all models. Raises ConfigError: a repository cannot be read."""
    folders, twice = models_of(repositories)
    found = {
        name: _look(folder, folders, config_name=config_name, completes=completes) for name, folder in folders.items()
    }
    for name in twice:
        found[name] = ModelReport(name=name, troubles=("it is in two repositories",))
    return [found[name] for name in sorted(found)]


def _look(folder: ModelFolder, folders: Mapping[str, ModelFolder], *, config_name: str, completes: bool) -> ModelReport:
    try:
        config = written_config(folder, config_name, completes=completes)
        complete_backend(config, folder)
    except ConfigError as error:
        return ModelReport(name=folder.name, troubles=(str(error),))
    wrong = list(troubles(config))
    versions: list[int] = []
    try:
        versions = chosen_versions(folder, config)
    except ConfigError as error:
        wrong.append(str(error))
    for number in versions:
        wrong += _version_troubles(config, folder.version(number))
    wrong += _other_troubles(config, folder, folders)
    return ModelReport(
        name=folder.name,
        versions=tuple(versions),
        computed_by=config.backend or config.platform,
        troubles=tuple(dict.fromkeys(wrong)),
        notes=tuple(_notes(config)),
    )


def _version_troubles(config: Config, version: Path) -> Iterator[str]:
    if config.platform == ENSEMBLE:
        return
    try:
        file = model_file(config, version)
    except ConfigError as error:
        yield str(error)
        return
    if config.backend != PYTHON:
        return
    try:
        tree = ast.parse(file.read_bytes(), str(file))
    except (SyntaxError, ValueError, OSError) as error:
        where = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        yield f"{file} is no Python that can be read: {error.args[0]}{where}"
        return
    # A module may import it, or make it: only where the file does neither it is surely missing.
    names = {name for node in ast.walk(tree) for name in _names_of(node)}
    if MODEL_CLASS not in names and "*" not in names:
        yield f"{file} has no class {MODEL_CLASS}"


def _names_of(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Name):
        yield node.id
    elif isinstance(node, ast.ImportFrom | ast.Import):
        yield from (each.asname or each.name for each in node.names)


def _other_troubles(config: Config, folder: ModelFolder, folders: Mapping[str, ModelFolder]) -> Iterator[str]:
    if config.platform == ENSEMBLE:
        for step in config.ensemble_scheduling.step:
            if step.model_name not in folders:
                yield f"its step '{step.model_name}' is no model of the repository"
    elif (library := LIBRARIES.get(backend_named(config.backend).runtime)) and find_spec(library) is None:
        extra = RUNTIMES[backend_named(config.backend).runtime].extra
        yield f"{library} is not installed: pip install 'octavo[{extra}]'"
    samples = [each for warmup in config.model_warmup for each in warmup.inputs.values() if each.input_data_file]
    for output in config.output:
        try:
            read_labels(output.name, output.label_filename, folder.path)
        except ConfigError as error:
            yield str(error)
    for each in samples:
        if not (file := folder.path / WARMUP_FOLDER / each.input_data_file).is_file():
            yield f"there is no file {file} (input_data_file)"


def _notes(config: Config) -> Iterator[str]:
    if config.platform != ENSEMBLE and not (config.input and config.output):
        yield "inputs and outputs are taken from the model when it is loaded"
    optimization = config.optimization
    for field, value in optimization.ListFields():
        if field.name != "execution_accelerators" and value != type(value)():
            yield f"optimization.{field.name} has no effect: it changes no answer"
    if any(group.rate_limiter.resources for group in config.instance_group):
        yield "rate_limiter needs --rate-limit execution_count, and has no effect without it, as in Triton"
    if config.response_cache.enable:
        yield "response_cache needs --cache-config local,size=BYTES, and has no effect without it, as in Triton"
    if any(group.kind == KIND_GPU for group in config.instance_group):
        yield "instance_group needs a GPU"
