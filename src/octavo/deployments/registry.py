"""The deployments of a server by name, and which of them requests are using."""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from octavo.deployments.control import Listed
from octavo.deployments.deployment import Deployment
from octavo.deployments.hosted import HostedDeployment
from octavo.hosting.model_client import ModelClient

AnyDeployment = Deployment | HostedDeployment


class Use:
    """A request's hold on a deployment, from its arrival to its end."""

    def __init__(self, deployments: "Deployments") -> None:
        self.deployment: AnyDeployment | None = None
        self._deployments = deployments

    def choose(self, deployment: AnyDeployment) -> None:
        """The request has found out which deployment it is for."""
        self.deployment = deployment
        self._deployments.note_change()

    def end(self) -> None:
        """The request has ended."""
        self._deployments.uses.discard(self)
        self._deployments.note_change()


class Deployments:
    """What a server offers. It can change while the server runs: a request keeps the deployment that it began with.

    The names may be asked for in any thread; everything else belongs to the event loop.

    Attributes:
        uses: of the requests that are there.
        as_tensors: makes of a language model one that is asked with tensors, streaming or not; None if nothing does.
        listed: the models of repositories that are not offered, with why. loading: whether some of them are to be
            there from the start, and are not yet.
    """

    as_tensors: Callable[[Deployment, bool], ModelClient] | None = None
    listed: Sequence[Listed] = ()
    loading = False

    def __init__(self, deployments: Iterable[AnyDeployment] = ()) -> None:
        self.uses: set[Use] = set()
        self._changed = asyncio.Event()
        self._subscribers: list[Callable[[Iterable[AnyDeployment]], None]] = []
        self.offer(deployments)

    def offer(self, deployments: Iterable[AnyDeployment]) -> None:
        """Offer these from now on, and no others."""
        self._offered = tuple(deployments)  # the first serves requests that name none
        versions: dict[str, dict[str, AnyDeployment]] = {}
        for each in self._offered:
            for name in (each.name, *each.aliases):
                versions.setdefault(name, {})[each.version] = each
        self._versions = versions
        self._by_name = {name: found[max(found, key=int)] for name, found in versions.items()}
        for subscriber in self._subscribers:
            subscriber(self._offered)

    def subscribe(self, subscriber: Callable[[Iterable[AnyDeployment]], None]) -> None:
        """Have what is offered told, now and whenever it changes."""
        self._subscribers.append(subscriber)
        subscriber(self._offered)

    def __iter__(self) -> Iterator[AnyDeployment]:
        return iter(self._offered)

    @property
    def language(self) -> list[Deployment]:
        """The language models."""
        return [each for each in self._offered if isinstance(each, Deployment)]

    @property
    def hosted(self) -> list[HostedDeployment]:
        """The hosted models."""
        return [each for each in self._offered if isinstance(each, HostedDeployment)]

    def get(self, name: str) -> AnyDeployment | None:
        """The deployment of that name or alias, in its latest version."""
        return self._by_name.get(name)

    def versions(self, name: str) -> Mapping[str, AnyDeployment]:
        """Every version of a name or alias."""
        return self._versions.get(name, {})

    def begin(self) -> Use:
        """A request has arrived, and may choose any of the deployments that are offered now."""
        use = Use(self)
        self.uses.add(use)
        return use

    async def unused(self, deployment: AnyDeployment) -> None:
        """Wait until the last request that uses a deployment has ended, if no new ones come to it."""
        undecided = {use for use in self.uses if use.deployment is None}
        while any(use.deployment is deployment or (use.deployment is None and use in undecided) for use in self.uses):
            self._changed.clear()
            await self._changed.wait()

    def note_change(self) -> None:
        """Requests have chosen or ended."""
        self._changed.set()
