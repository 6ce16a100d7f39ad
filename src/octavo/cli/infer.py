"""`octavo infer`: ask a hosted model of a running server, by the Open Inference Protocol."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import orjson
from numpy.typing import NDArray

from octavo.cli.console import output
from octavo.cli.events import events
from octavo.cli.remote import RemoteError, connect, error_message, lost, status_error
from octavo.errors import OctavoError
from octavo.hosting.datatypes import Datatype
from octavo.hosting.errors import InferenceError
from octavo.hosting.signature import TensorSpec
from octavo.hosting.tensors import Encoded, Place, Tensor, from_json
from octavo.server.inference.nested import from_bf16, to_bf16, to_tensor

SHOWN = 1000
"""Elements of an output that are printed whole."""

Array = NDArray[Any]


class InputError(OctavoError):
    """An input or output on the command line that cannot be."""


def infer(model: str, *, url: str, api_key: str | None, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Send tensors to a model, and print what comes of them or write it to files.

    Args:
        inputs: NAME=@FILE.npy, NAME=@FILE (its bytes), or NAME=VALUE, which is JSON or text.
        outputs: those that are wanted, NAME or NAME=@FILE; none for all.
    """
    files = dict(_split(each, "--output") for each in outputs)
    with connect(url) as client:
        if api_key:
            client.headers["Authorization"] = f"Bearer {api_key}"
        path = f"/v2/models/{quote(model, safe='')}"
        known = {each["name"]: each for each in _get(client, path)["inputs"]}
        tensors = {name: _tensor(name, value, known.get(name)) for name, value in map(_given, inputs)}
        streams = _get(client, f"{path}/config").get("model_transaction_policy", {}).get("decoupled", False)
        for result in (_stream if streams else _ask)(client, path, tensors, list(files)):
            for name, tensor in result.items():
                _show(name, tensor, files.get(name, ""))


# --- what is sent -----------------------------------------------------------------------------------------------------


