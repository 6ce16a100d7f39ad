"""The server's end of HTTP/2, frame by frame: what RFC 9113 asks for, and clients that do not keep to it."""

import random
import socket
import struct
from collections.abc import Iterator

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from octavo.server.http2 import frames
from octavo.server.http2.frames import ErrorCode
from tests.properties import examples
from tests.server.grpc.serving import Served, models, serving
from tests.server.grpc.test_infer import described, request
from tests.server.http2.raw import CALL, NOTHING, RawClient, settings

LIVE = b"\0\0\0\0\2\x08\x01"
ONE_CALL = {"grpc-status": "0"}
STREAM_CALL = (CALL[0], CALL[1], (":path", "/inference.GRPCInferenceService/ModelStreamInfer"), *CALL[3:])


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(*models()) as found:
        yield found


@pytest.fixture
def client(served: Served) -> Iterator[RawClient]:
    with RawClient(served.address) as found:
        yield found
    works(served)


def works(served: Served) -> None:
    """Whatever one client did, others are served."""
    with RawClient(served.address) as other:
        other.head(1)
        other.data(1)
        assert other.answer() == ONE_CALL


def test_a_call(client: RawClient) -> None:
    client.head(1)
    client.data(1)
    assert client.until(frames.SETTINGS).stream == 0
    head = client.until(frames.HEADERS)
    assert client.fields(head) == {":status": "200", "content-type": "application/grpc"}
    data = client.until(frames.DATA)
    assert data.payload == LIVE
    assert client.answer() == ONE_CALL


def test_a_call_byte_by_byte(client: RawClient) -> None:
    encoder = hpack.Encoder()
    whole = frames.frame(frames.HEADERS, frames.END_HEADERS, 1, encoder.encode(CALL))
    whole += frames.frame(frames.DATA, frames.END_STREAM, 1, NOTHING)
    for byte in whole:
        client.send(bytes((byte,)))
    assert client.answer() == ONE_CALL


def test_padding_priority_and_continuation(client: RawClient) -> None:
    """A head in three pieces, and a body in padded ones, with frames between that mean nothing here."""
    block = hpack.Encoder().encode(CALL)
    first = bytes((3,)) + bytes(5) + block[:2] + bytes(3)
    client.send(frames.frame(frames.HEADERS, frames.PADDED | frames.WITH_PRIORITY, 1, first))
    client.send(frames.frame(frames.CONTINUATION, 0, 1, block[2:7]))
    client.send(frames.frame(frames.CONTINUATION, frames.END_HEADERS, 1, block[7:]))
    client.send(frames.frame(frames.PRIORITY, 0, 1, bytes(5)) + frames.frame(0x77, 0xFF, 1, b"unknown"))
    client.send(frames.frame(frames.DATA, frames.PADDED, 1, b"\x07" + NOTHING[:2] + bytes(7)))
    client.send(frames.frame(frames.DATA, frames.PADDED, 1, b"\x02" + bytes(2)))
    client.send(frames.frame(frames.DATA, frames.END_STREAM, 1, NOTHING[2:]))
    assert client.answer() == ONE_CALL


def test_ping_and_settings_are_acknowledged(client: RawClient) -> None:
    client.send(frames.frame(frames.PING, 0, 0, b"12345678") + settings(max_frame_size=20_000))
    assert client.until(frames.SETTINGS).flags == 0
    acknowledged = client.next(), client.next(), client.next()
    assert [(each.kind, each.flags) for each in acknowledged if each] == [
        (frames.WINDOW_UPDATE, 0),
        (frames.SETTINGS, frames.ACK),
        (frames.PING, frames.ACK),
    ]
    assert acknowledged[2] is not None
    assert acknowledged[2].payload == b"12345678"
    assert client.until(frames.SETTINGS).flags == frames.ACK


