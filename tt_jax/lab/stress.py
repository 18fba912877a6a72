"""Stressors that act within a rollout: a corruption planted in the memory."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from tt_jax.lab.spec import Plant
from tt_jax.strategies.state import State

# The "chunk" whose random key the corruption gets; far from any rollout's.
PLANT_CHUNK = 2**30


def planted_tokens(plant: Plant, grid: tuple[int, int]) -> Int[np.ndarray, " planted"]:
    """Where the planted tokens are.

    Args:
        plant: the corruption.
        grid: rows and columns of a frame's tokens.

    Returns:
        Their indices in a frame.

    Raises:
        ValueError: a place is beyond the grid.
    """
    if max(plant.rows) >= grid[0] or max(plant.columns) >= grid[1]:
        raise ValueError(f"a plant must lie within the {grid[0]}x{grid[1]} tokens of a frame.")
    return np.array([row * grid[1] + column for row in plant.rows for column in plant.columns])


def corrupt(state: State, plant: Plant, grid: tuple[int, int], chunk: int) -> State:
    """The state with the cached values of the newest `chunk` frames replaced at the planted tokens.

    They become normal noise around the mean of those frames' values, `plant.strength` times their
    deviation (each per layer, head and channel); the keys stay, so that what would have been read
    there still is. Latents, summary and statistics stay too: the chunk was shown and judged as it
    was, and only its memory is wrong. A sample's noise doesn't depend on its neighbours.

    Args:
        state: of a rollout.
        plant: the corruption.
        grid: rows and columns of a frame's tokens.
        chunk: frames of a chunk.

    Returns:
        The state that goes on in its place.

    Raises:
        ValueError: a place is beyond the grid.
    """
    context = state.context
    tokens = planted_tokens(plant, grid)
    slots = jnp.argsort(context.frame)[-chunk:]
    layers, batch, _, heads, width = context.v.shape
    by_slot = context.v.reshape(layers, batch, *context.valid.shape[1:], heads, width)
    values: Float[Array, "l b f p n h"] = by_slot[:, :, slots].astype(jnp.float32)
    mean = jnp.mean(values, axis=(2, 3), keepdims=True)
    deviation = jnp.std(values, axis=(2, 3), keepdims=True)

    def draw(sample: Array) -> Float[Array, "l f planted n h"]:
        key = jax.random.fold_in(jax.random.fold_in(state.key, sample), PLANT_CHUNK)
        return jax.random.normal(key, (layers, chunk, len(tokens), heads, width))

    noise = jnp.moveaxis(jax.vmap(draw)(jnp.arange(batch)), 0, 1)
    wrong = (mean + plant.strength * deviation * noise).astype(context.v.dtype)
    v = by_slot.at[:, :, slots[:, None], jnp.asarray(tokens)[None]].set(wrong)
    return dataclasses.replace(
        state, context=dataclasses.replace(context, v=v.reshape(context.v.shape))
    )