def _split(text: str, option: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    if not name or (value and not value.startswith("@")):
        raise InputError(f"{option} {text!r} is neither NAME nor NAME=@FILE")
    return name, value.removeprefix("@")


def _given(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not name or not separator:
        raise InputError(f"--input {text!r} is not NAME=VALUE or NAME=@FILE")
    return name, value


def _tensor(name: str, value: str, known: dict[str, Any] | None) -> Tensor:
    """What is sent for an input. Args: known: what the model says of it, if it has such an input."""
    datatype = Datatype(known["datatype"]) if known and known["datatype"] in list(Datatype) else None
    if value.startswith("@"):
        tensor = _of_file(name, Path(value[1:]), datatype)
    else:
        tensor = _of_text(name, value, datatype)
    if known and tensor.array.ndim == len(known["shape"]) - 1 and known["shape"][0] == -1:
        tensor = Tensor(tensor.datatype, tensor.array[None])  # an item alone is a batch of one
    return tensor


def _of_file(name: str, file: Path, datatype: Datatype | None) -> Tensor:
    try:
        if file.suffix != ".npy":
            return Tensor(Datatype.BYTES, _bytes_array(file.read_bytes()))
        array: Array = np.load(file, allow_pickle=False)
    except OSError as error:
        raise InputError(f"{file} for {name!r} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise InputError(f"{file} for {name!r} cannot be read: {error}") from None
    if array.dtype.kind in "SU":
        array = np.char.encode(array, "utf-8").astype(object) if array.dtype.kind == "U" else array.astype(object)
    try:
        own = Datatype.of(array.dtype)
    except ValueError as error:
        raise InputError(f"{file} for {name!r} cannot be sent: {error}") from None
    if datatype in (None, own):
        return Tensor(own, array)
    assert datatype is not None
    if datatype is Datatype.BF16 and own is Datatype.FP32:
        return Tensor(datatype, to_bf16(array))
    if Datatype.BYTES in (datatype, own) or not np.can_cast(array.dtype, datatype.dtype, "same_kind"):
        raise InputError(f"{file} has {own}, but the model's input {name!r} is {datatype}")
    return Tensor(datatype, array.astype(datatype.dtype))


def _of_text(name: str, text: str, datatype: Datatype | None) -> Tensor:
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    if datatype is Datatype.BYTES and not isinstance(value, str | list):
        value = text  # a number is a text, too
    try:
        return to_tensor(TensorSpec(name=name, datatype=datatype, dims=(1,)), value, Place(name, "the model"))
    except InferenceError as error:
        raise InputError(f"--input {name}: {error}") from None


def _bytes_array(data: bytes) -> Array:
    array = np.empty(1, object)
    array[0] = data
    return array


def _body(tensors: dict[str, Tensor], outputs: Sequence[str], *, binary: bool) -> tuple[bytes, dict[str, str]]:
    """A request, and its headers."""
    encoded = {name: Encoded.of(each) for name, each in tensors.items()}
    head = {
        "inputs": [
            {
                "name": name,
                "datatype": each.datatype,
                "shape": each.shape,
                "parameters": {"binary_data_size": len(each.data)},
            }
            for name, each in encoded.items()
        ],
        "parameters": {"binary_data_output": binary},
    }
    if outputs:
        head["outputs"] = [{"name": name} for name in outputs]
    text = orjson.dumps(head)
    body = b"".join([text, *(bytes(each.data) for each in encoded.values())])
    return body, {"Inference-Header-Content-Length": str(len(text)), "Content-Type": "application/octet-stream"}


# --- what comes back --------------------------------------------------------------------------------------------------


def _get(client: httpx.Client, path: str) -> dict[str, Any]:
    try:
        response = client.get(path)
    except httpx.HTTPError as error:
        raise RemoteError(f"no server answers at {client.base_url}: {error}; start one with: octavo serve") from error
    if response.status_code != 200:
        raise status_error(response)
    try:
        found: dict[str, Any] = response.json()
    except ValueError as error:
        raise RemoteError(f"what answers at {client.base_url} does not speak the Open Inference Protocol") from error
    return found


def _ask(
    client: httpx.Client, path: str, tensors: dict[str, Tensor], outputs: Sequence[str]
) -> Iterator[dict[str, Tensor]]:
    body, headers = _body(tensors, outputs, binary=True)
    try:
        response = client.post(f"{path}/infer", content=body, headers=headers)
    except httpx.HTTPError as error:
        raise lost(client, error) from error
    if response.status_code != 200:
        raise status_error(response)
    size = int(response.headers.get("inference-header-content-length", len(response.content)))
    yield _decoded(orjson.loads(response.content[:size]), memoryview(response.content)[size:])


def _stream(
    client: httpx.Client, path: str, tensors: dict[str, Tensor], outputs: Sequence[str]
) -> Iterator[dict[str, Tensor]]:
    body, headers = _body(tensors, outputs, binary=False)
    try:
        with client.stream("POST", f"{path}/infer_stream", content=body, headers=headers) as response:
            if response.status_code != 200:
                response.read()
                raise status_error(response)
            for event in events(response.iter_bytes()):
                found = orjson.loads(event)
                if "error" in found:
                    raise RemoteError(error_message(found, "the server reported an error"))
                yield _decoded(found, memoryview(b""))
    except httpx.HTTPError as error:
        raise lost(client, error) from error


def _decoded(reply: dict[str, Any], data: memoryview) -> dict[str, Tensor]:
    found, at = {}, 0
    for each in reply["outputs"]:
        datatype, shape, place = Datatype(each["datatype"]), each["shape"], Place(each["name"], "the model")
        if "data" in each:
            found[each["name"]] = from_json(datatype, shape, each["data"], place)
        else:
            size = each["parameters"]["binary_data_size"]
            found[each["name"]] = Encoded(datatype, tuple(shape), data[at : at + size]).decode(place)
            at += size
    return found


def _show(name: str, tensor: Tensor, file: str) -> None:
    array = tensor.array
    if tensor.datatype is Datatype.BF16:
        array = from_bf16(array)
    if file:
        _save(name, array, Path(file))
        return
    shape = ",".join(map(str, tensor.shape))
    if array.dtype == object:
        shown = (
            np.array([each.decode(errors="replace") for each in array.ravel()], object).reshape(array.shape).tolist()
        )
        text = shown[0] if array.size == 1 and array.ndim == 1 else json.dumps(shown, ensure_ascii=False)
    else:
        text = np.array2string(array, separator=", ", threshold=SHOWN)
    output.file.write(f"{name} {tensor.datatype} [{shape}]\n{text}\n")


def _save(name: str, array: Array, file: Path) -> None:
    if array.dtype != object:
        np.save(file, array) if file.suffix == ".npy" else file.write_bytes(array.tobytes())
    elif array.size == 1:
        file.write_bytes(array.ravel()[0])
    else:
        raise InputError(f"output {name!r} has {array.size} elements of BYTES; only one alone can be written to a file")
