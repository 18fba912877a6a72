"""The diffusion transformer against arrays recorded from Wan and Self Forcing, and diffusers."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from parity import arrays_of, channels_last, converted, distance, empty
from safetensors.numpy import load_file

from convert import dit as names
from convert.layout import check, from_params, to_params
from tt_jax.models.dit import KV, DiT, DiTConfig, reader
from tt_jax.nn.attention import attention
from tt_jax.nn.layers import layer_norm, patchify, wide
from tt_jax.nn.rope import rotate, rotation
from tt_jax.strategies.schedule import time_sinusoid

pytestmark = pytest.mark.parity


def sinusoid(timestep):
    """From timesteps; they come in float32, the level is taken in float64."""
    return jnp.asarray(time_sinusoid(np.asarray(timestep, np.float64) / 1000))


@jax.jit
def forward(dit, latents, time, text, frames, context=None, mask=None):
    return dit(latents, time, text, frames, context, mask)


# --- recorded arrays ----------------------------------------------------------------------------

SMALL = DiTConfig(dim=192, ffn_dim=384, layers=4, heads=4, text_dim=64, text_len=32)
SIZE = "4 layers, width 192"
GRID = (4, 6)  # tokens of a recorded frame


@pytest.fixture(scope="module")
def recorded(golden):
    """Arrays on the device, but for the timesteps and float64 ones, which the host needs."""
    arrays = load_file(golden / "dit_small_io.safetensors")
    host = {name for name, x in arrays.items() if name.endswith(".t") or x.dtype == np.float64}
    return {name: x if name in host else jnp.asarray(x) for name, x in arrays.items()}


@pytest.fixture(scope="module")
def small(golden):
    return converted(
        "dit", names.native, load_file(golden / "dit_small_weights.safetensors"), SMALL
    )


def rotated(kv: KV, frames) -> KV:
    rope = rotation(frames, *GRID, SMALL.head_dim)
    return KV(jax.vmap(lambda k: rotate(k, rope))(kv.k), kv.v)


def join(parts: list[KV]) -> KV:
    return jax.tree.map(lambda *xs: jnp.concatenate(xs, axis=2), *parts)


def test_recorded_non_causal(recorded, small, parity_record):
    time = jnp.repeat(sinusoid(recorded["noncausal.t"])[:, None], 3, axis=1)
    text = small.encode_text(recorded["noncausal.context"])
    latents = channels_last(recorded["noncausal.x"])
    out, _ = forward(small, latents, time, text, jnp.arange(3))
    value = distance(out, channels_last(recorded["noncausal.out"]))
    parity_record("DiT, one pass", "recorded", SIZE, value, 1e-5)


def test_recorded_chunks_with_a_cache(recorded, small, parity_record):
    text = small.encode_text(recorded["causal.context"])
    cache = []
    for chunk in range(3):
        name = f"causal.chunk{chunk}"
        frames = 3 * chunk + jnp.arange(3)
        latents, time = channels_last(recorded[f"{name}.x"]), sinusoid(recorded[f"{name}.t"])
        context = join(cache) if cache else None
        out, kv = forward(small, latents, time, text, frames, context)
        cache.append(rotated(kv, frames))
        value = distance(out, channels_last(recorded[f"{name}.out"]))
        parity_record(f"DiT, chunk {chunk} with a cache", "recorded", SIZE, value, 1e-5)
    cache = join(cache)
    for layer in (0, 3):
        pairs = {
            "final_cache": (cache.k[layer], cache.v[layer]),
            "crossattn_cache": (text.k[layer], text.v[layer]),
        }
        for name, kv in pairs.items():
            for letter, array in zip("kv", kv, strict=True):
                reference = recorded[f"causal.{name}.layer{layer}.{letter}"]
                assert distance(array, reference) < 1e-5, (name, layer, letter)


def test_recorded_block_causal_mask(recorded, small, parity_record):
    """Nine frames at once, each chunk of three seeing itself and the chunks before it."""
    chunks = [f"causal.chunk{chunk}" for chunk in range(3)]
    latents = jnp.concatenate([channels_last(recorded[f"{name}.x"]) for name in chunks], axis=1)
    time = jnp.concatenate([sinusoid(recorded[f"{name}.t"]) for name in chunks], axis=1)
    text = small.encode_text(recorded["causal.context"])
    chunk = np.arange(9 * GRID[0] * GRID[1]) // (3 * GRID[0] * GRID[1])
    mask = jnp.asarray(chunk[:, None] >= chunk[None, :])[None]
    out, _ = forward(small, latents, time, text, jnp.arange(9), None, mask)
    value = distance(out, channels_last(recorded["blockcausal.out"]))
    parity_record("DiT, block-causal mask", "recorded", SIZE, value, 1e-5)


@pytest.mark.parametrize("chunk", [0, 2])
def test_recorded_activations(chunk, recorded, small):
    text = small.encode_text(recorded["causal.context"])
    context = None
    if chunk:
        past = []
        for c in range(chunk):
            name, frames = f"causal.chunk{c}", 3 * c + jnp.arange(3)
            latents, time = channels_last(recorded[f"{name}.x"]), sinusoid(recorded[f"{name}.t"])
            _, kv = forward(small, latents, time, text, frames, join(past) if past else None)
            past.append(rotated(kv, frames))
        context = join(past)

    name = f"causal.chunk{chunk}"
    acts = {
        key.removeprefix(f"{name}.act."): value
        for key, value in recorded.items()
        if key.startswith(f"{name}.act.")
    }
    latents, frames = channels_last(recorded[f"{name}.x"]), 3 * chunk + jnp.arange(3)
    ours = {}
    x = small.patch_embedding(patchify(latents, 2))
    ours["patch_embedding"] = jnp.moveaxis(x.reshape(1, 3, *GRID, -1), -1, 1)
    e, e0 = small.embed_time(sinusoid(recorded[f"{name}.t"]))
    ours["time_embedding"], ours["time_projection"] = e[0], e0.reshape(3, -1)
    ours["text_embedding"] = small.text_embedding(recorded["causal.context"])
    rope = rotation(frames, *GRID, SMALL.head_dim)
    for i in range(SMALL.layers):
        block, kv = jax.tree.map(lambda leaf, i=i: leaf[i], (small.blocks, text))
        past = None if context is None else KV(context.k[i], context.v[i])
        if i == 0:
            ours |= sublayers(block, x, e0, rope, kv, past)
        x, _ = block(x, e0, kv, past, reader(rope, None))
        ours[f"block{i}"] = x.reshape(1, 72, -1)
    out, _ = forward(small, latents, sinusoid(recorded[f"{name}.t"]), text, frames, context)
    ours["head"] = patchify(out, 2)

    assert ours.keys() == acts.keys()
    far = {key: distance(ours[key], acts[key]) for key in acts}
    assert max(far.values()) < 1e-5, far


def sublayers(block, x, time, rope, text, past):
    """What the three sublayers of a block add to the stream, before their gates."""
    m = time + wide(block.modulation[...])[None, None]
    shift1, scale1, gate1, shift2, scale2, _ = (m[:, :, i, None] for i in range(6))
    y = (layer_norm(x) * (1 + scale1) + shift1).reshape(1, 72, -1)
    k, v = block.self_attn.key_value(y)
    keys, values = rotate(k, rope), v
    if past is not None:
        keys = jnp.concatenate([past[0], keys], axis=1)
        values = jnp.concatenate([past[1], values], axis=1)
    y = block.self_attn.out(attention(rotate(block.self_attn.query(y), rope), keys, values))
    x = x + y.reshape(x.shape) * gate1
    z = block.cross_attn.query(block.norm_cross(x).reshape(1, 72, -1))
    z = block.cross_attn.out(attention(z, *text))
    x = x + z.reshape(x.shape)
    w = block.ffn(layer_norm(x) * (1 + scale2) + shift2).reshape(1, 72, -1)
    return {"block0.self_attn": y, "block0.cross_attn": z, "block0.ffn": w}


def test_recorded_rotations(recorded):
    table = recorded["rope_freqs_real_imag"]  # position, channel pair (t | h | w), (cos, sin)
    n = len(table)
    axes = [((jnp.arange(n), 1, 1), 0), ((jnp.arange(1), n, 1), 1), ((jnp.arange(1), 1, n), 2)]
    for grid, axis in axes:
        pairs = slice(8 * axis, 8 * axis + 8)
        for ours, reference in zip(rotation(*grid, 48), np.moveaxis(table, -1, 0), strict=True):
            np.testing.assert_allclose(ours[:, pairs], reference[:, pairs], atol=1.5e-7)


# --- diffusers ----------------------------------------------------------------------------------
# Its time sinusoid is float32, which alone moves the output by 6e-6 to 9e-6.


def reference(config: DiTConfig, seed: int = 0):
    """A diffusers transformer with random weights: unit-scale activations, no zero biases."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    model = diffusers.WanTransformer3DModel(
        num_attention_heads=config.heads,
        attention_head_dim=config.head_dim,
        in_channels=config.channels,
        out_channels=config.channels,
        text_dim=config.text_dim,
        freq_dim=config.freq_dim,
        ffn_dim=config.ffn_dim,
        num_layers=config.layers,
    ).eval()
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(generator=random)
            if "norm" in name and name.endswith("weight"):
                weight.mul_(0.2).add_(1)
            elif weight.ndim == 1:
                weight.mul_(0.1)
            elif "scale_shift_table" in name:
                weight.mul_(0.3)
            else:
                weight.mul_(weight[0].numel() ** -0.5)
    return model


