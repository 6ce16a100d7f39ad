"""Bodies of HTTP requests as the parameters of somebody's code: JSON objects, forms with files, or the file itself."""

import base64
import binascii
import functools
import inspect
import operator
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any
from urllib.parse import parse_qsl

import numpy as np
import orjson
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PydanticInvalidForJsonSchema,
    PydanticUserError,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
    create_model,
)
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from octavo.errors import ConfigError
from octavo.hosting.datatypes import Datatype
from octavo.hosting.errors import InferenceError
from octavo.hosting.own import Parameter
from octavo.hosting.values import UNIONS, described, dtype_of, fields_of, is_array, is_image, open_image, without_extras

MAX_FORM_FIELDS = 1000

_CONFIG = ConfigDict(arbitrary_types_allowed=True)

_REFERENCE = "#/$defs/{model}"


class Bodies:
    """What the bodies of a model's requests are.

    Attributes:
        schema: of one as JSON. result: of what answers it. definitions: that both refer to.
        files: the fields that are files or bytes.

    Raises:
        ConfigError: a parameter whose values have no JSON.
    """

    def __init__(self, name: str, parameters: Sequence[Parameter], result: Any) -> None:
        self._parameters = {each.name: each for each in parameters}
        self.files = tuple(each.name for each in parameters if _is_file(each.type))
        fields: dict[str, Any] = {}
        for each in parameters:
            default = ... if each.required else each.default
            # A name of its own inside, for pydantic reserves some; the parameter's outside.
            fields[f"field_{each.name}"] = (_readable(each.type), Field(default, alias=each.name))
        try:
            self._model = create_model(name, __config__=ConfigDict(extra="forbid", **_CONFIG), **fields)
            self.schema = self._model.model_json_schema(ref_template=_REFERENCE)
        except Exception as error:  # pydantic's errors of types have no class in common
            raise ConfigError(
                f"the parameters of {name} cannot be read from JSON: {str(error).splitlines()[0]}"
            ) from None
        self.definitions: dict[str, Any] = self.schema.pop("$defs", {})
        self.result = _result_schema(result)
        self.definitions |= self.result.pop("$defs", {})

    def read(self, media_type: str, body: bytes) -> dict[str, Any]:
        """The values of a body by the parameters' names; those that are left out are missing.

        Raises:
            InferenceError: it is not what the model takes; the field is named.
        """
        kind, options = parse_options_header(media_type)
        match kind.decode("latin-1").lower():
            case "" | "application/json":
                return self._validated(lambda: self._model.model_validate_json(body))
            case "multipart/form-data":
                fields = _multipart(body, options.get(b"boundary", b""))
            case "application/x-www-form-urlencoded" if body.lstrip().startswith(b"{"):  # what curl says of any body
                return self._validated(lambda: self._model.model_validate_json(body))
            case "application/x-www-form-urlencoded" if self.files and len(self._parameters) == 1 and b"=" not in body:
                fields = self._alone("", body)
            case "application/x-www-form-urlencoded":
                fields = _querystring(body)
            case other if other.endswith("+json"):
                return self._validated(lambda: self._model.model_validate_json(body))
            case other:
                fields = self._alone(other, body)
        return self._validated(lambda: self._model.model_validate(self._from_form(fields)))

    def _validated(self, validate: Any) -> dict[str, Any]:
        try:
            found = validate()
        except ValidationError as error:
            raise self._refusal(error) from None
        return {
            name: getattr(found, f"field_{name}")
            for name in self._parameters
            if f"field_{name}" in found.model_fields_set
        }

    def _refusal(self, error: ValidationError) -> InferenceError:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = first["loc"]
        field = "".join(f"[{each}]" if isinstance(each, int) else f".{each}" for each in place).lstrip(".")
        if first["type"] == "json_invalid":
            return InferenceError(f"The request body is not valid JSON: {first['msg'].removeprefix('Invalid JSON: ')}.")
        names = ", ".join(self._parameters)
        if first["type"] in ("model_type", "model_attributes_type"):
            return InferenceError(f"The request body must be an object with the fields: {names}.")
        if first["type"] == "extra_forbidden" and len(place) == 1:
            return InferenceError(f"Unknown field '{field}'; there are: {names}.", field=field)
        if first["type"] == "missing":
            unknown = [str(each["loc"][0]) for each in error.errors() if each["type"] == "extra_forbidden"]
            instead = (
                f"; the body has '{unknown[0][:100]}', which is none of: {names}" if unknown and len(place) == 1 else ""
            )
            return InferenceError(f"The field '{field}' is missing{instead}.", field=field)
        said = described(error)
        return InferenceError(f"Invalid '{field}': {said.partition(': ')[2] or said}.", field=field)

    def _alone(self, media_type: str, body: bytes) -> dict[str, list[bytes]]:
        """A body that is the model's one file, or its one text."""
        if len(self._parameters) == 1:
            [parameter] = self._parameters.values()
            if self.files or (media_type.startswith("text/") and _is_text(parameter.type)):
                return {parameter.name: [body]}
        takes = "JSON or a form" if not self.files or len(self._parameters) > 1 else "JSON, a form or the file itself"
        raise InferenceError(f"Content-Type {media_type or 'missing'} is not what this model takes: send {takes}.")

    def _from_form(self, fields: Mapping[str, list[bytes]]) -> dict[str, Any]:
        """The fields of a form as the values of JSON: texts and files as they are, what else there is as JSON's."""
        found: dict[str, Any] = {}
        for name, values in fields.items():
            if name not in self._parameters:
                raise InferenceError(
                    f"Unknown field '{name[:100]}'; there are: {', '.join(self._parameters)}.", field=name
                )
            annotation = without_extras(self._parameters[name].type)
            if typing.get_origin(annotation) is list:
                [inner] = typing.get_args(annotation)
                found[name] = [_field(name, inner, each) for each in values]
                if len(values) == 1 and not _is_file(annotation) and isinstance(found[name][0], list):
                    [found[name]] = found[name]
            elif len(values) > 1:
                raise InferenceError(f"The form has the field '{name}' {len(values)} times.", field=name)
            else:
                found[name] = _field(name, annotation, values[0])
        return found


