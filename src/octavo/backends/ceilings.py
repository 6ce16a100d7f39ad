"""What this machine can do at best, measured: the roofline that benchmarks are held against."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Bytes read from memory and operations done per second; a multiplication and an addition are two."""

    bytes_per_second: float
    float_operations_per_second: float
    integer_operations_per_second: float


def ceilings(isa: str | None, threads: int) -> Ceilings:
    """Measure, with loops of that instruction set, or with numpy when there is none; takes about a second."""
    if isa is not None:
        from octavo.backends.cpu._native import measure_ceilings as measure_native

        return Ceilings(*measure_native(isa, threads))
    from octavo.backends.reference.ceilings import measure_ceilings

    read, multiply = measure_ceilings(threads)
    return Ceilings(read, multiply, multiply)
