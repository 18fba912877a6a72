"""What a chunk costs by its shapes."""

import dataclasses

import jax.numpy as jnp
import pytest
from models import TINY

from tt_jax import RollingForcing, SelfForcing, cache
from tt_jax.lab.cost import chunk_cost
from tt_jax.strategies.presets import preset


def test_bytes_of_the_cache():
    """Of keys and values in every layer, tokens, mask and numbers of the frames."""
    dit, tokens = TINY.dit, 4 * 4
    for dtype, size in ((jnp.float32, 4), (jnp.bfloat16, 2)):
        found = chunk_cost(SelfForcing(window=9), TINY, dtype).cache
        entries = 6 * tokens  # of six past frames
        kept = 2 * dit.layers * entries * dit.dim * size
        assert found == kept + entries * (4 * dit.channels * 4 + 1) + 6 * 4


def test_operations_of_a_chunk():
    """Each step is one pass, as is the one that remembers; a longer past costs more."""
    one, two, three = (
        chunk_cost(SelfForcing(window=9, steps=steps), TINY, jnp.float32).operations
        for steps in ((1000,), (1000, 500), (1000, 500, 250))
    )
    text = one - 2 * (two - one)
    assert three - two == two - one and 0 < text < one / 4
    short = chunk_cost(SelfForcing(cache=cache.InfinityRope(6)), TINY, jnp.float32)
    long = chunk_cost(SelfForcing(cache=cache.InfinityRope(9)), TINY, jnp.float32)
    assert short.operations < long.operations and short.cache < long.cache
    assert chunk_cost(RollingForcing(), TINY, jnp.float32).operations > long.operations


@pytest.mark.parametrize("name", ["self-forcing+tokentrim", "rolling-forcing+tokentrim"])
def test_guidance_costs_more(name):
    guided = preset(name, TINY.rollout).strategy
    plain = dataclasses.replace(guided, guidance=None)
    more, less = (chunk_cost(one, TINY, jnp.float32) for one in (guided, plain))
    assert more.operations > less.operations and more.cache == less.cache