def test_an_answer_waits_for_its_window(served: Served) -> None:
    """A byte at a time, if the client wants that, and a smaller window later than the server thought."""
    start = frames.PREFACE + settings(initial_window_size=0)
    with RawClient(served.address, start) as client:
        client.head(1)
        client.data(1)
        client.until(frames.HEADERS)
        client.send(settings(initial_window_size=1))
        assert client.until(frames.DATA).payload == LIVE[:1]
        client.send(frames.window_update(1, 2))
        assert client.until(frames.DATA).payload == LIVE[1:3]
        client.send(settings(initial_window_size=0))
        client.send(frames.window_update(1, 1))
        client.send(frames.window_update(1, 100))
        rest = b""
        while len(rest) < 4:
            rest += client.until(frames.DATA).payload
        assert rest == LIVE[3:]
        assert client.answer() == ONE_CALL


def test_streams_end_at_any_time(client: RawClient) -> None:
    """Frames of streams that have ended are not looked at."""
    client.head(1)
    client.send(frames.rst_stream(1, ErrorCode.CANCEL))
    client.data(1)
    client.send(frames.window_update(1, 5) + frames.rst_stream(1, ErrorCode.CANCEL))
    client.head(3)
    client.data(3)
    assert client.answer() == ONE_CALL


def test_many_calls_in_one_piece(client: RawClient) -> None:
    """Each answer is whole, and those before a mistake are given."""
    streams = range(1, 201, 2)
    block = frames.literals(*((name.encode(), value.encode()) for name, value in CALL))
    calls = [
        frames.frame(frames.HEADERS, frames.END_HEADERS, stream, block)
        + frames.frame(frames.DATA, frames.END_STREAM, stream, NOTHING)
        for stream in streams
    ]
    client.send(b"".join(calls) + frames.frame(frames.PUSH_PROMISE, frames.END_HEADERS, 1))
    found: dict[int, list[int]] = {stream: [] for stream in streams}
    while (frame := client.next()) is not None and frame.kind != frames.GOAWAY:
        if frame.stream:
            found[frame.stream].append(frame.kind)
    assert list(found.values()) == [[frames.HEADERS, frames.DATA, frames.HEADERS]] * len(streams)
    assert frame is not None
    assert frame.payload.startswith(struct.pack(">II", streams[-1], ErrorCode.PROTOCOL_ERROR))
    assert client.next() is None


def test_trailers_end_a_request(client: RawClient) -> None:
    client.head(1)
    client.data(1, flags=0)
    client.head(1, frames.END_HEADERS | frames.END_STREAM, fields=(("x-checksum", "1"),))
    assert client.answer() == ONE_CALL


def test_more_streams_than_there_may_be(client: RawClient) -> None:
    for number in range(1025):
        client.head(2 * number + 1)
    refused = client.until(frames.RST_STREAM)
    assert (refused.stream, refused.payload) == (2049, ErrorCode.REFUSED_STREAM.to_bytes(4, "big"))
    client.data(1)
    assert client.answer() == ONE_CALL


BLOCK = hpack.Encoder().encode(STREAM_CALL)
TWICE = frames.frame(frames.DATA, frames.END_STREAM, 1, NOTHING) * 2
FLOOD = frames.frame(frames.PING, 0, 0, bytes(8)) * 5000
ENDLESS = frames.frame(frames.HEADERS, 0, 1, bytes(60_000)) + frames.frame(frames.CONTINUATION, 0, 1, bytes(60_000))

