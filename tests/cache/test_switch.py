"""A prompt that changes within a video: at the borders of chunks, compiled once."""

import functools

import jax
import numpy as np
import pytest
from models import random_dit

from tt_jax import RollingForcing, SelfForcing, Switch, TokenTrim, rollout, stream, switch
from tt_jax._rollout import _rollout
from tt_jax.cache import InfinityRope, LongLive, MemRope, Window
from tt_jax.models.dit import DiTConfig
from tt_jax.strategies.switch import _switch, switches

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


@pytest.mark.slow
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


@pytest.mark.parametrize("known", [True, False], ids=["a script", "a live page"])
def test_a_stream_with_a_script(known):
    """The script known beforehand, or asked for chunk by chunk."""
    strategy = SelfForcing(cache=InfinityRope(9), steps=(1000, 500))
    want = play(strategy, [(1, 2), (2, 2)], "cut")
    script, asked = {2: Switch(prompt(2), "cut")}, []

    def ask(index):
        asked.append(index)
        return script.get(index)

    parts = stream(
        dit(), prompt(1), jax.random.key(0), chunks=4, grid=GRID, strategy=strategy,
        trim=TokenTrim.off(), script=script if known else ask,
    )  # fmt: skip
    np.testing.assert_array_equal(np.stack([part.latents for part in parts]), want)
    assert asked == ([] if known else [0, 1, 2, 3])


def test_a_prompt_of_another_shape_is_refused():
    parts = stream(
        dit(), prompt(1), jax.random.key(0), chunks=1, grid=GRID, strategy=SelfForcing(window=9),
        script={0: Switch(prompt(2)[:, :3])},
    )  # fmt: skip
    with pytest.raises(ValueError, match="chunk 0's prompt must be"):
        next(parts)


@pytest.mark.usefixtures("unchecked")
def test_what_a_policy_does_not_have_is_refused():
    for strategy in (SelfForcing(cache=MemRope()), SelfForcing(cache=Window(9)), RollingForcing()):
        with pytest.raises(ValueError, match="has no switch 'flush': give one of none"):
            switch(dit(), prompt(1), None, grid=GRID, strategy=strategy, how="flush")
