"""FlowMo (arXiv 2506.01144): guidance towards motion that changes evenly, given to a strategy.

Guided at a step, the noisy latent moves down the gradient of a loss of the velocity predicted from
it, by one step of a fresh Adam; then the strategy's own step is made on the moved latent, with the
velocity as it was predicted before.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float

from tt_jax.nn.layers import wide
from tt_jax.settings import real

Predict = Callable[[Float[Array, "b f h w c"]], Float[Array, "b f h w c"]]


def loss(
    velocity: Float[Array, "b f h w c"], present: Bool[Array, " f"] | None = None
) -> Float[Array, " b"]:
    """How unevenly the velocity changes from frame to frame, where it does so most.

    The absolute difference of neighbouring frames; its variance over time (biased), the mean of
    that over the channels, and the maximum over the places.

    Args:
        velocity: as predicted for the F frames of a pass.
        present: the frames that count, all if not given.

    Returns:
        The loss of each sample.
    """
    change = jnp.abs(velocity[:, 1:] - velocity[:, :-1])
    counts = jnp.ones(change.shape[1], bool) if present is None else present[1:] & present[:-1]
    weight = counts.astype(change.dtype)[None, :, None, None, None]
    number = jnp.maximum(jnp.sum(weight), 1)
    mean = jnp.sum(weight * change, axis=1, keepdims=True) / number
    variance = jnp.sum(weight * (change - mean) ** 2, axis=1) / number
    return jnp.max(jnp.mean(variance, axis=-1), axis=(1, 2))


def gradient(
    predict: Predict, noisy: Float[Array, "b f h w c"], present: Bool[Array, " f"] | None = None
) -> tuple[Float[Array, "b f h w c"], Float[Array, "b f h w c"]]:
    """Gradient of each sample's loss with respect to its own latent.

    Args:
        predict: the velocity at a noisy latent.
        noisy: where the gradient is taken.
        present: as in `loss`.

    Returns:
        The gradient, and the velocity at `noisy`.
    """

    def total(noisy: Array) -> tuple[Array, Array]:
        velocity = predict(noisy)
        return jnp.sum(loss(wide(velocity), present)), velocity

    return jax.grad(total, has_aux=True)(noisy)


@dataclasses.dataclass(frozen=True)
class FlowMo:
    """Guidance towards motion that changes evenly (FlowMo, arXiv 2506.01144), of either strategy.

    In Rolling Forcing each pass holds every level at once, so whole windows are guided, all their
    blocks, the loss going over all their frames: "first" is the windows 0 to 4, in which the first
    block is made.

    Memory: layers are recomputed in the backward pass. What is kept is the input of each,
    `layers x batch x tokens of a pass x dim` values (at 832x480 with 1.3B parameters in bfloat16
    0.4 GB a sample in Self Forcing, 2.2 GB in Rolling Forcing), and the activations of one layer.
    A guided pass takes about four times the time of a plain one.

    Args:
        chunks: "first" guides the first chunk only, TokenTrim's initialisation; "all" every chunk.
        fraction: of the schedule that is guided: step s of S, from 0, if s / S < fraction. The
            published 12 of 50 steps are 24 %, of which a schedule of four steps has one. (Timestep
            values would hardly ever match one: few-step schedules are spaced too far apart.)
        rate: of Adam; as its state is fresh at every step, about what each latent value moves by.

    Raises:
        ValueError: a setting is out of its range, where FlowMo would never fire.
    """

    chunks: Literal["first", "all"] = "first"
    fraction: float = 0.24
    rate: float = 1e-3

    def __post_init__(self) -> None:
        if self.chunks not in ("first", "all"):
            raise ValueError(f'FlowMo guides "first" or "all" chunks, not {self.chunks!r}.')
        object.__setattr__(self, "fraction", real("FlowMo's fraction", self.fraction))
        object.__setattr__(self, "rate", real("FlowMo's rate", self.rate))
        if not 0 < self.fraction <= 1:
            raise ValueError(
                f"FlowMo's fraction of the schedule must be above 0, where it would never fire, "
                f"and at most 1, not {self.fraction}."
            )
        if not self.rate > 0:
            raise ValueError(f"FlowMo's rate must be above 0, not {self.rate}.")

    def steps(self, count: int) -> Bool[np.ndarray, " count"]:
        """Which denoising steps are guided.

        Args:
            count: number of steps of the schedule.

        Returns:
            True for the first of them, as `fraction` says.
        """
        return np.arange(count) / count < self.fraction

    def guide(
        self,
        predict: Predict,
        noisy: Float[Array, "b f h w c"],
        active: Bool[Array, ""],
        present: Bool[Array, " f"] | None = None,
    ) -> tuple[Float[Array, "b f h w c"], Float[Array, "b f h w c"]]:
        """Moves a noisy latent down the gradient of the loss, by one step of Adam.

        Args:
            predict: the velocity at a noisy latent.
            noisy: the latent.
            active: whether it is guided at all.
            present: the frames that count, all if not given.

        Returns:
            The latent, moved where the guidance is active, and the velocity where it was before.
        """

        def move(noisy: Array) -> tuple[Array, Array]:
            slope, velocity = gradient(predict, noisy, present)
            adam = optax.adam(self.rate)
            with jax.numpy_dtype_promotion("standard"):  # Adam's bias correction is 0.9 ** count
                update, _ = adam.update(slope, adam.init(noisy))
            return cast(Array, optax.apply_updates(noisy, update)), velocity

        return jax.lax.cond(active, move, lambda noisy: (noisy, predict(noisy)), noisy)
