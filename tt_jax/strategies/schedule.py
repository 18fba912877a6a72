"""The flow-matching schedule with shift, and the sinusoids of its levels.

A latent at noise level `sigma` is `(1 - sigma) x0 + sigma noise`, the model predicts the flow
`noise - x0`, and its timestep is `1000 sigma`. Levels are static, so everything here is made on the
host.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Float

from tt_jax.settings import real, whole

TRAIN_STEPS = 1000
SHIFT = 5.0  # Wan's


def sigmas(shift: float = SHIFT) -> Float[np.ndarray, "1001"]:
    """Noise levels of the 1000 training steps, shifted.

    With the very roundings of the originals, which count from 1 down to the middle and from 0 up to
    it: one unit in a level's last place alone would cost 8e-6 of the model's output.

    Args:
        shift: as in `warp`.

    Returns:
        Levels from 1 down, with a last 0; float32.
    """
    index = np.arange(TRAIN_STEPS + 1)
    step = float(np.float32(1 / TRAIN_STEPS))
    down, up = 1 - step * index, step * index[::-1]
    linear = np.where(index < TRAIN_STEPS // 2, down, up).astype(np.float32)
    factor, one = np.float32(shift), np.float32(1)
    return factor * linear / (one + (factor - one) * linear)


def check_steps(steps: Any) -> tuple[int, ...]:
    """Nominal denoising steps as a tuple.

    Args:
        steps: whole numbers in any sequence, from the noisiest down.

    Returns:
        The steps, each an int.

    Raises:
        ValueError: there is none, one lies outside of 1 to 1000, or they don't descend.
    """
    if isinstance(steps, str) or not isinstance(steps, Iterable):
        raise ValueError(f"steps must be a sequence of whole numbers, not {steps!r}.")
    checked = tuple(whole("a denoising step", step, 1, TRAIN_STEPS) for step in steps)
    if not checked:
        raise ValueError("steps must have at least one denoising step.")
    if list(checked) != sorted(set(checked), reverse=True):
        raise ValueError(f"denoising steps must descend, the noisiest first, not {checked}.")
    return checked


def warp(steps: tuple[int, ...], shift: float | None = SHIFT) -> tuple[float, ...]:
    """Noise levels of nominal denoising steps, warped by the shift.

    Args:
        steps: from 1 to 1000, which is pure noise.
        shift: how far the levels are moved up: a level s becomes `shift s / (1 + (shift - 1) s)`.
            None takes the levels as they stand, step / 1000.

    Returns:
        A level in (0, 1] for each step.
    """
    if shift is None:
        return tuple(step / TRAIN_STEPS for step in steps)
    table = sigmas(shift)
    return tuple(float(table[TRAIN_STEPS - step]) for step in steps)


def check_shift(shift: float | None) -> None:
    """Refuses a shift that makes no noise levels.

    Args:
        shift: as in `warp`.

    Raises:
        ValueError: it is neither None nor a finite number above 0.
    """
    if shift is not None and real("the schedule's shift", shift) <= 0:
        raise ValueError(f"the schedule's shift must be above 0, or None, not {shift}.")


def time_sinusoid(
    sigma: Float[np.ndarray, "*s"], width: int = 256
) -> Float[np.ndarray, "*s width"]:
    """`[cos | sin]` of timestep x 10000^(-i / half), timestep = 1000 sigma; float32.

    The timestep is rounded to float32, as the originals store it; the angle is float64, since in
    float32 it alone would cost 4e-6 of the model's output.

    Args:
        sigma: noise levels in [0, 1].
        width: of a sinusoid, the transformer's `config.freq_dim`.

    Returns:
        A row of `width` for each level.
    """
    half = width // 2
    frequency = 10000.0 ** (-np.arange(half, dtype=np.float64) / half)
    timestep = (TRAIN_STEPS * np.asarray(sigma, np.float64)).astype(np.float32)
    angle = timestep[..., None].astype(np.float64) * frequency
    return np.concatenate([np.cos(angle), np.sin(angle)], axis=-1).astype(np.float32)
