"""Whole rollouts with recorded noise, against recorded ones and against a loop in torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import arrays_of, converted, distance
from safetensors.numpy import load_file
from test_parity_dit import reference

from convert import dit as names
from tt_jax import SelfForcing, TokenTrim, rollout
from tt_jax.models.dit import DiTConfig
from tt_jax.strategies.schedule import time_sinusoid, warp

pytestmark = pytest.mark.parity

CONFIG = DiTConfig(dim=192, ffn_dim=384, layers=4, heads=4, text_dim=64, text_len=32)
GRID = (8, 12)


# --- recorded rollouts --------------------------------------------------------------------------


def last(x):
    """`[..., C, H, W]` to `[..., H, W, C]`."""
    return np.moveaxis(x, -3, -1)


def recorded_noise(arrays):
    """`[chunks, steps, B, F, h, w, C]` from the initial noise and that of each re-noising."""
    later = arrays["noise_inter"]
    first = arrays["noise_init"].reshape(len(later), 1, *later.shape[2:])
    return jnp.asarray(last(np.concatenate([first, later], axis=1))[:, :, None])


@pytest.fixture(scope="module")
def dit(golden):
    weights = load_file(golden / "dit_small_weights.safetensors")
    return converted("dit", names.native, weights, CONFIG)


def run(dit, arrays, trim):
    noise = recorded_noise(arrays)
    return rollout(
        dit, jnp.asarray(arrays["prompt_embeds"]), jax.random.key(0), chunks=len(noise), grid=GRID,
        strategy=SelfForcing(window=9), trim=trim, noise=noise,
    )  # fmt: skip


def record_chunks(part, out, expected, parity_record):
    for chunk in range(expected.shape[1] // 3):
        part_of = slice(3 * chunk, 3 * chunk + 3)
        value = distance(out[:, part_of], last(expected)[:, part_of])
        parity_record(f"{part}, chunk {chunk}", "recorded", "4 layers, width 192", value, 1e-5)


def test_self_forcing(golden, dit, parity_record):
    arrays = load_file(golden / "sf_rollout_b_local9_sink0.safetensors")
    out = run(dit, arrays, TokenTrim.off())
    record_chunks("Self Forcing", out.latents, arrays["latents"], parity_record)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "lam"), [("never", 1e9), ("main", -0.5)])
def test_token_trim(name, lam, golden, dit, parity_record):
    arrays = load_file(golden / "tokentrim_main.safetensors")
    out = run(dit, arrays, TokenTrim(lam=lam))
    expected = {
        key.removeprefix(f"{name}."): x for key, x in arrays.items() if key.startswith(f"{name}.")
    }
    record_chunks(f"TokenTrim ({name})", out.latents, expected["latents"], parity_record)

    for ours, theirs in (("severity", "D"), ("accepted_severity", "D_accepted")):
        value = distance(getattr(out, ours)[0, 1:], expected[theirs][1:])
        parity_record(f"TokenTrim ({name}), {ours}", "recorded", "8 chunks", value, 1e-5)
    value = distance(out.drift[0, 1:].reshape(7, -1), expected["d"][1:])
    parity_record(f"TokenTrim ({name}), drift", "recorded", "8 chunks", value, 1e-5)
    tested = expected["tested"].astype(bool)
    np.testing.assert_array_equal(out.tested[0], tested)
    np.testing.assert_allclose(out.threshold[0, tested], expected["threshold"][tested], rtol=1e-5)

    np.testing.assert_array_equal(out.triggered[0], expected["triggered"])
    for chunk, dropped in enumerate(out.pruned[0].reshape(8, -1)):
        chosen = expected["S"][chunk] if expected["triggered"][chunk] else []
        np.testing.assert_array_equal(np.flatnonzero(dropped), chosen)
    # 72 of the attended keys are the chunk's own; the buffer holds at most six frames of 24.
    written = 24 * np.minimum(3 * np.arange(8), 6)
    kept = np.asarray(out.kept_fraction[0]) * written
    np.testing.assert_allclose(kept, expected["n_kv"] - 72, atol=1e-4)
    if name == "never":
        plain = run(dit, arrays, TokenTrim.off())
        np.testing.assert_array_equal(out.latents, plain.latents)


# --- a plain loop over diffusers' layers --------------------------------------------------------


class TorchRollout:
    """Self Forcing with diffusers' layers, keys and values in lists; float64 positions."""

    def __init__(self, model, config, height, width):
        self.model, self.config, self.size = model, config, (height, width)
        self.past = []  # per frame: its number, and per layer the rotated keys and the values

    def rotate(self, x, frames):
        import torch

        side = 2 * (self.config.head_dim // 6)
        widths = (self.config.head_dim - 2 * side, side, side)
        axes = torch.meshgrid(
            torch.tensor(frames), *(torch.arange(n // 2) for n in self.size), indexing="ij"
        )
        angles = torch.cat(
            [
                axis.reshape(-1, 1) * 10000.0 ** (-torch.arange(0, d, 2, dtype=torch.float64) / d)
                for axis, d in zip(axes, widths, strict=True)
            ],
            dim=1,
        )
        turn = torch.polar(torch.ones_like(angles), angles)[:, None]
        pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * turn).flatten(-2).float()

    def __call__(self, latents, sigma, text, frames):
        """Flow of one chunk `[C, F, H, W]`, and its frames' keys and values."""
        import torch
        from torch.nn.functional import layer_norm, scaled_dot_product_attention

        model, heads = self.model, self.config.heads

        def norm(x):
            return layer_norm(x, x.shape[-1:], eps=1e-6)

        def split(x):
            return x.unflatten(-1, (heads, -1))

        def attend(q, k, v):
            q, k, v = (x.movedim(-2, -3) for x in (q, k, v))
            return scaled_dot_product_attention(q, k, v).movedim(-3, -2).flatten(-2)

        x = model.patch_embedding(latents[None])[0].flatten(1).T
        embedder = model.condition_embedder
        e = embedder.time_embedder(torch.from_numpy(time_sinusoid(np.array([sigma]))))
        e0 = embedder.time_proj(embedder.act_fn(e)).unflatten(1, (6, -1))
        rows = embedder.text_embedder(text)
        own = []
        for layer, block in enumerate(model.blocks):
            shift1, scale1, gate1, shift2, scale2, gate2 = (block.scale_shift_table + e0)[0]
            a = block.attn1
            y = norm(x) * (1 + scale1) + shift1
            k, v = self.rotate(split(a.norm_k(a.to_k(y))), frames), split(a.to_v(y))
            own.append((k, v))
            keys = torch.cat([*(kv[layer][0] for _, kv in self.past), k])
            values = torch.cat([*(kv[layer][1] for _, kv in self.past), v])
            q = self.rotate(split(a.norm_q(a.to_q(y))), frames)
            x = x + gate1 * a.to_out[0](attend(q, keys, values))
            c = block.attn2
            q, k = split(c.norm_q(c.to_q(block.norm2(x)))), split(c.norm_k(c.to_k(rows)))
            x = x + c.to_out[0](attend(q, k, split(c.to_v(rows))))
            x = x + gate2 * block.ffn(norm(x) * (1 + scale2) + shift2)
        shift, scale = (model.scale_shift_table + e[:, None])[0]
        x = model.proj_out(norm(x) * (1 + scale) + shift)
        x = x.reshape(len(frames), self.size[0] // 2, self.size[1] // 2, 2, 2, -1)
        return x.permute(5, 0, 1, 3, 2, 4).reshape(latents.shape), own

    def remember(self, frames, own, window, sink):
        """Keeps the first `sink` frames and the most recent ones, `window - 3` in all."""
        per_frame = len(own[0][0]) // len(frames)
        for i, frame in enumerate(frames):
            part = slice(i * per_frame, (i + 1) * per_frame)
            self.past.append((frame, [(k[part], v[part]) for k, v in own]))
        recent = len(self.past) - (window - 3 - sink)
        self.past = [
            entry for i, entry in enumerate(self.past) if entry[0] < sink or i >= max(recent, sink)
        ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("window", "sink"), [(9, 0), (9, 3), (9, 1), (21, 0)], ids=lambda value: str(value)
)
def test_self_forcing_against_torch(window, sink, parity_record):
    torch = pytest.importorskip("torch")
    chunks, levels = 5, warp((1000, 750, 500, 250))
    model = reference(CONFIG, seed=3)
    rng = np.random.default_rng(4)
    noise = rng.standard_normal((chunks, 4, 16, 3, *GRID), np.float32)
    text = rng.standard_normal((1, 32, 64), np.float32)
    text[:, 20:] = 0

    loop = TorchRollout(model, CONFIG, *GRID)
    expected = []
    with torch.no_grad():
        for chunk in range(chunks):
            frames = list(range(3 * chunk, 3 * chunk + 3))
            x0 = torch.zeros(16, 3, *GRID)
            for sigma, fresh in zip(levels, torch.from_numpy(noise[chunk]), strict=True):
                noisy = (1 - sigma) * x0 + sigma * fresh
                x0 = noisy - sigma * loop(noisy, sigma, torch.from_numpy(text[0]), frames)[0]
            expected.append(x0.numpy())
            own = loop(x0, 0.0, torch.from_numpy(text[0]), frames)[1]
            loop.remember(frames, own, window, sink)

    out = rollout(
        converted("dit", names.diffusers, arrays_of(model), CONFIG), jnp.asarray(text),
        jax.random.key(0), chunks=chunks, grid=GRID, trim=TokenTrim.off(),
        strategy=SelfForcing(window=window, sink=sink),
        noise=jnp.asarray(np.moveaxis(noise, 2, -1)[:, :, None]),
    )  # fmt: skip
    for chunk, x0 in enumerate(expected):
        ours = out.latents[0, 3 * chunk : 3 * chunk + 3]
        value = distance(ours, np.moveaxis(x0, 0, -1))
        part = f"Self Forcing, window {window}, sink {sink}, chunk {chunk}"
        parity_record(part, "torch loop", "4 layers, width 192", value, 5e-5)