BROKEN: dict[str, tuple[bytes, ErrorCode]] = {
    "data of no stream": (frames.frame(frames.DATA, 0, 1, NOTHING), ErrorCode.PROTOCOL_ERROR),
    "data of stream 0": (frames.frame(frames.DATA, 0, 0, NOTHING), ErrorCode.PROTOCOL_ERROR),
    "data behind the end": (frames.frame(frames.HEADERS, 4, 1, BLOCK) + TWICE, ErrorCode.STREAM_CLOSED),
    "a stream of the server's": (frames.frame(frames.HEADERS, 4, 2, BLOCK), ErrorCode.PROTOCOL_ERROR),
    "a head that refers to nothing": (frames.frame(frames.HEADERS, 4, 1, b"\xff\xff\xff"), ErrorCode.COMPRESSION_ERROR),
    "a head of padding": (frames.frame(frames.HEADERS, 0xC, 1, b"\x09a"), ErrorCode.PROTOCOL_ERROR),
    "a ping within a head": (frames.frame(frames.HEADERS, 0, 1) + FLOOD[:17], ErrorCode.PROTOCOL_ERROR),
    "a head without end": (ENDLESS, ErrorCode.ENHANCE_YOUR_CALM),
    "nothing to continue": (frames.frame(frames.CONTINUATION, 4, 1), ErrorCode.PROTOCOL_ERROR),
    "a push": (frames.frame(frames.PUSH_PROMISE, 4, 1), ErrorCode.PROTOCOL_ERROR),
    "a frame too large": (frames.head(2**20, frames.PING, 0, 0), ErrorCode.FRAME_SIZE_ERROR),
    "a short ping": (frames.frame(frames.PING, 0, 0, b"1"), ErrorCode.FRAME_SIZE_ERROR),
    "short settings": (frames.frame(frames.SETTINGS, 0, 0, bytes(5)), ErrorCode.FRAME_SIZE_ERROR),
    "frames of one byte": (settings(max_frame_size=1), ErrorCode.PROTOCOL_ERROR),
    "a window of 2 GiB": (settings(initial_window_size=2**31), ErrorCode.FLOW_CONTROL_ERROR),
    "a window wider than that": (frames.window_update(0, 2**31 - 1), ErrorCode.FLOW_CONTROL_ERROR),
    "a window no wider": (frames.window_update(0, 0), ErrorCode.FLOW_CONTROL_ERROR),
    "a reset of no stream": (frames.rst_stream(7, ErrorCode.CANCEL), ErrorCode.PROTOCOL_ERROR),
    "a flood of pings": (FLOOD, ErrorCode.ENHANCE_YOUR_CALM),
}


@pytest.mark.parametrize(("wrong", "code"), BROKEN.values(), ids=BROKEN)
def test_what_is_no_http2_ends_the_connection(client: RawClient, wrong: bytes, code: ErrorCode) -> None:
    client.send(wrong)
    assert client.failure() is code


def test_heads_that_are_too_long(client: RawClient) -> None:
    client.head(1, fields=(*CALL, *((f"x-{number}", "v" * 1000) for number in range(20))))
    assert client.failure() is ErrorCode.ENHANCE_YOUR_CALM


def test_a_table_that_changes(client: RawClient) -> None:
    """A head that is nothing but references means something else when what it refers to has changed."""
    paths = ["ServerLive", "ServerReady", "NoSuch"]
    statuses = []
    for number, path in enumerate([*paths, *paths, *paths]):
        fields = (*CALL[:2], (":path", f"/inference.GRPCInferenceService/{path}"), *CALL[3:])
        for again in range(2):
            stream = 4 * number + 2 * again + 1
            client.head(stream, fields=fields)
            client.data(stream)
            statuses.append(client.answer()["grpc-status"])
    assert statuses == ["0", "0", "0", "0", "12", "12"] * 3


def test_a_table_that_is_emptied(client: RawClient) -> None:
    """The same bytes mean another head when the table has been filled anew, in one frame and in several."""
    encoder = hpack.Encoder()
    stream = 1

    def ask(path: str) -> tuple[bytes, str]:
        nonlocal stream
        block = encoder.encode((*CALL[:2], (":path", f"/inference.GRPCInferenceService/{path}"), *CALL[3:]))
        at = len(block) // 2 if stream % 4 == 3 else 0
        if at:
            client.send(frames.frame(frames.HEADERS, 0, stream, block[:at]))
            client.send(frames.frame(frames.CONTINUATION, frames.END_HEADERS, stream, block[at:]))
        else:
            client.send(frames.frame(frames.HEADERS, frames.END_HEADERS, stream, block))
        client.data(stream)
        stream += 2
        return block, client.answer()["grpc-status"]

    first = [ask("ServerLive") for _ in range(4)]
    encoder.header_table_size = 0
    encoder.header_table_size = 4096
    second = [ask("NoSuch") for _ in range(4)]
    assert first[-1][0] == second[-1][0] != first[0][0]
    assert [status for _, status in first + second] == ["0"] * 4 + ["12"] * 4


