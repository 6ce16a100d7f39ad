"""Triton's `ModelConfig` (`protos/model_config.proto`), as files and clients write it."""

import re
from typing import Any

import orjson
from google.protobuf import json_format, text_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from octavo.errors import ConfigError
from octavo.hosting.triton import Config
from octavo.protos.messages import ModelConfig
from octavo.settings import nearest

_NO_FIELD = re.compile(r'Message type "([\w.]+)" (?:at "[^"]*" )?has no field named "([^"]*)"')
_NO_VALUE = re.compile(r'Enum type "(?P<enum>[\w.]+)" has no value (?:named |with number )(?P<value>\S+?)\.?$')
_INVALID_VALUE = re.compile(r"Invalid enum value (?P<value>.+?) for enum type (?P<enum>[\w.]+)")
_IN_JSON = re.compile(r"^Failed to parse (\w+) field: (.*?)\.?$", re.DOTALL)
_TWICE = re.compile(r'should not have multiple "(\w+)" fields')
_EITHER = re.compile(r'Field "(\w+)" is specified along with field "(\w+)"')
_FIELD_BEFORE = re.compile(r"(\w+)\s*:?\s*(?:[\[{<]\s*)?\S*$")
_QUOTED_LINE = re.compile(r"^'.*?': ", re.DOTALL)

_LONGEST_VALUE = 80


def read_config(text: str, where: str) -> Config:
    """Read a configuration as config.pbtxt has it, in protobuf's text format.

    Args:
        where: the file, for errors.

    Returns:
        A `ModelConfig` with what is written, and nothing more.

    Raises:
        ConfigError: it is none; the message names file, line and field.
    """
    try:
        return text_format.Parse(text, ModelConfig())
    except text_format.ParseError as error:
        line = error.GetLine() or 1
        raise ConfigError(f"{where}, line {line}: {_text_trouble(text, error)}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: {_one_line(error)}") from None


def config_from_json(text: str | bytes, where: str) -> Config:
    """Read a configuration as clients send it: `ModelConfig` as JSON, with enums in upper or lower case.

    Raises:
        ConfigError: it is none; the message names the field.
    """
    try:
        fields = orjson.loads(text)
    except ValueError as error:
        raise ConfigError(f"{where} is no JSON: {error}") from None
    if not isinstance(fields, dict):
        raise ConfigError(f"{where} is no JSON object")
    try:
        return json_format.ParseDict(_with_enums_in_upper_case(fields, ModelConfig.DESCRIPTOR), ModelConfig())
    except json_format.ParseError as error:
        raise ConfigError(f"{where}: {_json_trouble(str(error))}") from None
    except RecursionError:
        raise ConfigError(f"{where} is nested too deep") from None


def config_to_json(config: Config) -> dict[str, Any]:
    """A configuration as `/v2/models/NAME/config` has it: every field that is no message, 64-bit numbers as numbers."""
    fields: dict[str, Any] = json_format.MessageToDict(
        config, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    _numbers(fields, config.DESCRIPTOR)
    return fields


def _numbers(fields: dict[str, Any], descriptor: Descriptor) -> None:
    """Make numbers of 64-bit ones, which JSON of protobuf's has as strings."""
    for name, value in fields.items():
        field = descriptor.fields_by_name[name]
        if _is_map(field):
            inner = field.message_type.fields_by_name["value"]
            if inner.message_type is not None:
                for each in value.values():
                    _numbers(each, inner.message_type)
        elif field.message_type is not None:
            for each in value if field.is_repeated else [value]:
                _numbers(each, field.message_type)
        elif field.cpp_type in (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64):
            fields[name] = [int(each) for each in value] if field.is_repeated else int(value)


def _with_enums_in_upper_case(fields: dict[str, Any], descriptor: Descriptor) -> dict[str, Any]:
    """As Triton reads them. What does not fit the messages is left for the parser to refuse."""
    found = {}
    for name, value in fields.items():
        field = descriptor.fields_by_name.get(name) or descriptor.fields_by_camelcase_name.get(name)
        found[name] = value if field is None else _value_in_upper_case(value, field)
    return found


def _value_in_upper_case(value: Any, field: FieldDescriptor) -> Any:
    if isinstance(value, list):
        return [_value_in_upper_case(each, field) for each in value]
    if field.enum_type is not None:
        return value.upper() if isinstance(value, str) else value
    if field.message_type is None or not isinstance(value, dict):
        return value
    if _is_map(field):
        inner = field.message_type.fields_by_name["value"]
        return {key: _value_in_upper_case(each, inner) for key, each in value.items()}
    return _with_enums_in_upper_case(value, field.message_type)


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


# --- what is wrong, in words ------------------------------------------------------------------------------------------


def _text_trouble(text: str, error: text_format.ParseError) -> str:
    """What is wrong, with the field that it is about."""
    message = str(error).partition(" : ")[2] or str(error)
    message = _QUOTED_LINE.sub("", message)
    if said := _said(message):
        return said
    lines = text.splitlines()
    line = lines[(error.GetLine() or 1) - 1] if lines else ""
    before = _FIELD_BEFORE.search(line[: max((error.GetColumn() or 1) - 1, 0)])
    about = f"{before[1]}: " if before else ""
    if unknown := _NO_VALUE.search(message):
        return f"{about}{_no_value(unknown)}"
    return f"{about}{message[:1].lower()}{_one_line(message[1:])}"


def _json_trouble(message: str) -> str:
    about = []
    while found := _IN_JSON.match(message):
        about.append(found[1])
        message = found[2]
    if unknown := _INVALID_VALUE.search(message):
        message = _no_value(unknown)
    else:
        message = _said(message) or message.partition(" Available Fields")[0]
    return f"{'.'.join(about)}: {_one_line(message)}" if about else _one_line(message)


def _said(message: str) -> str:
    """An error of the parser's in words that need no knowledge of protobuf; empty if there are none for it."""
    if found := _NO_FIELD.search(message):
        known = ModelConfig.DESCRIPTOR.file.pool.FindMessageTypeByName(found[1])
        kind = "a model's configuration" if known is ModelConfig.DESCRIPTOR else known.name
        return (
            f"{found[2]}: there is no such field in {kind}; {nearest(found[2], [each.name for each in known.fields])}"
        )
    if found := _TWICE.search(message):
        return f"{found[1]}: it is there twice"
    if found := _EITHER.search(message):
        return f"{found[1]}: {found[2]} is there, too; there can be one of them"
    return ""


def _no_value(found: "re.Match[str]") -> str:
    known = ModelConfig.DESCRIPTOR.file.pool.FindEnumTypeByName(found["enum"])
    value = found["value"].strip("\"'")
    return f"there is no {value[:_LONGEST_VALUE]}; {nearest(value, [each.name for each in known.values])}"


def _one_line(error: object) -> str:
    return " ".join(str(error).split()).rstrip(".")
