"""What the makers publish about the machines that `tt-jax plan` knows."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Machine:
    """Some equal chips, and what one of them can do."""

    chip: str
    chips: int
    peak: float  # dense bfloat16 operations a second, accumulated in float32
    bandwidth: float  # of its memory, bytes a second
    memory: float  # bytes
    topology: str | None = None  # the smallest that holds the chips, as the TPU compiler calls it


def _tpu(chip: str, chips: int, topology: str) -> Machine:
    # cloud.google.com/tpu/docs: v5e, v6e, v5p.
    peak, bandwidth, memory = {
        "TPU v5e": (197e12, 819e9, 16e9),
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
    # NVIDIA's data sheets: H100 SXM, H200 SXM, Ada architecture white paper.
    "h100": Machine("H100 SXM", 1, 989e12, 3350e9, 80e9),
    "h200": Machine("H200 SXM", 1, 989e12, 4800e9, 141e9),
    "rtx4090": Machine("RTX 4090", 1, 165e12, 1008e9, 24e9),
}
