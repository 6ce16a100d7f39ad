"""What went wrong with a request for a hosted model, as a call ends with it."""

from octavo.hosting.errors import Code, InferenceError
from octavo.server.errors import retry_seconds
from octavo.server.grpc.status import RpcError, Status

_STATUS = {
    Code.INVALID_ARGUMENT: Status.INVALID_ARGUMENT,
    Code.NOT_FOUND: Status.NOT_FOUND,
    Code.ALREADY_EXISTS: Status.ALREADY_EXISTS,
    Code.UNAVAILABLE: Status.UNAVAILABLE,
    Code.UNSUPPORTED: Status.UNIMPLEMENTED,
    Code.INTERNAL: Status.INTERNAL,
    Code.UNKNOWN: Status.UNKNOWN,
    Code.CANCELLED: Status.CANCELLED,
}


def rpc_error(error: InferenceError) -> RpcError:
    """The same as a status, with the time after which to try again if that may help."""
    metadata: tuple[tuple[bytes, bytes], ...] = ()
    if error.code is Code.UNAVAILABLE:
        metadata = ((b"retry-after", str(retry_seconds(error.retry_after)).encode()),)
    return RpcError(_STATUS[error.code], str(error), metadata)
