"""The waiting queue: by priority, then by fair share among tenants, then by arrival."""

from collections import deque

from octavo.engine.sequence import Sequence


class WaitingQueue:
    """Sequences that hold no row and no page.

    Fairness is that of virtual token counters (Sheng et al., "Fairness in serving large language models", 2024): the
    tenant that was served the fewest tokens goes first. What counts is what was computed, as it is computed (`charge`).
    A tenant that begins to wait starts at the virtual time, the count of the tenant served least among those that
    wait, so that idling earns no credit and being new is no handicap. While nobody waits everybody has what they ask
    for: counts begin anew, equal for all, with the next one that must wait. Preempted sequences return to the head of
    their tenant's line.
    """

    def __init__(self) -> None:
        self._lines: dict[int, dict[str, deque[Sequence]]] = {}
        self._served: dict[str, int] = {}
        self._virtual_time = 0
        self._waiting_of_tenant: dict[str, int] = {}
        self.requests = 0
        self.tokens = 0

    def __len__(self) -> int:
        return self.requests

    def push(self, sequence: Sequence, *, front: bool = False) -> None:
        """Add a sequence behind its tenant's others, or before them when it was preempted."""
        tenant = sequence.request.tenant
        if tenant not in self._waiting_of_tenant:
            self._begin_to_wait(tenant)
        self._waiting_of_tenant[tenant] += 1
        line = self._lines.setdefault(sequence.request.priority, {}).setdefault(tenant, deque())
        if front:
            line.appendleft(sequence)
        else:
            line.append(sequence)
        self.requests += 1
        self.tokens += sequence.length

    def _begin_to_wait(self, tenant: str) -> None:
        if self._waiting_of_tenant:
            least = min(self._served[other] for other in self._waiting_of_tenant)
            self._virtual_time = max(self._virtual_time, least)
        else:
            self._served.clear()
        self._served[tenant] = max(self._served.get(tenant, 0), self._virtual_time)
        self._waiting_of_tenant[tenant] = 0

    def charge(self, tenant: str, tokens: int) -> None:
        """Note that tokens of a tenant were computed while somebody waited."""
        self._served[tenant] = self._served.get(tenant, self._virtual_time) + tokens

    def peek(self) -> Sequence | None:
        """The sequence whose turn it is."""
        if not self._lines:
            return None
        tenants = self._lines[min(self._lines)]
        return min(tenants.values(), key=lambda line: (self._served[line[0].request.tenant], line[0].number))[0]

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it stands."""
        request = sequence.request
        tenants = self._lines[request.priority]
        line = tenants[request.tenant]
        if line[0] is sequence:
            line.popleft()
        else:
            line.remove(sequence)
        if not line:
            del tenants[request.tenant]
        if not tenants:
            del self._lines[request.priority]
        self._waiting_of_tenant[request.tenant] -= 1
        if not self._waiting_of_tenant[request.tenant]:
            del self._waiting_of_tenant[request.tenant]
        self.requests -= 1
        self.tokens -= sequence.length
