"""`grpc.reflection.v1.ServerReflection`: which services there are, and their messages, for tools that know neither."""

from collections.abc import Collection
from contextlib import aclosing
from typing import Any

from google.protobuf.message import DecodeError

from octavo.protos.messages import message as message_class
from octavo.protos.messages import pool
from octavo.server.grpc.call import Call, Method
from octavo.server.grpc.status import RpcError, Status

NAME = "grpc.reflection.v1.ServerReflection"

ALPHA = "grpc.reflection.v1alpha.ServerReflection"
"""What older tools call it; the messages are the same."""

_Request = message_class("grpc.reflection.v1.ServerReflectionRequest")
_Response = message_class("grpc.reflection.v1.ServerReflectionResponse")


class ReflectionService:
    """The method.

    Args:
        services: that are told.
    """

    def __init__(self, services: Collection[str]) -> None:
        self._services = services

    def methods(self) -> dict[str, Method]:
        """By path."""
        return {f"/{name}/ServerReflectionInfo": Method(streaming=self._answer) for name in (NAME, ALPHA)}

    async def _answer(self, call: Call) -> None:
        async with aclosing(call.messages()) as messages:
            async for each in messages:
                try:
                    request = _Request.FromString(each.data)
                except DecodeError:
                    raise RpcError(
                        Status.INVALID_ARGUMENT, f"the request is no {_Request.DESCRIPTOR.full_name}"
                    ) from None
                response = _Response(valid_host=request.host, original_request=request, **self._found(request))
                await call.send([response.SerializeToString()])

    def _found(self, request: Any) -> dict[str, Any]:
        wanted = request.WhichOneof("message_request")
        if wanted == "list_services":
            return {"list_services_response": {"service": [{"name": name} for name in sorted(self._services)]}}
        try:
            if wanted == "file_by_filename":
                return _files(pool.FindFileByName(request.file_by_filename))
            if wanted == "file_containing_symbol":
                return _files(pool.FindFileContainingSymbol(request.file_containing_symbol))
            if wanted == "all_extension_numbers_of_type":
                found = pool.FindMessageTypeByName(request.all_extension_numbers_of_type)
                return {"all_extension_numbers_response": {"base_type_name": found.full_name}}
        except KeyError:
            pass
        return {"error_response": {"error_code": int(Status.NOT_FOUND), "error_message": "There is no such thing."}}


def _files(wanted: Any) -> dict[str, Any]:
    """A file, and those that it needs."""
    files, found = [wanted], []
    while files:
        each = files.pop(0)
        if each.serialized_pb not in found:
            found.append(each.serialized_pb)
            files += each.dependencies
    return {"file_descriptor_response": {"file_descriptor_proto": found}}
