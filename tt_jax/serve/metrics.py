"""What the server counts, in Prometheus's text format."""

import dataclasses


@dataclasses.dataclass
class Counts:
    """Since the server began.

    Attributes:
        streams: videos begun, branches among them.
        chunks: made.
        frames: made.
        interventions: chunks that TokenTrim made again.
        refused: messages and visitors turned away.
        errors: videos that ended by a fault of ours.
        rate: frames a second at which the latest chunk was made.
    """

    streams: int = 0
    chunks: int = 0
    frames: int = 0
    interventions: int = 0
    refused: int = 0
    errors: int = 0
    rate: float = 0.0


COUNTERS = {
    "streams": "Videos begun, branches included.",
    "chunks": "Chunks made.",
    "frames": "Frames made.",
    "interventions": "Chunks that TokenTrim made again.",
    "refused": "Messages and visitors turned away.",
    "errors": "Videos that ended by an internal error.",
}


def exposition(counts: Counts, gauges: dict[str, tuple[str, float]]) -> str:
    """The text of `GET /metrics`.

    Args:
        counts: so far.
        gauges: by name, what each means and its value now.

    Returns:
        Prometheus's text format 0.0.4.
    """
    lines = []

    def add(name: str, kind: str, meaning: str, value: float) -> None:
        full = f"tt_jax_{name}"
        lines.extend([f"# HELP {full} {meaning}", f"# TYPE {full} {kind}", f"{full} {value:.10g}"])

    for name, meaning in COUNTERS.items():
        add(f"{name}_total", "counter", meaning, getattr(counts, name))
    rate = "Frames a second at which the latest chunk was made."
    for name, (meaning, value) in {"frames_per_second": (rate, counts.rate), **gauges}.items():
        add(name, "gauge", meaning, value)
    return "\n".join(lines) + "\n"
