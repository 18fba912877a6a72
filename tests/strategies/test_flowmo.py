"""FlowMo: the loss, its gradient, and what a guided step does."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models import random_dit
from parity import distance

from tt_jax import FlowMo, RollingForcing, SelfForcing, TokenTrim, rollout
from tt_jax.models.dit import DiTConfig
from tt_jax.strategies import flowmo
from tt_jax.strategies.schedule import time_sinusoid, warp

GRID = (4, 4)
CONFIG = DiTConfig(dim=24, ffn_dim=32, layers=2, heads=2, channels=2, text_dim=8, text_len=3)


@pytest.fixture(scope="module")
def dit():
    return random_dit(CONFIG)


@pytest.fixture(scope="module")
def text():
    return jax.random.normal(jax.random.key(1), (1, CONFIG.text_len, CONFIG.text_dim))


def velocity_of(dit, batch, frames, dtype=jnp.float32):
    """The velocity as a function of the latent alone, at the first level."""
    text = jax.random.normal(jax.random.key(1), (batch, CONFIG.text_len, CONFIG.text_dim), dtype)
    cross = dit.encode_text(text)
    time = jnp.asarray(time_sinusoid(np.ones((1, frames))))
    return lambda x: dit(x, time, cross, jnp.arange(frames), remat=True)[0]


# --- loss and gradient --------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [3, 5, 15])
def test_loss(frames):
    velocity = np.random.default_rng(frames).standard_normal((2, frames, 4, 6, 3), np.float32)
    change = np.abs(np.diff(velocity.astype(np.float64), axis=1))
    want = change.var(axis=1).mean(axis=-1).max(axis=(1, 2))
    np.testing.assert_allclose(flowmo.loss(jnp.asarray(velocity)), want, rtol=1e-6)


def test_loss_of_some_frames():
    velocity = jax.random.normal(jax.random.key(0), (2, 15, 4, 6, 3))
    for part in (slice(0, 3), slice(6, 15), slice(3, 9)):
        present = jnp.zeros(15, bool).at[part].set(True)
        want = flowmo.loss(velocity[:, part])
        np.testing.assert_allclose(flowmo.loss(velocity, present), want, rtol=1e-6)


@pytest.mark.slow
def test_gradient_equals_finite_differences():
    with jax.enable_x64(True):
        graph, params = nnx.split(random_dit(CONFIG))
        dit = nnx.merge(graph, jax.tree.map(lambda x: x.astype(jnp.float64), params))
        predict = velocity_of(dit, 2, 6, jnp.float64)
        x = jax.random.normal(jax.random.key(5), (2, 6, *GRID, CONFIG.channels), jnp.float64)
        slope, velocity = jax.jit(lambda x: flowmo.gradient(predict, x))(x)
        assert slope.dtype == jnp.float64
        np.testing.assert_allclose(velocity, predict(x), rtol=1e-12, atol=1e-12)
        total = jax.jit(lambda x: jnp.sum(flowmo.loss(predict(x))))
        for i in range(20):
            direction = jax.random.normal(jax.random.key(10 + i), x.shape, jnp.float64)
            # Far enough from another maximum, and from a change of sign, for both to be smooth.
            step = 1e-6
            difference = (total(x + step * direction) - total(x - step * direction)) / (2 * step)
            assert abs(difference - jnp.vdot(slope, direction)) <= 1e-5 * abs(difference)


@pytest.mark.slow
def test_one_step_lowers_the_loss(dit):
    predict = velocity_of(dit, 100, 3)
    x = jax.random.normal(jax.random.key(2), (100, 3, *GRID, CONFIG.channels))

    @jax.jit
    def both(x):
        moved, velocity = flowmo.FlowMo().guide(predict, x, jnp.asarray(True))
        return moved, velocity, flowmo.loss(velocity), flowmo.loss(predict(moved))

    moved, velocity, before, after = both(x)
    assert np.mean(after < before) >= 0.95
    np.testing.assert_allclose(velocity, predict(x), rtol=1e-4, atol=1e-5)
    # A fresh Adam's first step: the rate, against the sign of the gradient.
    assert np.abs(moved - x).max() <= 1.01e-3 and np.mean(np.abs(moved - x) > 9e-4) > 0.9
    still, _ = flowmo.FlowMo().guide(predict, x, jnp.asarray(False))
    np.testing.assert_array_equal(still, x)


# --- which steps --------------------------------------------------------------------------------


def test_the_published_steps_and_few_step_schedules():
    assert FlowMo().steps(50).tolist() == [True] * 12 + [False] * 38
    assert FlowMo().steps(4).tolist() == [True, False, False, False]
    assert FlowMo(fraction=0.5).steps(4).tolist() == [True, True, False, False]
    assert FlowMo(fraction=1e-9).steps(4).any() and FlowMo(fraction=1.0).steps(4).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FlowMo(chunks="none"), '"first" or "all"'),
        (lambda: FlowMo(fraction=0.0), "never fire"),
        (lambda: FlowMo(fraction=1.5), "at most 1"),
        (lambda: FlowMo(rate=0.0), "rate must be above 0"),
        (lambda: SelfForcing(chunk=2, guidance=FlowMo()), "never fire in chunks of fewer than 3"),
        (lambda: RollingForcing(guidance=FlowMo(fraction=0.5)), "leave FlowMo's fraction out"),
    ],
)
def test_settings_that_make_no_sense(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# --- in a rollout -------------------------------------------------------------------------------


def run(dit, text, strategy, chunks, **more):
    return rollout(
        dit, text, jax.random.key(0), chunks=chunks, grid=GRID, strategy=strategy,
        trim=TokenTrim.off(), **more,
    )  # fmt: skip


@pytest.mark.slow
def test_self_forcing_guides_the_first_step(dit, text):
    """Against the same written out, for two chunks."""
    plain = SelfForcing(window=6, steps=(1000, 500))
    guidance = FlowMo(rate=0.1, fraction=0.5)
    outs = {
        chunks: run(dit, text, dataclasses.replace(plain, guidance=g), 2)
        for chunks, g in (
            ("none", None),
            ("first", guidance),
            ("all", dataclasses.replace(guidance, chunks="all")),
        )
    }
    state = plain.start(dit, 1, GRID, jax.random.key(0))
    first, second = plain.noise(state, (1, 3, *GRID, CONFIG.channels))
    cross = dit.encode_text(text)

    def predict(x, sigma):
        time = jnp.asarray(time_sinusoid(np.full((1, 3), sigma)))
        return dit(x, time, cross, jnp.arange(3))[0]

    slope, velocity = flowmo.gradient(lambda x: predict(x, 1.0), first)
    moved = first - 0.1 * slope / (jnp.abs(slope) + 1e-8)
    x0 = moved - velocity
    sigma = warp(plain.steps)[1]
    noisy = (1 - sigma) * x0 + sigma * second
    want = noisy - sigma * predict(noisy, sigma)
    got = {name: np.asarray(out.latents) for name, out in outs.items()}
    assert distance(got["first"][:, :3], want) <= 1e-5
    assert distance(got["first"][:, :3], got["all"][:, :3]) <= 1e-5
    assert np.linalg.norm(got["none"][:, :3] - want) > 1e-3 * np.linalg.norm(want)
    assert np.linalg.norm(got["first"][:, 3:] - got["all"][:, 3:]) > 1e-3


@pytest.mark.slow
def test_rolling_forcing_guides_whole_windows(dit, text):
    """ "first" stops after the windows in which the first block is made."""
    outs = {
        chunks: run(dit, text, RollingForcing(guidance=guidance), 6)
        for chunks, guidance in (
            ("none", None), ("first", FlowMo(rate=0.1)), ("all", FlowMo("all", rate=0.1)),
        )
    }  # fmt: skip
    got = {name: np.asarray(out.latents) for name, out in outs.items()}
    assert distance(got["first"][:, :3], got["all"][:, :3]) <= 1e-5
    assert np.linalg.norm(got["first"][:, :3] - got["none"][:, :3]) > 1e-3
    assert np.linalg.norm(got["first"][:, 3:6] - got["all"][:, 3:6]) > 1e-3
