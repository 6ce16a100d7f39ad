"""Configurations as files and clients write them, and what is said of those that are none."""

import json

import pytest
from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2

from octavo.errors import ConfigError
from octavo.hosting.triton.model_config import config_from_json, config_to_json, read_config

FULL = """
# As people write them.
name: "resnet"
platform: "onnxruntime_onnx"
max_batch_size: 8
version_policy: { specific { versions: [1, 3] } }
input [
  {
    name: "images"
    data_type: TYPE_FP32
    format: FORMAT_NCHW
    dims: [ 3, -1, -1 ]
    reshape { shape: [ 1, 3, -1, -1 ] }
  }
]
output [
  { name: "scores", data_type: TYPE_FP32, dims: 10, label_filename: "labels.txt" }
]
dynamic_batching {
  preferred_batch_size: [ 4, 8 ]
  max_queue_delay_microseconds: 100
  priority_levels: 2
  default_priority_level: 1
  priority_queue_policy { key: 2 value { timeout_action: DELAY default_timeout_microseconds: 9000000000 } }
}
instance_group [{ count: 2, kind: KIND_CPU, secondary_devices { kind: KIND_NVDLA device_id: 3 } }]
parameters { key: "a" value: { string_value: "b\\303\\251" } }
model_warmup { name: "one" batch_size: 1 inputs { key: "images" value { dims: [3, 4, 4] zero_data: true } } }
"""


def test_a_configuration_is_read_as_triton_reads_it() -> None:
    theirs = text_format.Parse(FULL, model_config_pb2.ModelConfig())
    assert read_config(FULL, "config.pbtxt").SerializeToString(deterministic=True) == theirs.SerializeToString(
        deterministic=True
    )


def test_json_has_every_field_and_64_bit_numbers_as_numbers() -> None:
    fields = config_to_json(read_config(FULL, "config.pbtxt"))
    theirs = json_format.MessageToDict(
        text_format.Parse(FULL, model_config_pb2.ModelConfig()),
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
    )
    assert list(fields) == list(theirs)
    assert fields["input"][0]["dims"] == [3, -1, -1]
    assert fields["version_policy"]["specific"]["versions"] == [1, 3]
    assert fields["dynamic_batching"]["priority_queue_policy"]["2"]["default_timeout_microseconds"] == 9_000_000_000
    assert fields["model_warmup"][0]["inputs"]["images"]["dims"] == [3, 4, 4]
    assert fields["instance_group"][0]["secondary_devices"][0]["device_id"] == 3
    assert fields["instance_group"][0]["passive"] is False


def test_json_comes_back_as_it_was() -> None:
    config = read_config(FULL, "config.pbtxt")
    assert config_from_json(json.dumps(config_to_json(config)), "config") == config


def test_enums_of_json_may_be_in_lower_case() -> None:
    config = config_from_json('{"input": [{"name": "x", "data_type": "type_fp32", "dims": ["1"]}]}', "config")
    assert config_to_json(config)["input"][0]["data_type"] == "TYPE_FP32"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            'name: "x"\nmax_batch_sise: 3',
            "m/config.pbtxt, line 2: max_batch_sise: there is no such field in a model's configuration; "
            "did you mean max_batch_size?",
        ),
        (
            'input [\n { name: "a" data_type: TYPE_FP31 dims: [ -1 ] } ]',
            "m/config.pbtxt, line 2: data_type: there is no TYPE_FP31; did you mean TYPE_FP32?",
        ),
        ("input { foo: 1 }", "line 1: foo: there is no such field in ModelInput; use "),
        ('max_batch_size: "a"', 'line 1: max_batch_size: couldn\'t parse integer: "a"'),
        ("max_batch_size: 99999999999", "line 1: max_batch_size: value out of range: 99999999999"),
        ("\ninstance_group { kind: KIND_CPUU }", "line 2: kind: there is no KIND_CPUU; did you mean KIND_CPU?"),
        ('name: "a"\nname: "b"', "line 2: name: it is there twice"),
        (
            "dynamic_batching {} sequence_batching {}",
            "line 1: sequence_batching: dynamic_batching is there, too; there can be one of them",
        ),
        ('input [ { name: "a"', "line 1: "),
        ("input {" * 10_000, "m/config.pbtxt"),
    ],
)
def test_what_is_wrong_with_a_file(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_config(text, "m/config.pbtxt")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "the config is no JSON"),
        ("[]", "the config is no JSON object"),
        ('{"max_batch_sise": 1}', "max_batch_sise: there is no such field in a model's configuration; did you mean"),
        ('{"input": [{"data_type": "TYPE_FP31"}]}', "data_type: there is no TYPE_FP31; did you mean TYPE_FP32?"),
        ('{"max_batch_size": "many"}', "the config: max_batch_size: "),
        ('{"input": 3}', "the config: "),
    ],
)
def test_what_is_wrong_with_json(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_from_json(text, "the config")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
