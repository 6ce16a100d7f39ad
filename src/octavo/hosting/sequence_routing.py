"""Which process of a model computes a sequence: the same one for all its requests, whichever frontend is asked."""

from collections.abc import Iterable, Sequence
from zlib import crc32

from octavo.hosting.errors import Code, InferenceError
from octavo.hosting.instance import Instance
from octavo.hosting.lanes import SequenceId
from octavo.hosting.pending import Pending
from octavo.hosting.wire import SEQUENCE_START, Details, Infer

_NOT_BEGUN = "must specify the START flag on the first request of the sequence"


def sequence_of(pending: Pending) -> SequenceId:
    """That of a request; 0 or "" for none."""
    return _details(pending).sequence


def process_of(sequence: SequenceId, names: Iterable[str]) -> str:
    """The one that computes a sequence, whether or not it can be asked now: with more or fewer processes most sequences
    keep theirs."""
    return max(names, key=lambda name: crc32(f"{name}\0{sequence}".encode()))


def still_to_begin(lost: Sequence[Pending]) -> tuple[list[Pending], list[tuple[Pending, InferenceError]]]:
    """What becomes of requests that waited at a process which has ended: those that another can compute, and those that
    belong to a sequence of which it knew more than they say."""
    begin: set[SequenceId] = set()
    again, ended = [], []
    for pending in lost:
        details = _details(pending)
        sequence = details.sequence
        if details.flags & SEQUENCE_START:
            begin.add(sequence)
        if not sequence or sequence in begin:
            again.append(pending)
        else:
            why = f"the process of the model ended that computed sequence {sequence}: it has to begin again"
            ended.append((pending, InferenceError(why, Code.UNAVAILABLE)))
    return again, ended


def explained(refusal: str, instance: Instance) -> str:
    """What a process says of a request; with the reason, if it knows nothing of a sequence because of its own birth."""
    about, not_begun, _ = refusal.partition(_NOT_BEGUN)
    if instance.deaths and not_begun:
        return f"{about}{not_begun}; the process of the model ended meanwhile, and its sequences with it"
    return refusal


def _details(pending: Pending) -> Details:
    message = pending.message
    return (message.details if isinstance(message, Infer) else None) or _NONE


_NONE = Details()
