"""What the VAE promises: frame counts, causality, streaming, gradients, dtypes, bounded memory."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tt_jax.models.vae import VAE, VAEConfig


def small(temporal=(False, True), **sizes):
    """Three levels of few channels."""
    sizes = {"dim": 4, "latent_channels": 3, "dim_mult": (1, 2, 2), "res_blocks": 1, **sizes}
    mean, std = (0.1, -0.2, 0.3), (1.5, 0.5, 2.0)
    return VAEConfig(temporal_downsample=temporal, mean=mean, std=std, **sizes)


TWICE = small((True, True))  # four frames in a latent frame, like Wan's


def build(config, dtype=jnp.float32):
    return VAE(config, dtype=dtype, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def vae():
    return build(TWICE)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


@jax.jit
def encode(vae, video):
    return vae.encode(video)


@jax.jit
def moments(vae, video):
    return vae.encode_moments(video)


@jax.jit
def decode(vae, latents):
    return vae.decode(latents)


@jax.jit
def decode_raw(vae, latents):
    return vae.decode_raw(latents)


@jax.jit
def decode_stream(vae, cache, latents):
    return vae.decode_stream(cache, latents)


def distance(out, reference):
    out, reference = np.asarray(out, np.float64), np.asarray(reference, np.float64)
    return np.linalg.norm(out - reference) / np.linalg.norm(reference)


# --- sizes --------------------------------------------------------------------------------------


def test_strides():
    assert (VAEConfig.wan().spatial_stride, VAEConfig.wan().temporal_stride) == (8, 4)
    assert (TWICE.spatial_stride, TWICE.temporal_stride) == (4, 4)
    assert small((False, True)).temporal_stride == 2
    assert small((False, False)).temporal_stride == 1


@pytest.mark.parametrize("temporal", [(True, True), (False, True), (True, False), (False, False)])
@pytest.mark.parametrize("frames", [1, 6])
def test_shapes(temporal, frames):
    config = small(temporal)
    vae = nnx.eval_shape(lambda: build(config))
    stride = config.temporal_stride
    t = 1 + (frames - 1) // stride
    video = jax.ShapeDtypeStruct((2, frames, 8, 12, 3), jnp.float32)
    latents = jax.ShapeDtypeStruct((2, t, 2, 3, 3), jnp.float32)
    assert jax.eval_shape(encode, vae, video) == latents
    assert jax.eval_shape(moments, vae, video) == (latents, latents)
    whole = jax.ShapeDtypeStruct((2, 1 + (t - 1) * stride, 8, 12, 3), jnp.float32)
    assert jax.eval_shape(decode, vae, latents) == whole
    assert jax.eval_shape(decode_raw, vae, latents) == whole


@pytest.mark.slow
def test_surplus_frames_are_dropped(vae):
    video = noise(1, 8, 8, 8, 3)
    np.testing.assert_array_equal(encode(vae, video), encode(vae, video[:, :5]))


def test_sides_must_be_multiples(vae):
    with pytest.raises(ValueError, match="8x10 needs sides that are multiples of 4"):
        vae.encode(jnp.asarray(noise(1, 1, 8, 10, 3)))


def test_wrong_configs():
    with pytest.raises(ValueError, match="temporal_downsample"):
        small((True,))
    with pytest.raises(ValueError, match="mean and std"):
        small(latent_channels=4)


# --- causality and streaming --------------------------------------------------------------------


def test_latents_see_no_later_frame(vae):
    video = noise(1, 9, 8, 8, 3)
    other = np.concatenate([video[:, :5], noise(1, 4, 8, 8, 3, seed=1)], axis=1)
    a, b = encode(vae, video), encode(vae, other)
    np.testing.assert_array_equal(a[:, :2], b[:, :2])
    assert distance(a[:, 2], b[:, 2]) > 1e-3


def test_frames_see_no_later_latent(vae):
    latents = noise(1, 3, 2, 2, 3)
    other = np.concatenate([latents[:, :2], noise(1, 1, 2, 2, 3, seed=1)], axis=1)
    a, b = decode_raw(vae, latents), decode_raw(vae, other)
    np.testing.assert_array_equal(a[:, :5], b[:, :5])
    assert distance(a[:, 5:], b[:, 5:]) > 1e-3


def test_frames_see_the_past(vae):
    latents = noise(1, 3, 2, 2, 3)
    other = np.concatenate([noise(1, 1, 2, 2, 3, seed=1), latents[:, 1:]], axis=1)
    assert distance(decode_raw(vae, latents)[:, -1], decode_raw(vae, other)[:, -1]) > 1e-6


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param((1,) * 5, marks=pytest.mark.slow),
        (2, 3),
        pytest.param((1, 4), marks=pytest.mark.slow),
    ],
)
def test_parts_equal_the_whole_bit_for_bit(vae, parts):
    latents = 2 * noise(2, 5, 2, 3, 3)
    cache, frames, start = None, [], 0
    for count in parts:
        out, cache = decode_stream(vae, cache, latents[:, start : start + count])
        frames.append(np.asarray(out))
        start += count
    assert frames[0].shape[1] == 1 + 4 * (parts[0] - 1)
    np.testing.assert_array_equal(np.concatenate(frames, axis=1), decode(vae, latents))


@pytest.mark.slow
def test_later_frames_in_a_scan(vae):
    latents = noise(1, 5, 2, 2, 3)

    @jax.jit
    def scanned(vae, latents):
        first, cache = vae.decode_stream(None, latents[:, :1])

        def step(cache, latent):
            frames, cache = vae.decode_stream(cache, latent[:, None])
            return cache, frames

        _, rest = jax.lax.scan(step, cache, jnp.moveaxis(latents[:, 1:], 1, 0))
        return first, rest

    first, rest = scanned(vae, latents)
    assert rest.shape == (4, 1, 4, 8, 8, 3)
    whole = jnp.concatenate([first, *rest], axis=1)
    np.testing.assert_array_equal(whole, decode(vae, latents))


@pytest.mark.slow
def test_step_by_step_is_the_clip_at_once(vae):
    video, latents = noise(1, 9, 8, 8, 3), noise(1, 3, 2, 2, 3)
    assert distance(encode(vae, video), moments(vae, video)[0]) < 2e-6
    raw = decode_raw(vae, latents)
    assert distance(decode(vae, latents), jnp.clip(raw, -1, 1)) < 2e-6


def test_public_decode_is_clamped(vae):
    latents = 30 * noise(1, 2, 2, 2, 3)
    assert jnp.abs(decode_raw(vae, latents)).max() > 1
    assert jnp.abs(decode(vae, latents)).max() == 1


@pytest.mark.slow
def test_longer_videos_need_no_more_memory(vae):
    def temporary(t):
        latents = jax.ShapeDtypeStruct((1, t, 4, 4, 3), jnp.float32)
        analysis = decode.lower(vae, latents).compile().memory_analysis()
        return analysis.temp_size_in_bytes - 2 * analysis.output_size_in_bytes

    # The outputs of a scan are temporary until they are put in order; nothing else may grow.
    assert temporary(33) <= 1.05 * temporary(9)


# --- numbers ------------------------------------------------------------------------------------


def test_normalisation():
    plain = build(dataclasses.replace(TWICE, mean=(0.0,) * 3, std=(1.0,) * 3))
    scaled = build(TWICE)  # the same parameters
    video = noise(1, 1, 8, 8, 3)
    mean, log_variance = moments(plain, video)
    other_mean, other_log_variance = moments(scaled, video)
    centre, std = (np.float32(x)[None, None, None, None] for x in (TWICE.mean, TWICE.std))
    np.testing.assert_allclose(other_mean * std + centre, mean, atol=1e-6)
    np.testing.assert_allclose(other_log_variance + 2 * np.log(std), log_variance, atol=1e-5)
    np.testing.assert_allclose(decode(scaled, other_mean), decode(plain, mean), atol=1e-5)


@pytest.mark.slow
def test_every_parameter_learns(vae):
    graph, state = nnx.split(vae)
    video = jnp.asarray(noise(1, 9, 8, 8, 3))

    @jax.jit
    @jax.grad
    def gradient(state):
        vae = nnx.merge(graph, state)
        mean, log_variance = vae.encode_moments(video)
        latents = mean + jnp.exp(0.5 * log_variance) * noise(*mean.shape, seed=2)
        return jnp.mean((vae.decode_raw(latents) - video) ** 2)

    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient(state)):
        assert jnp.isfinite(leaf).all(), path
        assert jnp.abs(leaf).max() > 0, path


def test_gradient_of_black_is_finite(vae):
    zeros = jnp.zeros((1, 1, 2, 2, 3))
    assert jnp.isfinite(jax.jit(jax.grad(lambda z: vae.decode_raw(z).sum()))(zeros)).all()


@pytest.mark.slow
def test_bfloat16_runs_close_to_float32(vae):
    low = nnx.merge(
        nnx.graphdef(vae), jax.tree.map(lambda x: x.astype(jnp.bfloat16), nnx.state(vae))
    )
    video, latents = noise(1, 5, 8, 8, 3), noise(1, 2, 2, 2, 3)
    out = encode(low, video)
    assert out.dtype == jnp.float32
    assert distance(out, encode(vae, video)) < 0.03
    out = decode(low, latents)
    assert out.dtype == jnp.bfloat16
    assert distance(out, decode(vae, latents)) < 0.03
