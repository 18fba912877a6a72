import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import TINY, random_dit

from tt_jax.lab.spec import Plant
from tt_jax.lab.stress import corrupt, planted_tokens
from tt_jax.strategies.state import empty_state

GRID = (4, 4)
PLANT = Plant(1.0, (1, 2), (0, 3), 2.0)
PLACES = [4, 7, 8, 11]
FRAMES = [6, 7, 8, 3, 4, 5]  # a ring: the newest chunk stands in the first three slots


def state(batch=2, seed=0):
    """A state whose memory is full of numbers, per sample the same whatever the batch."""
    made = empty_state(random_dit(TINY.dit), batch, (8, 8), jax.random.key(seed), slots=6, sink=0)
    rng = np.random.default_rng(3)
    shape = made.context.v.shape
    v = np.stack([rng.normal(5.0, 0.5, (shape[0], *shape[2:])) for _ in range(batch)], axis=1)
    context = dataclasses.replace(
        made.context,
        v=jnp.asarray(v, jnp.float32),
        valid=jnp.ones_like(made.context.valid),
        frame=jnp.asarray(FRAMES, jnp.int32),
    )
    return dataclasses.replace(made, context=context)


def by_slot(state):
    """The cached values `[L, B, S, P, N, H]`."""
    v = np.asarray(state.context.v)
    return v.reshape(*v.shape[:2], *state.context.valid.shape[1:], *v.shape[3:])


def test_planted_tokens():
    assert planted_tokens(PLANT, GRID).tolist() == PLACES
    with pytest.raises(ValueError, match="within the 2x4 tokens"):
        planted_tokens(PLANT, (2, 4))


def test_only_the_newest_chunks_values_change_and_only_there():
    before = state()
    after = corrupt(before, PLANT, GRID, 3)
    changed = (by_slot(after) != by_slot(before)).any(axis=(0, 4, 5))
    expected = np.zeros((2, 6, 16), bool)
    expected[:, :3, PLACES] = True
    np.testing.assert_array_equal(changed, expected)
    untouched = dataclasses.replace(
        after, context=dataclasses.replace(after.context, v=before.context.v)
    )
    for left, right in zip(jax.tree.leaves(untouched), jax.tree.leaves(before), strict=True):
        assert left is right or bool(jnp.all(left == right))


def test_the_noise_is_around_the_values_own_mean_and_strength_times_as_wide():
    before = state()
    for strength in (0.5, 2.0):
        plant = dataclasses.replace(PLANT, strength=strength)
        planted = by_slot(corrupt(before, plant, GRID, 3))[:, :, :3, PLACES]
        assert planted.mean() == pytest.approx(5.0, abs=0.1)
        assert planted.std() == pytest.approx(0.5 * strength, rel=0.1)


def test_a_samples_corruption_is_its_own():
    two, one = (by_slot(corrupt(state(b), PLANT, GRID, 3)) for b in (2, 1))
    np.testing.assert_array_equal(two[:, :1], one)
    assert not np.isclose(two[:, 0, :3, PLACES], two[:, 1, :3, PLACES]).any()
    other = by_slot(corrupt(state(1, seed=1), PLANT, GRID, 3))
    assert not np.isclose(one[:, :, :3, PLACES], other[:, :, :3, PLACES]).any()
