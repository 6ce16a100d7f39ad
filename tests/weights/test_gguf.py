"""The GGUF reader against the `gguf` package's writer and reader, and against files that lie."""

import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader
from hypothesis import given
from hypothesis import strategies as st

from octavo.errors import CheckpointError, OctavoError, UnsupportedError
from octavo.weights.checkpoint import open_checkpoint
from octavo.weights.gguf import read_gguf
from octavo.weights.tensor import Format, Tensor
from tests.properties import examples
from tests.weights.gguf_files import SCALES, random_rows, tiny_llama, write_gguf

# A file of one metadata key and one tensor, put together by hand so that every field can be made to lie.
FIELDS = {
    "magic": b"GGUF",
    "version": struct.pack("<I", 3),
    "num_tensors": struct.pack("<Q", 1),
    "num_keys": struct.pack("<Q", 1),
    "key_length": struct.pack("<Q", 1),
    "key": b"k",
    "value_type": struct.pack("<I", 9),
    "element_type": struct.pack("<I", 8),
    "count": struct.pack("<Q", 1),
    "string_length": struct.pack("<Q", 2),
    "string": "é".encode(),
    "name_length": struct.pack("<Q", 1),
    "name": b"w",
    "rank": struct.pack("<I", 2),
    "shape": struct.pack("<QQ", 32, 2),
    "type": struct.pack("<I", 8),
    "offset": struct.pack("<Q", 0),
}


def handmade(**changes: bytes) -> bytes:
    header = b"".join((FIELDS | changes).values())
    return header + bytes(-len(header) % 32) + bytes(2 * 34)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return tiny_llama(tmp_path_factory.mktemp("whole") / "model.gguf").read_bytes()


@pytest.fixture(scope="module")
def file_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bytes], Path]:
    """Put bytes into a file; the same one every time, which Hypothesis calls hundreds of times."""
    path = tmp_path_factory.mktemp("broken") / "model.gguf"

    def put(content: bytes) -> Path:
        path.unlink(missing_ok=True)  # an older map of it must not change
        path.write_bytes(content)
        return path

    return put


def test_metadata_and_tensors_equal_the_reference_readers(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors = {f"{form}.weight": (random_rows(form, 3, 2, rng), form) for form in SCALES}
    tensors["f32"] = (rng.normal(size=(2, 3, 4, 5)).astype(np.float32), Format.F32)
    tensors["f16"] = (rng.normal(size=7).astype(np.float16), Format.F16)
    tensors["bf16"] = (rng.integers(0, 256, (5, 8), np.uint8), Format.BF16)
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "anything")
    writer.add_custom_alignment(64)
    for kind in ("uint8", "uint16", "uint32", "uint64"):
        getattr(writer, f"add_{kind}")(kind, 2 ** int(kind[4:]) - 1)
    for kind in ("int8", "int16", "int32", "int64"):
        getattr(writer, f"add_{kind}")(kind, -(2 ** (int(kind[3:]) - 1)))
    writer.add_float32("float32", 0.1)
    writer.add_float64("float64", 0.1)
    writer.add_bool("bool", True)
    writer.add_string("string", "日本\n")
    writer.add_string("nothing", " ")
    writer.add_array("strings", ["a", "", "é", "\N{GRINNING FACE}"])
    writer.add_array("integers", [1, -2, 3])
    writer.add_array("reals", [1.5, -2.25])
    writer.add_array("booleans", [True, False])
    for name, (data, form) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=GGMLQuantizationType[form.name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    read, reference = read_gguf(path), GGUFReader(path)
    fields = {name: field for name, field in reference.fields.items() if not name.startswith("GGUF.")}
    assert read.metadata == {name: field.contents() for name, field in fields.items()}
    assert [type(read.metadata[key]) for key in ("bool", "uint8", "float32", "string")] == [bool, int, float, str]
    assert list(read.tensors) == [tensor.name for tensor in reference.tensors]
    for wanted in reference.tensors:
        tensor = read.tensors[wanted.name]
        assert tensor.format.name == wanted.tensor_type.name
        assert tensor.shape == tuple(reversed(wanted.shape.tolist()))
        assert tensor.nbytes == wanted.n_bytes
        assert tensor.data.tobytes() == wanted.data.tobytes()
        assert not tensor.data.flags.owndata


def test_the_handmade_file_is_good(file_of: Callable[[bytes], Path]) -> None:
    path = file_of(handmade())
    read = read_gguf(path)
    assert read.metadata == {"k": ["é"]}
    assert read.tensors["w"].shape == (2, 32)
    assert GGUFReader(path).tensors[0].name == "w"


def test_version_2_is_read(file_of: Callable[[bytes], Path]) -> None:
    assert read_gguf(file_of(handmade(version=struct.pack("<I", 2)))).metadata == {"k": ["é"]}


U64_MAX = struct.pack("<Q", 2**64 - 1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"magic": b"GGML"}, "not a GGUF file"),
        ({"num_tensors": U64_MAX}, "corrupt"),
        ({"num_keys": U64_MAX}, "truncated or corrupt"),
        ({"key_length": U64_MAX}, "truncated or corrupt"),
        ({"value_type": struct.pack("<I", 13)}, "unknown type 13"),
        ({"element_type": struct.pack("<I", 9)}, "unknown type 9"),
        ({"count": U64_MAX}, "elements"),
        ({"count": struct.pack("<Q", 2**24)}, "leaves the file"),
        ({"element_type": struct.pack("<I", 12), "count": struct.pack("<Q", 2**24)}, "takes 134217728 bytes"),
        ({"string_length": U64_MAX}, "leaves the file"),
        ({"string": b"\xff\xff"}, "not UTF-8"),
        ({"name": b"\xff"}, "not UTF-8"),
        ({"name_length": U64_MAX}, "truncated or corrupt"),
        ({"rank": struct.pack("<I", 0)}, "0 dimensions"),
        ({"rank": struct.pack("<I", 2**32 - 1)}, "4294967295 dimensions"),
        ({"shape": struct.pack("<QQ", 2**63, 2**63)}, "truncated"),
        ({"shape": struct.pack("<QQ", 32, 0)}, "shape"),
        ({"shape": struct.pack("<QQ", 33, 2)}, "blocks of 32"),
        ({"shape": struct.pack("<QQ", 32, 3)}, "ends at byte"),
        ({"offset": struct.pack("<Q", 1)}, "multiples of 32"),
        ({"offset": struct.pack("<Q", 2**64 - 32)}, "ends at byte"),
        ({"num_keys": struct.pack("<Q", 2), "string": b"ab" + b"".join(list(FIELDS.values())[4:11])}, "occurs twice"),
    ],
    ids=str,
)
def test_a_field_that_lies_is_refused(change: dict[str, bytes], said: str, file_of: Callable[[bytes], Path]) -> None:
    content = handmade(**change)
    with pytest.raises(CheckpointError, match=said) as caught:
        read_gguf(file_of(content))
    assert "\n" not in str(caught.value)
    if "not a GGUF" not in said:
        assert str(len(content)) in str(caught.value) or "shape" in str(caught.value)


