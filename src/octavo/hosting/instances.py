"""The processes of a hosted model, as a frontend sees them, and which of them is asked for a request."""

from collections.abc import Collection, Iterable, Iterator

from msgspec.structs import replace

from octavo.hosting.info import HostedInfo
from octavo.hosting.instance import Client, Instance
from octavo.hosting.lanes import SequenceId
from octavo.hosting.launch import workers_of
from octavo.hosting.pending import Pending
from octavo.hosting.sequence_routing import process_of
from octavo.hosting.wire import Details, Infer


class Instances:
    """Those that are asked, and those that only end what they have begun.

    Attributes:
        staying: by name. leaving: the others. first: the name of the one with the number 1.
    """

    def __init__(self, client: Client) -> None:
        self.staying: dict[str, Instance] = {}
        self.leaving: dict[str, Instance] = {}
        self._client = client
        self.first = ""

    def __iter__(self) -> Iterator[Instance]:
        """All of them."""
        yield from self.staying.values()
        yield from self.leaving.values()

    @property
    def names(self) -> Collection[str]:
        """Of all of them."""
        return {*self.staying, *self.leaving}

    def get(self, name: str) -> Instance:
        """One of them."""
        return self.staying.get(name) or self.leaving[name]

    def add(self, name: str) -> None:
        """There is another one. The one with the number 1 comes first."""
        self.first = self.first or name
        self.staying[name] = Instance(name, self._client)

    def keep(self, names: Collection[str]) -> None:
        """No others are asked any more, but for sequences that they have begun."""
        for name in [each for each in self.staying if each not in names]:
            self.leaving[name] = self.staying.pop(name)

    def forget(self, name: str) -> None:
        """One that was leaving has left."""
        self.leaving.pop(name, None)

    # --- who is asked -------------------------------------------------------------------------------------------------

    def least_busy(self, pending: Pending) -> Instance | None:
        """The one that has least to do of those that can be asked for a request."""
        best: Instance | None = None
        for each in self.staying.values():
            if (best is None or len(each.outstanding) < len(best.outstanding)) and each.can_take(pending):
                best = each
        return best

    def of_sequence(self, sequence: SequenceId, pending: Pending, info: HostedInfo) -> Instance:
        """The one that computes a sequence; or one that may have begun it when there were others, which says whether it
        has: then it is the one."""
        best = self.staying[process_of(sequence, self.staying)]
        for other in self._earlier(sequence, info.earlier):
            if other is not best and other.name not in pending.asked and other.can_take(pending):
                pending.asked = (*pending.asked, other.name)
                _only_if_known(pending, known=True)
                return other
        if pending.asked:
            _only_if_known(pending, known=False)
        return best

    def _earlier(self, sequence: SequenceId, numbers: Iterable[tuple[int, ...]]) -> Iterator[Instance]:
        for each in numbers:
            name = process_of(sequence, workers_of(self.first, each))
            if name in self.names:
                yield self.get(name)


def _only_if_known(pending: Pending, *, known: bool) -> None:
    message = pending.message
    assert isinstance(message, Infer)
    pending.message = replace(message, details=replace(message.details or Details(), known=known))
