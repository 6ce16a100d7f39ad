"""An ensemble with the models that it has at a moment: who waits for which tensor, and in which shape it takes it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from octavo.hosting.batching import Batching
from octavo.hosting.ensemble import Ensemble, EnsembleStep
from octavo.hosting.ensemble_check import check_models
from octavo.hosting.ensemble_links import Known, Link
from octavo.hosting.info import HostedInfo
from octavo.hosting.signature import TensorSpec
from octavo.hosting.tensors import Encoded

PLATFORM = "ensemble"
"""Triton's name, for what computes nothing itself."""

REQUEST = -1
"""In the place of a step's number, for tensors that the request has."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How a tensor gets in or out where a batch means something on one side only.

    Attributes:
        spec: what is expected there. batched: whether with a batch dimension.
    """

    spec: TensorSpec
    batched: bool

    def fit(self, tensor: Encoded) -> Encoded:
        """The same elements, as Triton gives them on: a batch of one for what is no batch, or the other way round."""
        dims = self.spec.dims
        if dims is None:
            return tensor
        if self.batched and self.spec.admits(tensor.shape):
            return Encoded(tensor.datatype, (1, *tensor.shape), tensor.data)
        if not self.batched and not self.spec.admits(tensor.shape) and tensor.shape[:1] == (1,):
            return Encoded(tensor.datatype, tensor.shape[1:], tensor.data)
        return tensor


@dataclass(frozen=True, slots=True)
class Plan:
    """What of an ensemble some outputs need.

    Attributes:
        outputs: that are wanted. readers: the steps that take each tensor that somebody needs, by number.
        reads: how often each is taken, outputs being taken by whoever asked.
        links: by the step that gives their tensors, or `REQUEST`.
        last: the step whose results are those of the ensemble just as they are, but for their names.
    """

    outputs: tuple[str, ...]
    readers: Mapping[str, tuple[int, ...]]
    reads: Mapping[str, int]
    links: Mapping[int, Link]
    last: int | None


