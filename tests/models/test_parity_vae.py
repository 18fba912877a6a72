"""The VAE against arrays recorded from Wan's, and against diffusers, through the converter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from parity import arrays_of, channels_last, converted, distance
from safetensors.numpy import load_file

from convert import vae as names
from convert.layout import from_params
from tt_jax.models.vae import VAEConfig

pytestmark = pytest.mark.parity

SMALL = VAEConfig(dim=8)
SIZE = "width 8"


@jax.jit
def encode(vae, video):
    return vae.encode(video)


@jax.jit
def encode_moments(vae, video):
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


# --- recorded arrays ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded(golden):
    arrays = load_file(golden / "vae_small_io.safetensors")
    return {name: channels_last(x) if x.ndim == 5 else x for name, x in arrays.items()}


@pytest.fixture(scope="module")
def wan(golden):
    return converted(
        "vae", names.native, load_file(golden / "vae_small_weights.safetensors"), SMALL
    )


@pytest.mark.slow
def test_encode(wan, recorded, parity_record):
    out = encode(wan, recorded["video"])
    parity_record("VAE encode", "Wan, recorded", SIZE, distance(out, recorded["encode_mu"]), 1e-5)


def test_encode_at_once(wan, recorded, parity_record):
    out = encode_moments(wan, recorded["video"])[0]
    value = distance(out, recorded["encode_mu"])
    parity_record("VAE encode, clip at once", "Wan, recorded", SIZE, value, 1e-5)


def test_encode_unscaled(wan, recorded, parity_record):
    out = np.asarray(encode(wan, recorded["video"])) * recorded["std"] + recorded["mean"]
    value = distance(out, recorded["encode_mu_unscaled"])
    parity_record("VAE encode, not normalised", "Wan, recorded", SIZE, value, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("frames", "name"), [(9, ""), (21, "6")])
def test_decode(wan, recorded, frames, name, parity_record):
    latents, reference = recorded["z" + name], recorded["decode" + name]
    size = f"{SIZE}, {frames} frames"
    value = distance(decode_raw(wan, latents), reference)
    parity_record("VAE decode, clip at once, not clamped", "Wan, recorded", size, value, 1e-5)
    value = distance(decode(wan, latents), reference.clip(-1, 1))
    parity_record("VAE decode", "Wan, recorded", size, value, 1e-5)


@pytest.mark.slow
def test_decode_in_parts(wan, recorded, parity_record):
    cache = None
    for part in range(2):
        latents = recorded["z6"][:, 3 * part : 3 * part + 3]
        frames, cache = decode_stream(wan, cache, latents)
        value = distance(frames, recorded[f"cached_part{part}"].clip(-1, 1))
        parity_record(f"VAE decode, part {part} of 2", "Wan, recorded", SIZE, value, 1e-5)


def test_native_layout_round_trip(golden, wan):
    weights = load_file(golden / "vae_small_weights.safetensors")
    again = from_params(
        names.native(SMALL), jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(wan)))
    )
    assert again.keys() == weights.keys()
    for name, array in weights.items():
        assert again[name].dtype == array.dtype, name
        np.testing.assert_array_equal(again[name], array, err_msg=name)


# --- diffusers ----------------------------------------------------------------------------------


def reference_vae(config, seed=0):
    """diffusers' model with random weights, norms and biases included."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(seed)
    model = diffusers.AutoencoderKLWan(
        base_dim=config.dim,
        z_dim=config.latent_channels,
        dim_mult=list(config.dim_mult),
        num_res_blocks=config.res_blocks,
        temperal_downsample=list(config.temporal_downsample),
        latents_mean=list(config.mean),
        latents_std=list(config.std),
    ).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("gamma"):
                weight.add_(0.2 * torch.randn_like(weight))
            elif name.endswith("bias"):
                weight.copy_(0.1 * torch.randn_like(weight))
    return model