def _field(name: str, annotation: Any, value: bytes) -> Any:
    if _is_file(annotation):
        return value
    try:
        text = value.decode()
    except UnicodeDecodeError:
        raise InferenceError(f"The field '{name}' is no text.", field=name) from None
    if _is_text(annotation):
        return text
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def _multipart(body: bytes, boundary: bytes) -> dict[str, list[bytes]]:
    """The fields of a form (RFC 7578)."""
    if not boundary:
        raise InferenceError("The form's Content-Type names no boundary.")
    fields: dict[str, list[bytes]] = {}
    header: list[bytes] = [b"", b""]
    headers: dict[bytes, bytes] = {}
    data = bytearray()
    ended = False

    def begin() -> None:
        headers.clear()
        data.clear()

    def end_header() -> None:
        headers[header[0].lower()] = header[1]
        header[:] = [b"", b""]

    def add(position: int) -> Any:
        def add_to_header(data: bytes, start: int, end: int) -> None:
            header[position] += data[start:end]

        return add_to_header

    def add_data(piece: bytes, start: int, end: int) -> None:
        data.extend(memoryview(piece)[start:end])

    def end_part() -> None:
        _, options = parse_options_header(headers.get(b"content-disposition", b""))
        name = options.get(b"name")
        if name is None:
            raise InferenceError("The form has a part without a name.")
        if sum(map(len, fields.values())) >= MAX_FORM_FIELDS:
            raise InferenceError(f"The form has more than {MAX_FORM_FIELDS} fields.")
        fields.setdefault(name.decode("utf-8", "replace"), []).append(bytes(data))

    def end() -> None:
        nonlocal ended
        ended = True

    callbacks: Any = {
        "on_part_begin": begin,
        "on_header_field": add(0),
        "on_header_value": add(1),
        "on_header_end": end_header,
        "on_part_data": add_data,
        "on_part_end": end_part,
        "on_end": end,
    }
    try:
        parser = MultipartParser(boundary, callbacks)
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise InferenceError(f"The form cannot be read: {error}.") from None
    if not ended:
        raise InferenceError("The form ends too early.")
    return fields


