"""What stands before a call: the method, the deadline, the key, in header fields."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from octavo.server.keys import ApiKey
from octavo.server.middleware import USABLE_ID
from octavo.server.one_line import one_line

if TYPE_CHECKING:
    from octavo.server.grpc.call import Method

_TIMEOUT = re.compile(rb"(\d{1,8})([HMSmun])")
_SECONDS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}

MAX_LABEL = 300
"""Characters of a path in the log."""

BAD_REQUEST, METHOD_NOT_ALLOWED, UNSUPPORTED_MEDIA_TYPE = 400, 405, 415


@dataclass(slots=True)
class CallHead:
    """The header fields of a call.

    Attributes:
        path: of the method. encoding: how messages are compressed. metadata: of `USED`.
        timeout: seconds that the client waits; None for ever.
        key: one of the server's, if it has any.
        refusal: the HTTP status for a request that is no call; 0 for one that is. wrong: what is wrong with it.
        method: that is called; None if there is none, or it may not be called.
        parameters: the fields that are parameters of requests. restricted: a field that is missing, or wrong.
    """

    path: str
    encoding: str
    label: str
    request_id: str
    authorization: bytes
    api_key: bytes
    timeout: float | None = None
    key: ApiKey | None = None
    refusal: int = 0
    wrong: str = ""
    method: "Method | None" = None
    parameters: Mapping[str, str] = field(default_factory=dict)
    restricted: str | None = None


def read_head(fields: Sequence[tuple[bytes, bytes]]) -> CallHead:
    """Understand the fields of a request."""
    found = dict(fields)
    path = found.get(b":path", b"").decode("latin-1")
    request_id = found.get(b"x-request-id", b"").decode("latin-1")
    head = CallHead(
        path=path,
        encoding=found.get(b"grpc-encoding", b"identity").decode("latin-1"),
        label=one_line(path, MAX_LABEL),
        request_id=request_id if USABLE_ID.fullmatch(request_id) else "",
        authorization=found.get(b"authorization", b""),
        api_key=found.get(b"x-api-key", b""),
    )
    if found.get(b":method") != b"POST":
        head.refusal = METHOD_NOT_ALLOWED if b":method" in found else BAD_REQUEST
    elif not _is_grpc(found.get(b"content-type", b"")):
        head.refusal = UNSUPPORTED_MEDIA_TYPE
    timeout = found.get(b"grpc-timeout")
    if timeout is not None:
        match = _TIMEOUT.fullmatch(timeout)
        if match is None:
            head.wrong = "grpc-timeout is no number of at most 8 digits with a unit of time"
        else:
            head.timeout = int(match[1]) * _SECONDS[match[2]]
    return head


def _is_grpc(content_type: bytes) -> bool:
    plain = content_type.partition(b";")[0].strip().lower()
    return plain in (b"application/grpc", b"application/grpc+proto")
