"""What the makers publish about the machines that `tt-jax plan` knows."""

import dataclasses
import re


@dataclasses.dataclass(frozen=True)
class Machine:
    """Some equal chips, and what one of them can do.

    Attributes:
        chip: its maker's name for it.
        chips: how many there are.
        peak: dense bfloat16 operations a second, accumulated in float32; None if unknown.
        bandwidth: of its memory, in bytes a second; None if unknown.
        memory: bytes.
        topology: the smallest that holds the chips, as the TPU's compiler calls it.
    """

    chip: str
    chips: int
    peak: float | None
    bandwidth: float | None
    memory: float
    topology: str | None = None


def _tpu(chip: str, chips: int, topology: str) -> Machine:
    # cloud.google.com/tpu/docs: v5e, v6e, v5p; of the v5e's memory, what its compiler gives out.
    peak, bandwidth, memory = {
        "TPU v5e": (197e12, 819e9, 15.75 * 2**30),
        "TPU v6e": (918e12, 1640e9, 32e9),
        "TPU v5p": (459e12, 2765e9, 95e9),
    }[chip]
    return Machine(chip, chips, peak, bandwidth, memory, topology)


MACHINES = {
    "v5e-1": _tpu("TPU v5e", 1, "v5e:2x2"),
    "v5e-4": _tpu("TPU v5e", 4, "v5e:2x2"),
    "v6e-1": _tpu("TPU v6e", 1, "v6e:2x2"),
    "v6e-8": _tpu("TPU v6e", 8, "v6e:2x4"),
    "v5p-8": _tpu("TPU v5p", 4, "v5p:2x2x1"),  # its name counts cores, of which a chip has two
    # NVIDIA's data sheets: H100 SXM, H200 SXM, A100 SXM, L40S, L4; white papers of the Blackwell,
    # Ada and Ampere (GA102) architectures.
    "h100": Machine("H100 SXM", 1, 989e12, 3350e9, 80e9),
    "h200": Machine("H200 SXM", 1, 989e12, 4800e9, 141e9),
    "a100-40": Machine("A100 SXM 40 GB", 1, 312e12, 1555e9, 40e9),
    "a100-80": Machine("A100 SXM 80 GB", 1, 312e12, 2039e9, 80e9),
    "l40s": Machine("L40S", 1, 362e12, 864e9, 48e9),
    "l4": Machine("L4", 1, 121e12, 300e9, 24e9),
    "rtx5090": Machine("RTX 5090", 1, 209.5e12, 1792e9, 32e9),
    "rtx4090": Machine("RTX 4090", 1, 165e12, 1008e9, 24e9),
    "rtx3090": Machine("RTX 3090", 1, 71e12, 936e9, 24e9),
}


def machine(name: str) -> Machine:
    """A machine by its name in `MACHINES`, or a GPU of which only the memory is known.

    Args:
        name: of the machine, or its memory, like "24gb".

    Returns:
        The machine; without peak and bandwidth if all that is known is its memory.

    Raises:
        ValueError: there is no such machine.
    """
    found = name.lower()
    if size := re.fullmatch(r"([1-9]\d*) ?gb", found):
        return Machine(f"GPU of {size[1]} GB", 1, None, None, int(size[1]) * 1e9)
    if found not in MACHINES:
        known = ", ".join(MACHINES)
        raise ValueError(f"no machine {name!r} is known: give its memory, like 24gb, or {known}.")
    return MACHINES[found]
