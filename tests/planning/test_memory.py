"""What a run will hold, counted from shapes, and what is free."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from models import TINY

import tt_jax
from tt_jax.checkpoint import abstract
from tt_jax.planning import memory


def estimate(strategy=None, **changed):
    settings = {"size": (32, 32), "frames": 480, "batch": 1} | changed
    return memory.estimate(TINY, jnp.float32, strategy or tt_jax.SelfForcing(window=9), **settings)


def test_weights_and_states_are_what_is_held(tiny_model):
    pipe = tt_jax.load(tiny_model)
    one = estimate()
    for part, module in (("transformer", pipe.dit), ("vae", pipe.vae), ("text", pipe.text)):
        assert getattr(one, part) == memory.nbytes(nnx.state(module))
    for strategy in (tt_jax.SelfForcing(window=9), tt_jax.RollingForcing()):
        state = strategy.start(pipe.dit, 2, (8, 8), jax.random.key(0))
        needed = estimate(strategy, batch=2)
        assert needed.state == memory.nbytes(state) > state.context.k.nbytes
        # A stream gives a state away with each chunk, and makes the next one beside it.
        assert needed.kept == needed.state


def test_latents_and_records_are_held_as_parts_and_joined(tiny_model):
    pipe = tt_jax.load(tiny_model)
    text = pipe.encode_prompt(["a red circle"])
    grid = (8, 8)
    out = jax.eval_shape(
        lambda: tt_jax.rollout(
            pipe.dit, text, jax.random.key(0), chunks=6, grid=grid, strategy=pipe.strategy()
        )
    )
    big = memory.nbytes((out.latents, out.drift, out.pruned))
    frames = 6 * 3 * TINY.vae.temporal_stride
    assert estimate(frames=frames).made == 2 * big


def test_memory_grows_with_what_it_is_made_of():
    one = estimate()
    assert estimate(batch=3).made == 3 * one.made
    # The buffer's mask and the statistics are next to nothing.
    assert estimate(batch=3).state == pytest.approx(3 * one.state, rel=0.01)
    assert estimate(size=(64, 32)).state == pytest.approx(2 * one.state, rel=0.01)
    longer = estimate(frames=960)
    assert longer.host == 2 * one.host and longer.made == pytest.approx(2 * one.made, rel=0.05)
    assert longer.device - longer.made == one.device - one.made
    guided = tt_jax.SelfForcing(window=9, guidance=tt_jax.FlowMo())
    assert estimate(guided).denoising > 2 * one.denoising


def test_memory_of_a_device_is_checked_apart(monkeypatch):
    needed = memory.Memory(
        text=10, transformer=4, vae=2, state=1, kept=1, made=1, denoising=2, decoding=1, host=50
    )
    monkeypatch.setattr(memory, "free_on_host", lambda: 55)
    monkeypatch.setattr(memory, "free_on_device", lambda: 11)
    memory.check(needed)
    monkeypatch.setattr(memory, "free_on_device", lambda: 10)
    with pytest.raises(ValueError, match="device memory"):
        memory.check(needed)
    # The text encoder goes before the rest comes: the larger of both counts.
    assert dataclasses.replace(needed, text=12).device == 12
    # A chunk is made, then decoded.
    assert dataclasses.replace(needed, decoding=5).generating == needed.generating + 3
    monkeypatch.setattr(memory, "free_on_device", lambda: None)
    with pytest.raises(ValueError, match="main memory"):
        memory.check(needed)


def test_free_memory_is_sensible():
    assert 2**26 < memory.free_on_host() < 2**50
    assert memory.free_on_device() is None


def test_an_abstract_model_is_its_owners():
    """It is made once; what is done to one leaves the next as it should be."""
    first = abstract("dit", TINY.dit, jnp.float32)
    first.head.kernel.set_value(jnp.zeros(3))
    assert abstract("dit", TINY.dit, jnp.float32).head.kernel.shape == (48, 16)
    assert abstract("dit", TINY.dit, jnp.bfloat16).head.kernel.dtype == jnp.bfloat16