def inputs(config: DiTConfig, batch: int, height: int, width: int, text_len: int):
    random = np.random.default_rng(0)
    latents = random.standard_normal((batch, 3, height, width, config.channels), np.float32)
    text = random.standard_normal((batch, text_len, config.text_dim), np.float32)
    text[:, text_len // 2 :] = 0
    timestep = np.array([937.5, 625.0], np.float32)[:batch]
    return latents, text, timestep


def run_reference(model, latents, text, timestep):
    torch = pytest.importorskip("torch")

    dtype = model.patch_embedding.weight.dtype
    with torch.no_grad():
        (out,) = model(
            torch.from_numpy(np.moveaxis(latents, -1, 1).copy()).to(dtype),
            torch.from_numpy(timestep),
            torch.from_numpy(text).to(dtype),
            return_dict=False,
        )
    return channels_last(out.float().numpy())


def run_ours(dit, latents, text, timestep):
    time = jnp.repeat(sinusoid(timestep)[:, None], latents.shape[1], axis=1)
    text = dit.encode_text(jnp.asarray(text))
    out, _ = forward(dit, latents, time, text, jnp.arange(latents.shape[1]))
    return out.astype(jnp.float32)


CASES = {
    "4 layers, width 192, head width 48": (SMALL, (2, 8, 12, 32), 2e-5),
    "3 layers, width 256, head width 128": (
        DiTConfig(dim=256, ffn_dim=640, layers=3, heads=2, text_dim=64, text_len=32),
        (2, 8, 12, 32),
        2e-5,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("size", CASES)
def test_diffusers_small(size, parity_record):
    config, sizes, bound = CASES[size]
    model, given = reference(config), inputs(config, *sizes)
    dit = converted("dit", names.diffusers, arrays_of(model), config)
    value = distance(run_ours(dit, *given), run_reference(model, *given))
    parity_record("DiT, one pass", "diffusers", size, value, bound)


@pytest.mark.slow
def test_diffusers_true_widths(parity_record):
    config = DiTConfig(layers=2)
    model, given = reference(config), inputs(config, 1, 16, 16, 512)
    dit = converted("dit", names.diffusers, arrays_of(model), config)
    value = distance(run_ours(dit, *given), run_reference(model, *given))
    parity_record("DiT, one pass", "diffusers", "2 layers, true widths", value, 1e-4)


class Once(dict):
    """Arrays that are let go when they are read, so that a true-size model is in memory once."""

    def __getitem__(self, name):
        return self.pop(name)


@pytest.mark.huge
def test_diffusers_true_size(parity_record):
    config = DiTConfig.wan_1_3b()
    model, given = reference(config), inputs(config, 1, 16, 16, 512)
    expected = run_reference(model, *given)
    arrays = Once(arrays_of(model))
    del model
    dit = converted("dit", names.diffusers, arrays, config)
    value = distance(run_ours(dit, *given), expected)
    parity_record("DiT, one pass", "diffusers", "Wan2.1 1.3B", value, 1e-4)


@pytest.mark.slow
def test_bfloat16_is_as_close_as_torch(parity_record):
    """Both frameworks' bfloat16 against float32: ours may be at most 1.2 times as far.

    diffusers keeps its norms and time embedding in float32; ours casts every parameter.
    """
    torch = pytest.importorskip("torch")

    size = "3 layers, width 256, head width 128"
    config, sizes, _ = CASES[size]
    model, given = reference(config), inputs(config, *sizes)
    dit = converted("dit", names.diffusers, arrays_of(model), config)
    exact = run_reference(model, *given)
    for name, weight in model.named_parameters():
        if not set(name.split(".")) & set(model._keep_in_fp32_modules):
            weight.data = weight.data.to(torch.bfloat16)
    theirs = distance(run_reference(model, *given), exact)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), dit)
    ours = distance(run_ours(half, *given), exact)
    parity_record("DiT, bfloat16", "diffusers", size, ours, 1.2 * theirs)


# --- layouts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "layout", "config"),
    [
        ("wan2.1_t2v_1.3b.native", names.native, DiTConfig.wan_1_3b()),
        ("wan2.1_t2v_1.3b.diffusers", names.diffusers, DiTConfig.wan_1_3b()),
        ("wan2.1_t2v_14b.native", names.native, DiTConfig.wan_14b()),
    ],
)
def test_published_layout(file, layout, config, golden):
    stored = json.loads((golden.parent / f"layouts/{file}.json").read_text())
    shapes = {name: tuple(shape) for name, shape in stored.items()}
    check(layout(config), shapes, empty("dit", config))


@pytest.mark.parametrize("layout", [names.native, names.diffusers])
def test_there_and_back(layout):
    dit = DiT(SMALL, rngs=nnx.Rngs(0))
    params = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(dit)))
    back = to_params(layout(SMALL), from_params(layout(SMALL), params), params)
    jax.tree.map(np.testing.assert_array_equal, back, params)


def test_recorded_weights_there_and_back(golden):
    arrays = load_file(golden / "dit_small_weights.safetensors")
    table = names.native(SMALL)
    back = from_params(table, to_params(table, arrays, empty("dit", SMALL)))
    assert back.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array, err_msg=name)
