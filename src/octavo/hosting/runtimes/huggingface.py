"""Pipelines of Hugging Face's transformers, by a repository's id or a folder, and a task.

Tensors have the names that clients of MLServer's Hugging Face runtime use: "args", or those of a task's parameters, and
"output", of which each element is JSON.
"""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from octavo.errors import ConfigError
from octavo.hosting.datatypes import Datatype
from octavo.hosting.errors import InferenceError
from octavo.hosting.runtime import RuntimeOptions
from octavo.hosting.runtimes.files import library, line
from octavo.hosting.runtimes.strings import decoded
from octavo.hosting.runtimes.torch_module import device_of
from octavo.hosting.signature import ANY, TensorSpec

EXTRA = "transformers"
ARGS = "args"
OUTPUT = "output"

_TEXT = TensorSpec(name=ARGS, datatype=Datatype.BYTES, dims=())
_AUDIO = TensorSpec(name=ARGS, datatype=Datatype.FP32, dims=(ANY,))
_LABELS = TensorSpec(name="candidate_labels", datatype=Datatype.BYTES, dims=())

_IMAGE_TASKS = {
    "image-classification",
    "object-detection",
    "image-segmentation",
    "depth-estimation",
    "image-feature-extraction",
    "image-to-text",
    "zero-shot-image-classification",
}
_AUDIO_TASKS = {"audio-classification", "automatic-speech-recognition"}
_TEXT_TASKS = {
    "text-classification",
    "token-classification",
    "fill-mask",
    "feature-extraction",
    "text-generation",
    "text2text-generation",
    "summarization",
    "translation",
    "question-answering",
    "zero-shot-classification",
}


class TransformersRuntime:
    """A pipeline; see `Runtime`. Between its tensors' operations it is Python, which holds the GIL.

    Texts and images are BYTES, an image as a file of whatever format; audio is FP32 at the model's sampling rate.
    """

    platform = "transformers"
    batches = True
    concurrent = False

    def __init__(self, path: Path, options: RuntimeOptions) -> None:
        torch = library("torch", path, EXTRA)
        transformers = library("transformers", path, EXTRA)
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        if options.threads:
            torch.set_num_threads(options.threads)
        try:
            self._pipeline = transformers.pipeline(
                options.task or None, model=str(path), device=device_of(torch, options), trust_remote_code=False
            )
        except ConfigError:
            raise
        except Exception as error:  # what it raises for what is missing or does not fit
            raise ConfigError(f"{path} is no pipeline that transformers can load: {line(error)}") from error
        # A language is part of a translation's task.
        self._task = self._pipeline.task.partition("_")[0]
        self.inputs = _inputs(path, self._task)
        self.outputs = (TensorSpec(name=OUTPUT, datatype=Datatype.BYTES, dims=(), value="json"),)
        self._image: Callable[[Any], Any] | None = None
        if self._task in _IMAGE_TASKS:
            self._image = library("PIL.Image", path, EXTRA).open
        tokenizer = getattr(self._pipeline, "tokenizer", None)
        self._pads = tokenizer is None or tokenizer.pad_token_id is not None

    def execute(self, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        columns = {name: self._column(name, array) for name, array in inputs.items()}
        results = self._together(columns[ARGS]) if list(columns) == [ARGS] else self._one_by_one(columns)
        answers = np.empty(len(results), object)
        answers[:] = [orjson.dumps(each, _written, orjson.OPT_SERIALIZE_NUMPY) for each in results]
        return {OUTPUT: answers}

    def _together(self, items: list[Any]) -> list[Any]:
        # Of a list with one item some pipelines give its result, others a list with that; of a generator none does.
        return list(self._pipeline((each for each in items), batch_size=len(items) if self._pads else 1))

    def _one_by_one(self, columns: dict[str, list[Any]]) -> list[Any]:
        """Requests with arguments of their own, of which a pipeline takes one set in a call."""
        first = columns.pop(ARGS, None)
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        if first is None:
            return [self._pipeline(**row) for row in rows]
        return [self._pipeline(each, **row) for each, row in zip(first, rows, strict=True)]

    def _column(self, name: str, array: NDArray[Any]) -> list[Any]:
        if array.dtype != object:
            return list(array)
        if name == ARGS and self._image is not None:
            return [self._opened(data) for data in array.ravel()]
        texts = list(decoded(name, array).ravel())
        return [_labels(each) for each in texts] if name == _LABELS.name else texts

    def _opened(self, data: bytes) -> Any:
        assert self._image is not None
        try:
            return self._image(io.BytesIO(data)).convert("RGB")
        except Exception as error:  # whatever a decoder of images raises for what is none
            raise InferenceError(f"input '{ARGS}' has an image that cannot be read: {line(error)}") from error


def _inputs(path: Path, task: str) -> tuple[TensorSpec, ...]:
    if task == "question-answering":
        return tuple(TensorSpec(name=each, datatype=Datatype.BYTES, dims=()) for each in ("question", "context"))
    if task in _AUDIO_TASKS:
        return (_AUDIO,)
    if task in _TEXT_TASKS | _IMAGE_TASKS:
        return (_TEXT, _LABELS) if task.startswith("zero-shot") else (_TEXT,)
    known = ", ".join(sorted(_TEXT_TASKS | _IMAGE_TASKS | _AUDIO_TASKS))
    raise ConfigError(
        f"{path} is a pipeline for {task}, whose inputs are not known here; --task is one of {known}", "task"
    )


def _labels(text: str) -> list[str]:
    """Labels as a JSON list, or with commas between them."""
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError:
        found = [each.strip() for each in text.split(",")]
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise InferenceError(f"input '{_LABELS.name}' is no list of labels, as JSON or with commas between them")
    return found


def _written(value: Any) -> Any:
    """What JSON has no values for: images are PNG files in base64, tensors lists."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if hasattr(value, "save"):
        file = io.BytesIO()
        value.save(file, "PNG")
        return base64.b64encode(file.getvalue()).decode()
    return str(value)
