"""`pb_utils.ModelConfig`: what a model completes of its configuration, and how it reads it."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

_INPUT = ("name", "data_type", "dims", "optional")
_OUTPUT = ("name", "data_type", "dims")
_INVALID = "TYPE_INVALID"


class ModelConfig:
    """A model's configuration, which its `auto_complete_config` completes.

    Args:
        model_config: as JSON.
    """

    def __init__(self, model_config: str) -> None:
        self._model_config: dict[str, Any] = json.loads(model_config)

    def as_dict(self) -> dict[str, Any]:
        """What there is of it."""
        return self._model_config

    @property
    def _name(self) -> str:
        return str(self._model_config["name"])

    def set_max_batch_size(self, max_batch_size: int) -> None:
        """Set the size of the largest batch. Raises ValueError: the configuration has a larger one."""
        there = self._model_config.get("max_batch_size", 0)
        if there > max_batch_size:
            raise ValueError(
                f"configuration specified max_batch_size {there}, but in auto-complete-config function for model "
                f"'{self._name}' specified max_batch_size {max_batch_size}"
            )
        self._model_config["max_batch_size"] = max_batch_size

    def set_dynamic_batching(self) -> None:
        """Have requests computed together. Raises ValueError: the configuration has another scheduler."""
        for other in ("sequence_batching", "ensemble_scheduling"):
            if other in self._model_config:
                raise ValueError(
                    f"Configuration specified scheduling_choice as '{other}', but auto-complete-config function for "
                    f"model '{self._name}' tries to set scheduling_choice as 'dynamic_batching'"
                )
        self._model_config.setdefault("dynamic_batching", {})

    def set_model_transaction_policy(self, transaction_policy_dict: Mapping[str, Any]) -> None:
        """Say whether requests may have any number of responses: {"decoupled": True}.

        Raises:
            ValueError: other members; or the configuration says something else.
        """
        if transaction_policy_dict.keys() - {"decoupled"}:
            raise ValueError(
                f"model transaction property in auto-complete-config function for model '{self._name}' contains "
                "property other than 'decoupled'."
            )
        policy = self._model_config.setdefault("model_transaction_policy", {})
        if "decoupled" in transaction_policy_dict:
            decoupled = transaction_policy_dict["decoupled"]
            if policy.get("decoupled", decoupled) != decoupled:
                raise ValueError(
                    f"trying to change decoupled property in auto-complete-config for model '{self._name}', which is "
                    f"already set to '{policy['decoupled']}'."
                )
            policy["decoupled"] = decoupled

    def add_input(self, input: dict[str, Any]) -> None:  # noqa: A002 - Triton's name
        """Say what the model takes: "name", "data_type", "dims", and "optional" if that is so.

        Raises:
            ValueError: other members, or missing ones; or the configuration says something else of it.
        """
        self._add("input", input, _INPUT)

    def add_output(self, output: dict[str, Any]) -> None:
        """Say what the model gives: "name", "data_type" and "dims". Raises ValueError, as `add_input`."""
        self._add("output", output, _OUTPUT)

    def _add(self, kind: str, tensor: dict[str, Any], members: Sequence[str]) -> None:
        self._check(kind, tensor, members)
        tensors: list[dict[str, Any]] = self._model_config.setdefault(kind, [])
        for there in tensors:
            if there["name"] == tensor["name"]:
                self._compare(kind, there, tensor)
                there.update(tensor)
                return
        tensors.append(tensor)

    def _check(self, kind: str, tensor: Mapping[str, Any], members: Sequence[str]) -> None:
        about = f"{kind} '{tensor['name']}'" if "name" in tensor else kind
        where = f"in auto-complete-config function for model '{self._name}'"
        if tensor.keys() - set(members):
            *others, last = (f"'{each}'" for each in members)
            raise ValueError(f"{about} {where} contains property other than {', '.join(others)} and {last}.")
        for each in ("name", "data_type", "dims"):
            if each not in tensor:
                raise ValueError(f"{about} {where} is missing '{each}' property.")

    def _compare(self, kind: str, there: Mapping[str, Any], tensor: Mapping[str, Any]) -> None:
        name = tensor["name"]
        if there.get("data_type", _INVALID) not in (_INVALID, tensor["data_type"]):
            raise ValueError(
                f"unable to load model '{self._name}', configuration expects datatype {there['data_type']} for {kind} "
                f"'{name}', model provides {tensor['data_type']}"
            )
        for member, wanted in (("dims", there.get("dims") or None), ("optional", there.get("optional"))):
            if member in tensor and wanted is not None and wanted != tensor[member]:
                raise ValueError(
                    f"model '{self._name}', tensor '{name}': the model expects {member} {tensor[member]} but the "
                    f"model configuration specifies {member} {wanted}"
                )


def get_input_config_by_name(model_config: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """What a configuration says of an input; None if there is no such input."""
    return _named(model_config.get("input", ()), name)


def get_output_config_by_name(model_config: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """What a configuration says of an output; None if there is no such output."""
    return _named(model_config.get("output", ()), name)


def using_decoupled_model_transaction_policy(model_config: Mapping[str, Any]) -> bool:
    """Whether requests may have any number of responses."""
    return bool(model_config.get("model_transaction_policy", {}).get("decoupled", False))


def _named(tensors: Sequence[dict[str, Any]], name: str) -> dict[str, Any] | None:
    return next((each for each in tensors if each["name"] == name), None)
