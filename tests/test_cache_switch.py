"""A prompt that changes within a video: at the borders of chunks, compiled once."""

import functools

import jax
import numpy as np
import pytest
from models import random_dit

from tt_jax import RollingForcing, SelfForcing, TokenTrim, rollout
from tt_jax._rollout import _rollout
from tt_jax.cache import InfinityRope, LongLive, MemRope, Window
from tt_jax.models.dit import DiTConfig
from tt_jax.strategies.switch import _switch, switch, switches

GRID = (4, 4)
CONFIG = DiTConfig(dim=24, ffn_dim=32, layers=2, heads=2, channels=4, text_dim=8, text_len=4)


@functools.cache
def dit():
    return random_dit(CONFIG)


def prompt(seed):
    rows = jax.random.normal(jax.random.key(seed), (1, CONFIG.text_len, CONFIG.text_dim))
    return rows.at[0, 3:].set(0)


def play(strategy, scenes, how=None, key=0):
    """Chunks one by one; scenes: how many chunks of which prompt."""
    state, parts = None, []
    for number, (seed, count) in enumerate(scenes):
        if number:
            state = switch(dit(), prompt(seed), state, grid=GRID, strategy=strategy, how=how)
        for _ in range(count):
            out = rollout(
                dit(), prompt(seed), jax.random.key(key), chunks=1, grid=GRID, state=state,
                strategy=strategy, trim=TokenTrim.off(),
            )  # fmt: skip
            state = out.state
            parts.append(np.asarray(out.latents))
    return np.stack(parts)


def test_defaults():
    assert switches(SelfForcing()) == ("none",) == switches(RollingForcing())
    assert switches(SelfForcing(cache=InfinityRope()))[0] == "flush"
    assert switches(SelfForcing(cache=LongLive()))[0] == "recache"


@pytest.mark.parametrize(
    ("policy", "hows"),
    [(InfinityRope(9), ("flush", "cut", "none")), (LongLive(9, 2), ("recache", "none"))],
    ids=repr,
)
def test_each_way_differs_from_the_switch_on_and_compiles_once(policy, hows):
    strategy = SelfForcing(cache=policy, steps=(1000, 500))
    same = play(strategy, [(1, 6)])
    before = _rollout._cache_size()
    outs = {how: play(strategy, [(1, 4), (2, 2)], how) for how in hows}
    assert _rollout._cache_size() == before
    compiled = _switch._cache_size()
    play(strategy, [(3, 2), (1, 1), (2, 1)], hows[0])  # other prompts, other times
    assert (_rollout._cache_size(), _switch._cache_size()) == (before, compiled)
    for out in outs.values():
        np.testing.assert_array_equal(out[:4], same[:4])  # the prefix isn't touched
        assert np.abs(out[4] - same[4]).max() > 1e-3
        assert np.isfinite(out).all()
    first = outs[hows[0]]
    for how in hows[1:]:
        assert np.abs(outs[how][4] - first[4]).max() > 1e-4, how


def test_a_cut_lasts_one_chunk():
    policy = InfinityRope()
    strategy = SelfForcing(cache=policy, steps=(1000, 500))
    state = rollout(
        dit(), prompt(1), jax.random.key(0), chunks=1, grid=GRID, strategy=strategy
    ).state
    at = []
    for how in ("cut", None):
        if how:
            state = switch(dit(), prompt(2), state, grid=GRID, strategy=strategy, how=how)
        at.append(np.asarray(policy.positions(state.context, state.frame, 3)[0]))
        state = rollout(
            dit(), prompt(2), jax.random.key(0), chunks=1, grid=GRID, strategy=strategy, state=state
        ).state
    np.testing.assert_array_equal(at[0], [45, 46, 47])
    np.testing.assert_array_equal(at[1], [3, 4, 5])


def test_what_a_policy_does_not_have_is_refused():
    for strategy in (SelfForcing(cache=MemRope()), SelfForcing(cache=Window(9)), RollingForcing()):
        with pytest.raises(ValueError, match="has no switch 'flush': give one of none"):
            switch(dit(), prompt(1), None, grid=GRID, strategy=strategy, how="flush")
