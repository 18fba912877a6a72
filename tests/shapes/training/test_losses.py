"""The losses of the training, against plain passes chunk by chunk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import random_dit

from tt_jax._rollout import rollout
from tt_jax.models.dit import KV, DiTConfig
from tt_jax.nn.rope import rotate, rotation
from tt_jax.shapes.training.losses import (
    clip_loss,
    denoising_loss,
    rolling_levels,
    rolling_loss,
    window_loss,
)
from tt_jax.strategies.rolling_forcing import RollingForcing
from tt_jax.strategies.schedule import time_sinusoid, warp
from tt_jax.trim.tokentrim import TokenTrim

CONFIG = DiTConfig(dim=24, ffn_dim=32, layers=2, heads=2, channels=2, text_dim=8, text_len=3)
CHUNK, WINDOW, CHUNKS = 3, 9, 4


@pytest.fixture(scope="module")
def inputs():
    keys = jax.random.split(jax.random.key(0), 3)
    latents, noise = (jax.random.normal(key, (2, CHUNKS * CHUNK, 4, 4, 2)) for key in keys[:2])
    text = jax.random.normal(keys[2], (2, CONFIG.text_len, CONFIG.text_dim))
    sigma = np.random.default_rng(0).uniform(0.5, 1, (2, CHUNKS)).astype(np.float32)
    return random_dit(CONFIG), text, latents, noise, sigma


def plain(dit, text, latents, noise, sigma):
    """Chunk after chunk, each after the keys and values of the last two."""
    cross, past, errors = dit.encode_text(text), [], []
    for chunk in range(CHUNKS):
        part = slice(CHUNK * chunk, CHUNK * (chunk + 1))
        frames = jnp.arange(CHUNK * chunk, CHUNK * (chunk + 1))
        context = None
        if past:
            context = KV(*(jnp.concatenate(x, axis=2) for x in zip(*past[-2:], strict=True)))
        level = jnp.asarray(sigma[:, chunk])[:, None, None, None, None]
        noisy = (1 - level) * latents[:, part] + level * noise[:, part]
        time = jnp.asarray(time_sinusoid(np.repeat(sigma[:, chunk : chunk + 1], CHUNK, axis=1)))
        flow, _ = dit(noisy, time, cross, frames, context)
        off = (flow - noise[:, part] + latents[:, part]) ** 2
        errors.append(jnp.mean(off, axis=(1, 2, 3, 4)))
        clean = jnp.asarray(time_sinusoid(np.zeros((1, CHUNK))))
        _, kv = dit(latents[:, part], clean, cross, frames, context)
        past.append(KV(rotate(kv.k, rotation(frames, 2, 2, CONFIG.head_dim)), kv.v))
    return jnp.stack(errors, axis=1)


@pytest.mark.slow
@pytest.mark.parametrize("first", [0, 1], ids=["from the first chunk", "from the second"])
def test_a_clip_in_one_pass_is_its_chunks_one_by_one(inputs, first):
    dit, text, latents, noise, sigma = inputs
    found = jax.jit(lambda *x: clip_loss(dit, *x, chunk=CHUNK, window=WINDOW))(
        text, latents[:, :-CHUNK], latents[:, CHUNK * first :], noise[:, CHUNK * first :],
        jnp.asarray(sigma[:, first:]), jnp.asarray(time_sinusoid(sigma[:, first:])),
    )  # fmt: skip
    np.testing.assert_allclose(found, plain(*inputs)[:, first:], rtol=1e-5)


@pytest.mark.slow
def test_a_window_is_a_clip_where_it_sees_what_a_clip_sees(inputs):
    dit, text, latents, noise, sigma = inputs
    levels = np.concatenate([np.zeros((2, 2), np.float32), sigma[:, 2:3]], axis=1)
    seen = jnp.array([[[1, 0, 0], [1, 1, 0], [1, 1, 1]]] * 2, bool)
    part = slice(0, 3 * CHUNK)
    arguments = jnp.asarray(levels), jnp.asarray(time_sinusoid(levels)), seen
    found = window_loss(dit, text, latents[:, part], noise[:, part], *arguments)
    np.testing.assert_allclose(found[:, 2], plain(*inputs)[:, 2], rtol=1e-5)
    # A chunk that isn't seen is as good as absent.
    other = latents.at[:, 2 * CHUNK : 3 * CHUNK].add(1.0)
    unseen = window_loss(dit, text, other[:, part], noise[:, part], *arguments)
    np.testing.assert_allclose(unseen[:, :2], found[:, :2], rtol=1e-6)


@pytest.mark.slow
def test_own_denoising_is_the_steps_one_by_one(inputs):
    dit, text, latents, noise, _ = inputs
    levels = np.array([1.0, 0.5], np.float32)
    part = slice(0, CHUNK)
    noises = jnp.stack([noise[:, part], noise[:, CHUNK : 2 * CHUNK]])

    @jax.jit
    def found(noises):
        return denoising_loss(
            dit, text, latents[:, :0], latents[:, part], noises, jnp.asarray(levels),
            jnp.asarray(time_sinusoid(levels)), chunk=CHUNK, window=WINDOW,
        )  # fmt: skip

    losses = found(noises)
    estimate, cross = jnp.zeros_like(latents[:, part]), dit.encode_text(text)
    for step, level in enumerate(levels):
        noisy = (1 - level) * estimate + level * noises[step]
        time = jnp.asarray(time_sinusoid(np.full((1, CHUNK), level)))
        estimate = noisy - level * dit(noisy, time, cross, jnp.arange(CHUNK))[0]
        error = jnp.mean((estimate - latents[:, part]) ** 2, axis=(1, 2, 3, 4))
        np.testing.assert_allclose(losses[step, :, 0], error, rtol=1e-5)
    # What a step makes of its noise is a constant to the next.
    slope = jax.grad(lambda noises: found(noises)[1].sum())(noises)
    assert not slope[0].any() and slope[1].any()


def test_rolling_forcings_first_passes():
    table = rolling_levels((0.25, 0.5, 1.0), 4)
    none = np.nan
    rows = [1, none, none, none], [0.5, 1, none, none], [0.25, 0.5, 1, none], [0, 0.25, 0.5, 1]
    np.testing.assert_array_equal(table, np.array(rows, np.float32))


@pytest.mark.slow
def test_own_rolling_is_a_rollout_of_rolling_forcing(inputs):
    """The last pass's estimates are those of the host itself, with the same noise."""
    dit, text, *_ = inputs
    host = RollingForcing(steps=(1000, 500, 250), shift=1.0)
    shape = (2, CHUNK, 4, 4, 2)
    # A block's noise, step by step.
    blocks = jax.random.normal(jax.random.key(1), (CHUNKS, 3, *shape))
    out = rollout(
        dit, text, jax.random.key(0), chunks=CHUNKS, grid=(4, 4), strategy=host,
        trim=TokenTrim.off(), noise=blocks,
    )  # fmt: skip
    passes = jnp.zeros((CHUNKS, CHUNKS, *shape))
    for last in range(CHUNKS):
        for step in range(min(3, last + 1)):
            passes = passes.at[last, last - step].set(blocks[last - step, step])
    passes = jnp.moveaxis(passes, 1, 2).reshape(CHUNKS, 2, -1, 4, 4, 2)
    window = warp((250, 500, 1000), 1.0)

    @jax.jit
    def found(passes):
        return rolling_loss(dit, text, out.latents, passes, window, chunk=CHUNK)

    # Chunk 0 is finished by the third pass and chunk 1 by the fourth.
    errors = np.asarray(found(passes))
    assert errors[2, :, 0].max() < 1e-8 and errors[3, :, 1].max() < 1e-8
    assert (errors[3, :, 0] == 0).all() and (errors[0, :, 1:] == 0).all()
    assert errors[0, :, 0].min() > 1e-4 and errors[3, :, 2:].min() > 1e-4
    # What a pass makes of its noise is a constant to the next.
    slope = jax.grad(lambda passes: found(passes)[1].sum())(passes)
    assert not slope[0].any() and slope[1].any()
