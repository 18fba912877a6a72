"""Several arms timed in one run, and how their spread is printed."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax


def interleaved(arms: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each call, all arms in turn, so that a busy machine slows all of them.

    Each arm is called once before, untimed: that compiles.
    """
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for call in arms.values():
        jax.block_until_ready(call())
    for _ in range(repeats):
        for name, call in arms.items():
            started = time.perf_counter()
            jax.block_until_ready(call())
            seconds[name].append(time.perf_counter() - started)
    return seconds


def ratios(own: Sequence[float], base: Sequence[float]) -> list[float]:
    """Of two arms, repetition by repetition."""
    return [a / b for a, b in zip(own, base, strict=True)]


def spread(values: Sequence[float], digits: int) -> str:
    """Median, lowest and highest of some numbers."""
    numbers = statistics.median(values), min(values), max(values)
    middle, low, high = (f"{number:.{digits}f}" for number in numbers)
    return f"{middle} ({low} to {high})"