def torch_encode(model, video):
    """Raw mean and log-variance, channels-last."""
    torch = pytest.importorskip("torch")

    with torch.no_grad():
        x = torch.from_numpy(np.moveaxis(video, -1, 1).copy()).to(model.dtype)
        moments = model.encode(x).latent_dist
    return channels_last(moments.mean.float()), channels_last(moments.logvar.float())


def torch_decode(model, latents):
    """The clamped video, from normalised latents, channels-last."""
    torch = pytest.importorskip("torch")

    with torch.no_grad():
        x = np.asarray(latents) * np.float32(model.config.latents_std) + np.float32(
            model.config.latents_mean
        )
        x = torch.from_numpy(np.moveaxis(x, -1, 1).copy()).to(model.dtype)
        return channels_last(model.decode(x).sample.float())


def sample(config, frames, side, seed=1):
    """A smooth video in [-1, 1], and random latents of its size."""
    rng = np.random.default_rng(seed)
    phase = np.arange(frames)[:, None, None, None] * 0.3
    x, y = np.meshgrid(np.arange(side) / 5, np.arange(side + 8) / 7)
    video = np.sin(x[..., None] + y[..., None] * [1, 2, 3] + phase)[None]
    video = 0.7 * video + 0.1 * rng.uniform(-1, 1, video.shape)
    t = 1 + (frames - 1) // config.temporal_stride
    stride = config.spatial_stride
    latents = rng.normal(size=(1, t, *(n // stride for n in video.shape[2:4]), len(config.mean)))
    return video.astype(np.float32), latents.astype(np.float32)


def compare(config, frames, side, size, bound, parity_record):
    model = reference_vae(config)
    vae = converted("vae", names.diffusers, arrays_of(model), config)
    video, latents = sample(config, frames, side)
    mean, log_variance = torch_encode(model, video)
    normalised = (np.asarray(mean) - np.float32(config.mean)) / np.float32(config.std)
    value = distance(encode(vae, video), normalised)
    parity_record("VAE encode", "diffusers", size, value, bound)
    out = np.asarray(encode_moments(vae, video)[1]) + 2 * np.log(np.float32(config.std))
    value = distance(out, log_variance)
    parity_record("VAE log-variance", "diffusers", size, value, bound)
    reference = torch_decode(model, latents)
    value = distance(decode(vae, latents), reference)
    parity_record("VAE decode", "diffusers", size, value, bound)


@pytest.mark.slow
@pytest.mark.parametrize("frames", [1, 12])
def test_diffusers_small(frames, parity_record):
    compare(SMALL, frames, 32, f"{SIZE}, {frames} frames", 1e-5, parity_record)


@pytest.mark.slow
@pytest.mark.parametrize("frames", [1, 5])
def test_diffusers_published_widths(frames, parity_record):
    compare(VAEConfig.wan(), frames, 32, f"Wan2.1, {frames} frames", 1e-4, parity_record)


@pytest.mark.slow
def test_bfloat16(parity_record):
    """Our bfloat16 stays as close to float32 as torch's does (given as a multiple of torch's)."""
    torch = pytest.importorskip("torch")
    config = VAEConfig(dim=16)
    model = reference_vae(config)
    vae = converted("vae", names.diffusers, arrays_of(model), config, jnp.bfloat16)
    video, latents = sample(config, 9, 32)
    mean, frames = torch_encode(model, video)[0], torch_decode(model, latents)
    low = model.to(torch.bfloat16)
    theirs = distance(torch_encode(low, video)[0], mean)
    out = np.asarray(encode(vae, video)) * np.float32(config.std) + np.float32(config.mean)
    value = distance(out, mean) / theirs
    parity_record("VAE encode, bfloat16 error over torch's", "diffusers", "width 16", value, 1.2)
    theirs = distance(torch_decode(low, latents), frames)
    value = distance(decode(vae, latents), frames) / theirs
    parity_record("VAE decode, bfloat16 error over torch's", "diffusers", "width 16", value, 1.2)
