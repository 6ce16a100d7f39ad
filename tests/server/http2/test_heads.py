"""What is remembered of the heads of a connection's requests."""

from unittest.mock import Mock

import hpack

from octavo.server.http2.heads import MAX_REMEMBERED, HeadReader


def test_heads_are_understood_once_but_for_long_ones() -> None:
    """However they are written: a few bytes may stand for long fields that came before."""
    application, encoder = Mock(), hpack.Encoder()
    reader = HeadReader(application)
    long = (b"authorization", bytes(MAX_REMEMBERED))
    reader.read(encoder.encode([long, (b":path", b"/")]))  # they are in the table now
    application.reset_mock()
    short_block, long_block = encoder.encode([(b":path", b"/")]), encoder.encode([long, (b":path", b"/")])
    assert len(long_block) < 10
    for _ in range(3):
        reader.read(short_block)
        reader.read(long_block)
    fields = [each.args[0] for each in application.read_head.mock_calls]
    assert fields.count([(b":path", b"/")]) == 1
    assert fields.count([long, (b":path", b"/")]) == 3
