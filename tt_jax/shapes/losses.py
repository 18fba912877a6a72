"""Flow matching for both ways of making videos chunk by chunk, through the transformer's own paths.

Axes: B clip, F latent frame, H, W, C of the latents; L text row; N chunk.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from tt_jax.models.dit import KV, DiT
from tt_jax.nn.rope import rotate, rotation


def teacher_forcing_loss(
    dit: DiT,
    text: Float[Array, "b l e"],
    context: Float[Array, "b f h w c"],
    latents: Float[Array, "b f h w c"],
    noise: Float[Array, "b f h w c"],
    sigma: Float[Array, "b n"],
    time_of_clean: Float[Array, "1 f e"],
    time_of_noisy: Float[Array, "b n e"],
    weight: Float[Array, " b"],
) -> tuple[Float[Array, ""], Float[Array, " n"]]:
    """Mean squared error of the flow over `n` chunks of equal length, and each chunk's own.

    `latents` are those of chunks 1 to n, `context` the clean ones of chunks 0 to n - 1. Pass 1
    makes the context's keys and values; pass 2 denoises the n chunks side by side along the batch
    axis, each at the window's end with the clean chunks before it at its left. Positions are
    relative, so only their differences matter.
    """
    b, past, height, width, _ = latents.shape
    n = sigma.shape[1]
    size = past // n
    patch, head_dim = dit.config.patch, dit.config.head_dim
    grid = height // patch, width // patch
    chunk_tokens = size * grid[0] * grid[1]
    cross = dit.encode_text(text)

    chunk_of = np.repeat(np.arange(n), chunk_tokens)
    causal = jnp.asarray(chunk_of[:, None] >= chunk_of)[None]
    _, kv = dit(context, time_of_clean, cross, jnp.arange(past), None, causal)

    def window(i: int) -> tuple[Array, Array]:
        """Context of chunk i: the i chunks before it, right-aligned, rotated to their places."""
        tokens = i * chunk_tokens
        turn = rotation(jnp.arange(past - i * size, past), *grid, head_dim)
        pad = [(0, 0), (0, 0), (n * chunk_tokens - tokens, 0), (0, 0), (0, 0)]
        return jnp.pad(rotate(kv.k[:, :, :tokens], turn), pad), jnp.pad(kv.v[:, :, :tokens], pad)

    contexts = map(window, range(1, n + 1))
    k, v = (jnp.concatenate(part, axis=1) for part in zip(*contexts, strict=True))
    visible = np.arange((n + 1) * chunk_tokens) >= (n - np.arange(1, n + 1)[:, None]) * chunk_tokens
    mask = jnp.asarray(np.repeat(visible, b, axis=0))[:, None]

    def side_by_side(x: Array) -> Array:
        return jnp.concatenate(jnp.split(x, n, axis=1), axis=0)

    x0, eps = side_by_side(latents), side_by_side(noise)
    level = side_by_side(sigma)[..., None, None, None]
    noisy = (1 - level) * x0 + level * eps
    sinusoids = jnp.repeat(side_by_side(time_of_noisy), size, axis=1)
    text_kv = KV(*(jnp.concatenate([part] * n, axis=1) for part in cross))
    frames = jnp.arange(past, past + size)
    flow, _ = dit(noisy, sinusoids, text_kv, frames, KV(k, v), mask)
    error = jnp.mean((flow - (eps - x0)) ** 2, axis=(1, 2, 3, 4)).reshape(n, b)
    chunks = error @ weight / b
    return jnp.mean(chunks), chunks


def window_loss(
    dit: DiT,
    text: Float[Array, "b l e"],
    latents: Float[Array, "b f h w c"],
    noise: Float[Array, "b f h w c"],
    sigma: Float[Array, "b n"],
    time: Float[Array, "b n e"],
    weight: Float[Array, "b n"],
    seen: Bool[Array, "b n n"],
) -> Float[Array, ""]:
    """Mean squared error of the flow, by `weight`, of `n` chunks that are denoised in one pass.

    `seen[b, i, j]`: whether chunk i sees chunk j.
    """
    b, f, height, width, _ = latents.shape
    size = f // sigma.shape[1]
    tokens = size * (height // dit.config.patch) * (width // dit.config.patch)
    mask = jnp.repeat(jnp.repeat(seen, tokens, axis=1), tokens, axis=2)
    level = jnp.repeat(sigma, size, axis=1)[..., None, None, None]
    noisy = (1 - level) * latents + level * noise
    times = jnp.repeat(time, size, axis=1)
    flow, _ = dit(noisy, times, dit.encode_text(text), jnp.arange(f), None, mask)
    error = jnp.mean((flow - (noise - latents)) ** 2, axis=(2, 3, 4))
    error = jnp.mean(error.reshape(b, -1, size), axis=2)
    counted = (weight > 0).astype(error.dtype)
    return jnp.sum(error * weight) / jnp.maximum(jnp.sum(counted), 1)
