"""The messages, as the `.proto` files of this folder describe them.

They are made in a pool of their own: other code in the process may have another edition of the same protocol, such as
Triton's client, and one pool cannot have both.
"""

from importlib.resources import files
from typing import Any

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

pool = DescriptorPool()
_compiled = FileDescriptorSet.FromString(files(__package__).joinpath("compiled.binpb").read_bytes())
for _file in _compiled.file:  # each behind those that it imports
    pool.AddSerializedFile(_file.SerializeToString())


def message(name: str) -> Any:
    """The class of a message, by its full name."""
    return GetMessageClass(pool.FindMessageTypeByName(name))


def service(name: str) -> Any:
    """The descriptor of a service, by its full name."""
    return pool.FindServiceByName(name)


ModelConfig = message("inference.ModelConfig")
InferRequest = message("inference.ModelInferRequest")
InferResponse = message("inference.ModelInferResponse")
StreamInferResponse = message("inference.ModelStreamInferResponse")