class Graph:
    """An ensemble whose models are known.

    Attributes:
        info: the ensemble as a model. models: of the steps.
        inputs, outputs: how tensors change their shapes on the way into each step, and to whoever asked.
        followers: of each step, those that its results lead to, but not beyond one that has many itself.
        known: what each step was asked for, by its inputs.

    Raises:
        ConfigError: they do not fit together.
    """

    def __init__(self, ensemble: Ensemble, models: Sequence[HostedInfo]) -> None:
        self.ensemble = ensemble
        self.models = tuple(models)
        streams = check_models(ensemble, models)
        size = ensemble.max_batch_size
        self._sources = {
            tensor: number for number, step in enumerate(ensemble.steps) for tensor in step.outputs.values()
        }
        self.info = HostedInfo(
            name=ensemble.name,
            runtime=PLATFORM,
            platform=PLATFORM,
            inputs=ensemble.inputs,
            outputs=tuple(map(self._with_labels, ensemble.outputs)),
            batching=Batching(max_batch_size=size) if size else None,
            queue=Batching(max_batch_size=size or 1),
            streams=streams,
            details=True,
            response_cache=ensemble.response_cache,
            ensemble=ensemble,
            config=_complete(ensemble, streams=streams),
        )
        batched = dict.fromkeys((spec.name for spec in ensemble.inputs), size > 0)
        batched |= {tensor: models[number].max_batch_size > 0 for tensor, number in self._sources.items()}
        self.inputs = [
            _shapes(step.inputs, model.inputs, model.max_batch_size > 0, batched)
            for step, model in zip(ensemble.steps, models, strict=True)
        ]
        names = {spec.name: spec.name for spec in ensemble.outputs}
        self.outputs = _shapes(names, ensemble.outputs, size > 0, batched)
        self.followers = [self._followers(number) for number in range(len(ensemble.steps))]
        self.known = [Known() for _ in ensemble.steps]
        self._plans: dict[tuple[str, ...], Plan] = {}

    def plan(self, outputs: tuple[str, ...]) -> Plan:
        """What is to be done for some outputs; none for all."""
        found = self._plans.get(outputs)
        if found is None:
            wanted = outputs or tuple(spec.name for spec in self.ensemble.outputs)
            found = self._plans[outputs] = self._make(tuple(dict.fromkeys(wanted)))
        return found

    def step(self, number: int) -> EnsembleStep:
        """One of them."""
        return self.ensemble.steps[number]

    def origin(self, tensor: str) -> str:
        """Where a tensor comes from, for errors."""
        number = self._sources.get(tensor)
        return "the request has" if number is None else f"step {number} of model '{self.step(number).model}' gave"

    def _with_labels(self, output: TensorSpec) -> TensorSpec:
        """An output with the labels of the model's that it is, if it has none of its own."""
        number = self._sources.get(output.name)
        if output.labels or number is None:
            return output
        names = {tensor: name for name, tensor in self.step(number).outputs.items()}
        [spec] = [each for each in self.models[number].outputs if each.name == names[output.name]]
        return replace(output, labels=spec.labels)

    def _followers(self, number: int) -> frozenset[int]:
        found: set[int] = set()
        waiting = [number]
        while waiting:
            given = set(self.step(waiting.pop()).outputs.values())
            for other, step in enumerate(self.ensemble.steps):
                if other not in found and not given.isdisjoint(step.inputs.values()):
                    found.add(other)
                    if not self.models[other].streams:
                        waiting.append(other)
        return frozenset(found)

    def _make(self, outputs: tuple[str, ...]) -> Plan:
        needed: set[int] = set()
        waiting = list(outputs)
        while waiting:
            number = self._sources.get(waiting.pop())
            if number is not None and number not in needed:
                needed.add(number)
                waiting += self.step(number).inputs.values()
        readers: dict[str, tuple[int, ...]] = dict.fromkeys(outputs, ())
        for number in sorted(needed):
            for tensor in dict.fromkeys(self.step(number).inputs.values()):
                readers[tensor] = (*readers.get(tensor, ()), number)
        reads = {tensor: len(steps) + (tensor in outputs) for tensor, steps in readers.items()}
        return Plan(outputs, readers, reads, self._links(readers, reads), self._last(outputs, readers))

    def _links(self, readers: Mapping[str, Sequence[int]], reads: Mapping[str, int]) -> dict[int, Link]:
        found: dict[int, Link] = {}
        names = {REQUEST: {spec.name: spec.name for spec in self.ensemble.inputs}}
        names |= {number: dict(step.outputs) for number, step in enumerate(self.ensemble.steps)}
        for number, given in names.items():
            steps = {step for tensor in given.values() for step in readers.get(tensor, ())}
            if len(steps) != 1 or any(reads.get(tensor) != 1 for tensor in given.values()):
                continue
            [taker] = steps
            inputs = {tensor: name for name, tensor in self.step(taker).inputs.items()}
            if inputs.keys() == set(given.values()) and len(inputs) == len(self.step(taker).inputs) == len(given):
                found[number] = Link(taker, {name: inputs[tensor] for name, tensor in given.items()})
        return found

    def _last(self, outputs: tuple[str, ...], readers: Mapping[str, Sequence[int]]) -> int | None:
        number = self._sources.get(outputs[0])
        if number is None or set(self.step(number).outputs.values()) != set(outputs):
            return None
        return None if any(readers[each] or each in self.outputs for each in outputs) else number


def _complete(ensemble: Ensemble, *, streams: bool) -> dict[str, Any] | None:
    """Its configuration with what its models make of it."""
    if ensemble.config is None:
        return None
    return {**ensemble.config, "model_transaction_policy": {"decoupled": streams}}


def _shapes(
    mapping: Mapping[str, str], specs: Sequence[TensorSpec], batched: bool, sources: Mapping[str, bool]
) -> dict[str, Shape]:
    """Those of the tensors that a batch means something for on one side only."""
    by_name = {spec.name: spec for spec in specs}
    return {name: Shape(by_name[name], batched) for name, tensor in mapping.items() if sources[tensor] is not batched}
