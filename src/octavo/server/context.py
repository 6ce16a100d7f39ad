"""What the routes share: the models, the settings, the counters, and what is being worked on."""

import random
from collections.abc import Iterable

from prometheus_client import CollectorRegistry

from octavo.deployments import AnyDeployment, Deployment, Deployments
from octavo.deployments.control import Administer
from octavo.deployments.prepare import SEED_BITS
from octavo.deployments.settings import MAX_NAME
from octavo.engine.client import EngineState
from octavo.engine.config import ModelInfo
from octavo.hosting.response_cache import ResponseCache
from octavo.server.body import LargeBodies
from octavo.server.entrance import Entrance
from octavo.server.errors import ApiError, failed, invalid, unavailable
from octavo.server.forwarding import header_pattern
from octavo.server.inference.collector import CacheCollector, HostedCollector
from octavo.server.inference.model_figures import ModelFiguresCollector
from octavo.server.inference.shared_memory import SharedMemory
from octavo.server.keys import PriorityRange
from octavo.server.machine_metrics import MachineCollector
from octavo.server.metrics import EngineCollector, GenerationMetrics, HttpMetrics, new_registry
from octavo.server.reply import InFlight
from octavo.server.response_store import ResponseStore, StoreLimits
from octavo.server.restrictions import Restrictions
from octavo.server.settings import ServerSettings
from octavo.server.together import Together
from octavo.server.tracing import Tracer

CONVERSATION_BODIES = 4
"""So many of the largest bodies may a conversation have in the store that a request goes on with."""

LARGE_BODIES_HELD = 32
"""Of the maximum size; as many bytes of large bodies may have been received and not yet been turned into requests."""

TENSOR_BODIES_HELD = 16
"""Of the maximum size; as many bytes of large bodies with tensors may belong to requests that are not answered yet."""

LISTED = 10
"""Models that an error lists at most."""


class Server:
    """The state behind the routes.

    Args:
        administer: does what changes which models there are; None if nothing does.
        cache: where the deployments keep answers, if they do.
        tracer: of requests for hosted models; without one, none is traced.
    """

    def __init__(
        self,
        settings: ServerSettings,
        deployments: Deployments,
        administer: Administer | None = None,
        cache: ResponseCache | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self.settings = settings
        self.administer = administer
        self.tracer = tracer or Tracer()
        self.deployments = deployments
        self.in_flight = InFlight()
        self.entrance = Entrance()
        self.large_bodies = LargeBodies(LARGE_BODIES_HELD * settings.max_body_bytes)
        self.tensor_bodies = LargeBodies(TENSOR_BODIES_HELD * settings.max_tensor_body_bytes)
        self.http_forwarding = header_pattern(settings.http_header_forward_pattern, "http_header_forward_pattern")
        self.http_restrictions = Restrictions(settings.http_restricted_api, "http_restricted_api")
        self.shared_memory = SharedMemory(allowed=settings.allow_client_shm)
        self.responses = ResponseStore(
            settings.store,
            StoreLimits(
                responses=settings.store_max_responses,
                bytes=settings.store_max_bytes,
                seconds=settings.store_max_age,
                conversation_bytes=CONVERSATION_BODIES * settings.max_body_bytes,
            ),
        )
        known, counted = new_registry(), CollectorRegistry()
        known.register(EngineCollector(deployments))
        known.register(ModelFiguresCollector(deployments))
        if settings.allow_cpu_metrics and MachineCollector.is_possible():
            known.register(MachineCollector())
        if cache is not None:
            known.register(CacheCollector(cache))
        counted.register(HostedCollector(deployments))
        self.http_metrics = HttpMetrics(counted)
        self._seeds = random.Random(settings.seed)
        self.generation_metrics = GenerationMetrics(counted)
        self.together = Together(deployments, counted, known)
        deployments.subscribe(self._begin_series)

    def close(self) -> None:
        """Let go of what outlives requests."""
        self.responses.close()
        self.shared_memory.close()

    def seed(self) -> int:
        """The next seed for a request that has none."""
        return self._seeds.getrandbits(SEED_BITS)

    def model(self, name: str) -> Deployment:
        """The deployment that a request names; the first one if it names none. Raises ApiError: 404."""
        return self.named(name or next((each.name for each in self.deployments.language), ""))

    def named(self, name: str) -> Deployment:
        """The language model of that name or alias. Raises ApiError: 404 for no model, 400 for one of another kind."""
        deployment = self.any_named(name)
        if not isinstance(deployment, Deployment):
            raise invalid(
                f"The model {name[:MAX_NAME]!r} is no language model; POST /v1/models/{deployment.name}/predict and "
                f"/v2/models/{deployment.name}/infer take its requests.",
                "model",
            )
        return deployment

    def any_named(self, name: str) -> AnyDeployment:
        """The deployment of that name or alias. Raises ApiError: 404."""
        deployment = self.deployments.get(name)
        if deployment is None:
            there = [each.name for each in self.deployments]
            more = f" and {len(there) - LISTED} more" if len(there) > LISTED else ""
            listed = f"; there are: {', '.join(there[:LISTED])}{more}" if there else ""
            message = f"The model {name[:MAX_NAME]!r} does not exist{listed}."
            raise ApiError(404, message, param="model", code="model_not_found")
        return deployment

    def _begin_series(self, deployments: Iterable[AnyDeployment]) -> None:
        for each in deployments:
            if isinstance(each, Deployment):
                self.generation_metrics.add(each.name)

    def admit(self, name: str) -> tuple[Deployment, ModelInfo]:
        """The model for a new generation, and what is known of it once it is loaded.

        Raises:
            ApiError: 404 if there is no such model, 503 if nothing new is begun at the moment.
        """
        self.in_flight.admit()
        model = self.model(name)
        engine = model.engine
        if engine.state is EngineState.FAILED:
            raise failed(f"The engine failed: {engine.failure}.")
        if engine.info is None:
            raise unavailable(f"The model '{model.name}' is loading.", retry_after=2.0)
        return model, engine.info

    def priority(self, wanted: int | None, allowed: PriorityRange | None) -> int:
        """The priority of a request; without a wish the usual 0, or what is nearest to it.

        Args:
            allowed: what its key may ask for; None is what the server lets everybody ask for.

        Raises:
            ApiError: 400.
        """
        lowest, highest = allowed or self.settings.priorities
        if wanted is None:
            return min(max(0, lowest), highest)
        if not lowest <= wanted <= highest:
            raise invalid(f"'priority' is {wanted}, but must be from {lowest} to {highest} for this key.", "priority")
        return wanted
