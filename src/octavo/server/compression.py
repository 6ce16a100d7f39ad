"""Compressed bodies: what clients send is unpacked within bounds, what they take is packed."""

import zlib
from collections.abc import Sequence

from octavo.server.errors import ApiError, invalid

ENCODINGS = "gzip, deflate"

UNPACKED_PIECE = 256 * 1024

LEVEL = 1
"""Tensors hardly become smaller with more effort."""

_WINDOW = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}


def too_large(limit: int) -> ApiError:
    """413."""
    return ApiError(413, f"The request body is larger than the {limit:,} bytes this server accepts.")


def unpacker(encoding: str) -> "zlib._Decompress | None":
    """What undoes a Content-Encoding. Raises ApiError: 415."""
    match encoding.strip().lower():
        case "" | "identity":
            return None
        case "gzip" | "x-gzip":
            return zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        case "deflate":
            return zlib.decompressobj()
    message = f"Content-Encoding '{encoding}' is not supported; send {ENCODINGS} or none."
    raise ApiError(415, message, headers={"Accept-Encoding": ENCODINGS})


def unpacked(unpacker: "zlib._Decompress", chunks: list[bytes], limit: int) -> bytes:
    """Unpack a body, and no more of it than is allowed.

    Raises:
        ApiError: 400 if it is damaged or not all of it, 413 if it is too large unpacked.
    """
    if not chunks:
        return b""
    data = bytearray()
    try:
        for chunk in chunks:
            if unpacker.eof:
                raise invalid("The request body goes on after the end of what is compressed.")
            while True:
                piece = unpacker.decompress(chunk, UNPACKED_PIECE)
                data += piece
                if len(data) > limit:
                    raise too_large(limit)
                chunk = unpacker.unconsumed_tail
                if unpacker.eof or (not chunk and len(piece) < UNPACKED_PIECE):
                    break
    except zlib.error as error:
        raise invalid(f"The request body cannot be unpacked: {error}.") from error
    if not unpacker.eof:
        raise invalid("The request body cannot be unpacked: it ends too early.")
    if unpacker.unused_data:
        raise invalid("The request body goes on after the end of what is compressed.")
    return bytes(data)


def accepted(header: str) -> str:
    """How an answer is compressed: what an Accept-Encoding likes best, the first of several; empty for not at all."""
    best, most = "", 0.0
    for each in header.split(","):
        name, _, weight = each.partition(";")
        name = name.strip().lower()
        if name not in (*_WINDOW, "identity"):
            continue
        try:
            quality = float(weight.strip().removeprefix("q=") or 1.0)
        except ValueError:
            continue
        if quality > most:
            best, most = name, quality
    return "" if best == "identity" else best


def packed(encoding: str, parts: Sequence[bytes | bytearray | memoryview]) -> bytes:
    """A body, compressed. Its parts follow each other."""
    packer = zlib.compressobj(LEVEL, wbits=_WINDOW[encoding])
    return b"".join([*map(packer.compress, parts), packer.flush()])