def _querystring(body: bytes) -> dict[str, list[bytes]]:
    try:
        pairs = parse_qsl(body.decode("ascii"), keep_blank_values=True, max_num_fields=MAX_FORM_FIELDS)
    except ValueError as error:
        raise InferenceError(f"The form cannot be read: {error}.") from None
    fields: dict[str, list[bytes]] = {}
    for name, value in pairs:
        fields.setdefault(name, []).append(value.encode())
    return fields


# --- types ------------------------------------------------------------------------------------------------------------


def _result_schema(annotation: Any) -> dict[str, Any]:
    """Of results as JSON; of types that pydantic does not know nothing can be said."""
    fields = fields_of(annotation)
    if fields is not None and not issubclass(annotation, BaseModel):
        schemas = {name: _result_schema(each) for name, each in fields.items()}
        definitions = {key: value for each in schemas.values() for key, value in each.pop("$defs", {}).items()}
        return {"type": "object", "properties": schemas, "required": list(schemas), "$defs": definitions}
    try:
        config = None if fields else _CONFIG  # a model has a configuration of its own
        adapter = TypeAdapter(_readable(annotation), config=config)
        return adapter.json_schema(mode="serialization", ref_template=_REFERENCE)
    except (PydanticUserError, PydanticInvalidForJsonSchema):
        return {}


def _readable(annotation: Any) -> Any:
    """A type as pydantic can read it: arrays from lists, bytes and images from base 64 or a form's file."""
    if is_array(annotation):
        return _array(dtype_of(annotation))
    if is_image(annotation):
        return Annotated[Any, BeforeValidator(_image), _FILE_SCHEMA]
    if annotation is bytes:
        return Annotated[bytes, BeforeValidator(_file), _FILE_SCHEMA]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is list and len(arguments) == 1:
        return list[_readable(arguments[0])]  # type: ignore[misc]
    if origin in UNIONS:
        return functools.reduce(operator.or_, map(_readable, arguments))
    if origin is Annotated:
        return Annotated[(_readable(arguments[0]), *arguments[1:])]
    return Any if annotation is inspect.Parameter.empty else annotation


def _array(dtype: np.dtype) -> Any:
    def read(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return value
        if isinstance(value, str | bytes | dict) or value is None:
            raise ValueError("must be a number, or lists of numbers")
        try:
            array = np.array(value)
        except ValueError:
            raise ValueError("its lists differ in length: an array needs equal ones") from None
        if dtype.kind == "O":
            return _strings(array)
        if array.size and array.dtype.kind not in _ACCEPTED[dtype.kind]:
            raise ValueError(f"must hold {Datatype.of(dtype)} values only")
        with np.errstate(all="ignore"):
            made = array.astype(dtype)
        if array.size and dtype.kind in "iu" and not np.array_equal(made, array):
            raise ValueError(f"has values that do not fit {Datatype.of(dtype)}")
        return made

    schema = {"type": "array", "items": {}, "description": f"An array of {Datatype.of(dtype)}, as nested lists."}
    return Annotated[Any, BeforeValidator(read), WithJsonSchema(schema)]


def _strings(array: Any) -> Any:
    values = array.ravel().tolist()
    if not all(isinstance(each, str) for each in values):
        raise ValueError("must hold strings only")
    made = np.empty(array.shape, object)
    made.ravel()[:] = [each.encode() for each in values]
    return made


_ACCEPTED = {"f": "fiu", "i": "iu", "u": "iu", "b": "b"}
"""Kinds of what JSON's values become that an array takes."""


def _file(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise ValueError("must be a file of a form, or its bytes in base 64")
    if value.startswith("data:"):  # as browsers write files
        value = value.partition(",")[2]
    try:
        return base64.b64decode(value.translate(_FROM_URL) + "=" * (-len(value) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("is no base 64") from None


def _image(value: Any) -> Any:
    try:
        return open_image(_file(value))
    except InferenceError as error:
        raise ValueError(str(error)) from None


_FROM_URL = str.maketrans("-_", "+/")

_FILE_SCHEMA = WithJsonSchema({"type": "string", "contentEncoding": "base64"})


def _is_file(annotation: Any) -> bool:
    plain = without_extras(annotation)
    inner = without_extras(typing.get_args(plain)[0]) if typing.get_origin(plain) is list else plain
    return inner is bytes or is_image(inner)


def _is_text(annotation: Any) -> bool:
    return without_extras(annotation) is str