def test_tensors_that_share_bytes_are_refused(tmp_path: Path, file_of: Callable[[bytes], Path]) -> None:
    ones = (np.ones(8, np.float32), Format.F32)
    content = write_gguf(tmp_path / "model.gguf", "x", {}, {"first": ones, "second": ones}).read_bytes()
    entry = content.index(b"second") + len(b"second") + 4 + 8 + 4
    with pytest.raises(CheckpointError, match=r"'first'.*'second'"):
        read_gguf(file_of(content[:entry] + bytes(8) + content[entry + 8 :]))


def test_a_tensor_or_key_twice_is_refused(file_of: Callable[[bytes], Path]) -> None:
    entry = b"".join(list(FIELDS.values())[11:])
    doubled = handmade(num_tensors=struct.pack("<Q", 2), offset=FIELDS["offset"] + entry)
    with pytest.raises(CheckpointError, match="'w' occurs twice"):
        read_gguf(file_of(doubled))


@pytest.mark.parametrize("alignment", [0, 3, 2**31 + 1])
def test_an_alignment_that_is_no_power_of_two_is_refused(alignment: int, file_of: Callable[[bytes], Path]) -> None:
    key = b"general.alignment"
    changes = {
        "key_length": struct.pack("<Q", len(key)),
        "key": key,
        "value_type": struct.pack("<I", 4),
        "element_type": struct.pack("<I", alignment),
        "count": b"",
        "string_length": b"",
        "string": b"",
    }
    with pytest.raises(CheckpointError, match="not a power of two"):
        read_gguf(file_of(handmade(**changes)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": struct.pack("<I", 1)}, "version 1;"),
        ({"version": struct.pack(">I", 3)}, "version 3 in big endian"),
        ({"type": struct.pack("<I", GGMLQuantizationType.IQ4_XS)}, "'w' is stored as IQ4_XS; supported .*Q4_K"),
        ({"type": struct.pack("<I", 4)}, "'w' is stored as the unknown type 4"),
    ],
    ids=str,
)
def test_what_is_not_read_is_named(change: dict[str, bytes], said: str, file_of: Callable[[bytes], Path]) -> None:
    with pytest.raises(UnsupportedError, match=said):
        read_gguf(file_of(handmade(**change)))


def test_every_type_of_the_library_is_read_or_named(file_of: Callable[[bytes], Path]) -> None:
    for kind in GGMLQuantizationType:
        path = file_of(handmade(type=struct.pack("<I", kind), shape=struct.pack("<QQ", 256, 1)) + bytes(2048))
        if kind.name in Format.__members__:
            assert read_gguf(path).tensors["w"].format.name == kind.name
        else:
            with pytest.raises(UnsupportedError, match=f"stored as ({kind.name}|the unknown type {kind.value});"):
                read_gguf(path)


def test_one_part_of_a_split_model_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model-00001-of-00003.gguf", "llama", {"split.count": 3}, {})
    with pytest.raises(UnsupportedError, match=r"one of 3 parts.*--merge"):
        read_gguf(path)


def test_every_truncation_is_refused(whole: bytes, file_of: Callable[[bytes], Path]) -> None:
    """At every byte of the header, then at every hundredth of the data."""
    read = read_gguf(file_of(whole))
    data_size = sum(-(-tensor.nbytes // 32) * 32 for tensor in read.tensors.values())
    padding = -list(read.tensors.values())[-1].nbytes % 32
    header_size = len(whole) - data_size
    for size in [*range(header_size + 1), *range(header_size, len(whole) - padding, 100)]:
        with pytest.raises(CheckpointError) as caught:
            read_gguf(file_of(whole[:size]))
        assert size == 0 or str(size) in str(caught.value)


@examples(150)
@given(data=st.data())
def test_a_damaged_model_opens_or_is_refused(
    whole: bytes, file_of: Callable[[bytes], Path], data: st.DataObject
) -> None:
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, 3500))] = data.draw(st.integers(0, 255))
    tensors: Mapping[str, Tensor] = {}
    message = ""
    try:
        tensors = open_checkpoint(file_of(bytes(damaged))).tensors
    except OctavoError as error:
        message = str(error)
    assert "\n" not in message
    for tensor in tensors.values():
        assert tensor.to_float32().shape == tensor.shape