def test_heads_without_a_table(client: RawClient) -> None:
    """As clients write them that keep no table, with names and values of any length."""
    fields = (
        *((name.encode(), value.encode()) for name, value in CALL),
        (b"x-long", b"v" * 300),
        (b"x-" + b"n" * 200, b""),
    )
    block = frames.literals(*fields) + b"\x1f\x00\x03mid" + b"\x0f\x00\x01?"
    for stream in (1, 3, 5):
        client.send(frames.frame(frames.HEADERS, frames.END_HEADERS, stream, block))
        client.data(stream)
        assert client.answer() == ONE_CALL


@given(st.integers(0, 2**32))
@examples(15)
def test_long_messages(served: Served, seed: int) -> None:
    """Of several requests at once, in frames of any length with and without padding; some are given up half-way."""
    some = random.Random(seed)
    start = frames.PREFACE + settings(initial_window_size=2**31 - 1) + frames.window_update(0, 2**30)
    fields = (*CALL[:2], (":path", "/inference.GRPCInferenceService/ModelInfer"), *CALL[3:])
    with RawClient(served.address, start) as client:
        sent: dict[int, bytes] = {}
        left: dict[int, bytes] = {}
        for stream in (1, 3, 5):
            sent[stream] = some.randbytes(some.choice([0, 1, 65_000, 65_536, 200_000, 1_500_000]))
            message = request("UINT8", described("IN", "UINT8", [1, len(sent[stream])]), raw=(sent[stream],))
            written = message.SerializeToString()
            left[stream] = struct.pack(">?I", False, len(written)) + written
            client.head(stream, fields=fields)
        given_up = some.choice([0, 0, 1, 3, 5])
        while left:
            stream = some.choice(list(left))
            size = some.choice([0, 1, 5, 1000, 16_384, 70_000, 300_000, 2**20 - 256])
            data, left[stream] = left[stream][:size], left[stream][size:]
            padding = some.choice([0, 1, 200])
            padded = bytes((padding,)) + data + bytes(padding) if padding else data
            flags = (frames.PADDED if padding else 0) | (0 if left[stream] else frames.END_STREAM)
            client.data(stream, padded, flags)
            if not left[stream]:
                del left[stream]
            elif stream == given_up:
                client.send(frames.rst_stream(stream, ErrorCode.CANCEL))
                del left[stream], sent[stream]
        found = dict.fromkeys(sent, b"")
        ends = 0
        while ends < len(sent):
            frame = client.next()
            assert frame is not None
            if frame.kind == frames.DATA:
                found[frame.stream] += frame.payload
            ends += frame.kind == frames.HEADERS and frame.flags & frames.END_STREAM
    for stream, data in sent.items():
        [output] = service_pb2.ModelInferResponse.FromString(found[stream][5:]).raw_output_contents
        assert output == data


def test_other_protocols_are_told(served: Served) -> None:
    host, _, port = served.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as plain:
        plain.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        answer = b""
        while more := plain.recv(4096):
            answer += more
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.endswith(b"\r\n\r\nThis port speaks gRPC.\n")


@given(st.integers(0, 2**32))
@examples(15)
def test_noise(served: Served, seed: int) -> None:
    """Frames at random, well-formed or not, in any order: the server closes, or goes on."""
    noise = random.Random(seed)
    with RawClient(served.address) as client:
        try:
            client.head(1)
            for _ in range(noise.randrange(1, 30)):
                payload = noise.randbytes(noise.choice([0, 1, 4, 5, 6, 8, 8, 40]))
                stream = noise.choice([0, 1, 1, 3, 2**31 - 1])
                client.send(
                    frames.frame(noise.choice([*range(10), 77]), noise.choice([0, 1, 4, 5, 8, 0xFF]), stream, payload)
                )
            client.send(struct.pack(">I", noise.getrandbits(32)))
        except OSError:  # it has closed already
            pass
    works(served)
