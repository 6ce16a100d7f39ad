"""What a model is computed on."""

import re
from dataclasses import dataclass

from octavo.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Device:
    """A device.

    Attributes:
        kind: "auto", "cpu", "cuda" or another that a runtime knows. number: which GPU.
    """

    kind: str
    number: int = 0

    @classmethod
    def of(cls, text: str, *others: str) -> "Device":
        """What "cuda:1" means. Raises ConfigError: not a device, nor one of the others that this runtime knows."""
        numbered = ("cuda", *others)
        found = re.fullmatch(r"(\w+)(?::(\d+))?", text)
        if found is None or found[1] not in (numbered if found[2] else ("auto", "cpu", *numbered)):
            more = "".join(f", {each} or {each}:N" for each in numbered)
            raise ConfigError(f"device is '{text}'; give auto, cpu{more}", "device")
        return cls(found[1], int(found[2] or 0))

    @classmethod
    def cpu_only(cls, text: str, runtime: str) -> "Device":
        """The same, for runtimes that use no GPU. Raises ConfigError."""
        device = cls.of(text)
        if device.kind == "cuda":
            raise ConfigError(f"device is '{text}', and the runtime {runtime} computes on CPUs alone", "device")
        return device
