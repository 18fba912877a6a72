"""Flow matching for both ways of making videos chunk by chunk, through the model's own layers.

Axes: B clip, F latent frame, H, W, C of the latents; L text row; N chunk.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from tt_jax.models.dit import KV, DiT, Read
from tt_jax.nn.attention import attention
from tt_jax.nn.layers import wide
from tt_jax.nn.rope import rotate, rotation
from tt_jax.strategies.schedule import time_sinusoid


def sinusoid_of(levels: Float[np.ndarray, " k"], index: Array) -> Float[Array, "... 256"]:
    """Sinusoids of noise levels: a table, exact as in a rollout.

    Args:
        levels: all there are.
        index: which to take.

    Returns:
        The features that the transformer embeds.
    """
    return jnp.asarray(time_sinusoid(levels))[index]


def clip_loss(
    dit: DiT,
    text: Float[Array, "b l e"],
    context: Float[Array, "b past h w c"],
    latents: Float[Array, "b f h w c"],
    noise: Float[Array, "b f h w c"],
    sigma: Float[Array, "b n"],
    time: Float[Array, "b n 256"],
    *,
    chunk: int,
    window: int,
) -> Float[Array, "b n"]:
    """Each chunk's mean squared error of the flow, after the clean chunks before it: one pass.

    The pass goes over the context's chunks, clean and causal among themselves, and the latents'
    chunks, each at its own noise level, which see the clean chunks before them within the window,
    and themselves. So a chunk's keys and values are made once, whatever comes after it.

    Args:
        dit: the transformer.
        text: encoded captions.
        context: chunks 0 to m - 1 of a clip, as a rollout would remember them. May be none.
        latents: its last n chunks, the last of them chunk m: with n = m + 1 the clip's first chunk
            is denoised too, without context, as a video begins.
        noise: what is mixed into the latents.
        sigma: noise level of each of their chunks.
        time: sinusoid of each level.
        chunk: latent frames of a chunk.
        window: latent frames that a rollout's attention spans.

    Returns:
        The error of every chunk of `latents`.
    """
    level = jnp.repeat(sigma, chunk, axis=1)[..., None, None, None]
    noisy = (1 - level) * latents + level * noise
    flow = clip_flow(dit, dit.encode_text(text), context, noisy, time, chunk=chunk, window=window)
    error = (wide(flow) - (noise - latents)) ** 2
    return jnp.mean(error.reshape(*sigma.shape, -1), axis=2)


def clip_flow(
    dit: DiT,
    text: KV,
    context: Float[Array, "b past h w c"],
    noisy: Float[Array, "b f h w c"],
    time: Float[Array, "b n 256"],
    *,
    chunk: int,
    window: int,
) -> Float[Array, "b f h w c"]:
    """The flow of noisy chunks, each after the clean chunks before it: the pass of `clip_loss`.

    Args:
        dit: the transformer.
        text: from its `encode_text`.
        context: the clean chunks.
        noisy: latents of the n noisy chunks.
        time: sinusoids of the noisy chunks' levels.
        chunk: frames of a chunk.
        window: frames that attention spans, the chunk included.

    Returns:
        The flow, noise minus data, of the noisy chunks.
    """
    b, f, height, width, _ = noisy.shape
    n, m = f // chunk, context.shape[1] // chunk
    places = np.concatenate([np.arange(m), np.arange(m + 1 - n, m + 1)])
    frames = (chunk * places[:, None] + np.arange(chunk)).ravel()
    patch = dit.config.patch
    grid = height // patch, width // patch
    rope = rotation(jnp.asarray(frames), *grid, dit.config.head_dim)
    read = clip_reader(rope, places[m:], m, window // chunk - 1, chunk * grid[0] * grid[1])
    clean = jnp.broadcast_to(jnp.asarray(time_sinusoid(np.zeros(m))), (b, m, time.shape[-1]))
    times = jnp.repeat(jnp.concatenate([clean, time], axis=1), chunk, axis=1)
    both = jnp.concatenate([context, noisy], axis=1)
    flow, _ = dit(both, times, text, None, read=read)
    return flow[:, m * chunk :]


def denoising_loss(
    dit: DiT,
    text: Float[Array, "b l e"],
    context: Float[Array, "b past h w c"],
    latents: Float[Array, "b f h w c"],
    noise: Float[Array, "k b f h w c"],
    levels: Float[Array, " k"],
    time: Float[Array, "k 256"],
    *,
    chunk: int,
    window: int,
) -> Float[Array, "k b n"]:
    """Each chunk's mean squared error of the denoised latents along the model's own denoising.

    A rollout never sees the truth with noise on it, as `clip_loss` shows it, but its own last
    estimate with noise on it. In a world whose captions decide what is seen, it can be asked for
    the truth from there: so it learns to mend what its first steps got wrong. Each estimate is a
    constant to the step after it.

    Args:
        dit: the transformer.
        text: embedded captions.
        context: clean latent frames before.
        latents: the chunks to be denoised.
        noise: fresh noise of every step.
        levels: of the steps, pure noise first.
        time: the levels' sinusoids.
        chunk: latent frames of one.
        window: latent frames that attention spans.

    Returns:
        The error of each step, sample and chunk.
    """
    n = latents.shape[1] // chunk
    encoded = dit.encode_text(text)

    def step(estimate: Array, inputs: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        noise, level, time = inputs
        noisy = (1 - level) * estimate + level * noise
        times = jnp.broadcast_to(time, (len(latents), n, time.shape[-1]))
        flow = clip_flow(dit, encoded, context, noisy, times, chunk=chunk, window=window)
        estimate = noisy - level * wide(flow)
        error = jnp.mean(((estimate - latents) ** 2).reshape(len(latents), n, -1), axis=2)
        return jax.lax.stop_gradient(estimate), error

    return jax.lax.scan(step, jnp.zeros_like(latents), (noise, levels, time))[1]


def rolling_levels(window: tuple[float, ...], chunks: int) -> Float[np.ndarray, "k n"]:
    """Levels of a video's first chunks in Rolling Forcing's first passes, one a chunk.

    Args:
        window: levels of a full window, ascending.
        chunks: of the video.

    Returns:
        A row for each pass: 0 for a chunk that is finished, NaN for one that isn't there yet.
    """
    table = np.full((chunks, chunks), np.nan, np.float32)
    for last in range(chunks):
        inside = window[max(0, len(window) - 1 - last) :]
        table[last, : last + 1] = (0.0,) * (last + 1 - len(inside)) + inside
    return table


def rolling_loss(
    dit: DiT,
    text: Float[Array, "b l e"],
    latents: Float[Array, "b f h w c"],
    noise: Float[Array, "k b f h w c"],
    window: tuple[float, ...],
    *,
    chunk: int,
) -> Float[Array, "k b n"]:
    """Each chunk's mean squared error of the denoised latents along the model's own rolling.

    What `denoising_loss` is to Self Forcing, from the video's beginning: a pass takes the chunks of
    its window, which see each other and the finished ones, a level down from where the pass before
    it left them.

    Args:
        dit: the transformer.
        text: embedded captions.
        latents: the video's first chunks.
        noise: fresh noise of every pass, of which there are as many as chunks.
        window: levels of a full window, ascending to pure noise.
        chunk: latent frames of one.

    Returns:
        The error of each pass, sample and chunk; 0 of a chunk that is finished or not there yet.
    """
    encoded, table = dit.encode_text(text), rolling_levels(window, len(noise))
    tokens = chunk * latents.shape[2] * latents.shape[3] // dit.config.patch**2
    estimate, errors = jnp.zeros_like(latents), []
    # Not a scan: a pass computes only the chunks that are there.
    for last, row in enumerate(table):
        levels = row[: last + 1]
        end, done = chunk * len(levels), levels == 0
        level = jnp.asarray(np.repeat(levels, chunk))[None, :, None, None, None]
        noisy = (1 - level) * estimate[:, :end] + level * noise[last, :, :end]
        seen = np.where(done[:, None], np.tril(np.broadcast_to(done, 2 * done.shape)), True)
        mask = jnp.asarray(seen.repeat(tokens, axis=0).repeat(tokens, axis=1))[None]
        times = jnp.asarray(time_sinusoid(np.repeat(levels, chunk)))[None]
        frames = jnp.arange(end)
        flow, _ = dit(noisy, times, encoded, frames, None, mask if done.any() else None)
        made = noisy - level * wide(flow)
        error = (made - latents[:, :end]) ** 2
        error = jnp.mean(error.reshape(len(latents), len(levels), -1), axis=2)
        error = jnp.where(jnp.asarray(done)[None], 0, error)
        errors.append(jnp.pad(error, ((0, 0), (0, len(table) - len(levels)))))
        estimate = estimate.at[:, :end].set(jax.lax.stop_gradient(made))
    return jnp.stack(errors)


def clip_reader(
    rope: tuple[Float[Array, "t pairs"], Float[Array, "t pairs"]],
    places: np.ndarray,
    clean: int,
    past: int,
    tokens: int,
) -> Read:
    """Block-causal attention over `[clean chunks | noisy chunks]`, chunk by chunk, unpadded.

    Args:
        rope: cosines and sines of all tokens.
        places: of each noisy chunk in the clip.
        clean: number of clean chunks, 0, 1, ... in the clip.
        past: chunks before its own that a chunk may see.
        tokens: of one chunk.

    Returns:
        How a layer reads.
    """

    def part(x: Array, first: int, last: int) -> Array:
        return x[:, first * tokens : last * tokens]

    def read(_: None, q: Array, k: Array, v: Array) -> tuple[Array, None]:
        q, k = rotate(q, rope), rotate(k, rope)
        seen = []
        for place in range(clean):
            span = max(0, place - past), place + 1
            seen.append(attention(part(q, place, place + 1), part(k, *span), part(v, *span)))
        for index, place in enumerate(places.tolist(), start=clean):
            before, own = (max(0, place - past), place), (index, index + 1)
            keys, values = (
                jnp.concatenate([part(x, *before), part(x, *own)], axis=1) for x in (k, v)
            )
            seen.append(attention(part(q, *own), keys, values))
        return jnp.concatenate(seen, axis=1), None

    return read


def window_loss(
    dit: DiT,
    text: Float[Array, "b l e"],
    latents: Float[Array, "b f h w c"],
    noise: Float[Array, "b f h w c"],
    sigma: Float[Array, "b n"],
    time: Float[Array, "b n 256"],
    seen: Bool[Array, "b n n"],
) -> Float[Array, "b n"]:
    """Each chunk's mean squared error of the flow, of chunks that are denoised in one pass.

    Args:
        dit: the transformer.
        text: embeddings of captions.
        latents: of clips.
        noise: to be added.
        sigma: level of each chunk.
        time: sinusoids of the levels.
        seen: `[b, i, j]`: whether chunk i sees chunk j.

    Returns:
        Each chunk's error.
    """
    b, f, height, width, _ = latents.shape
    size = f // sigma.shape[1]
    tokens = size * (height // dit.config.patch) * (width // dit.config.patch)
    mask = jnp.repeat(jnp.repeat(seen, tokens, axis=1), tokens, axis=2)
    level = jnp.repeat(sigma, size, axis=1)[..., None, None, None]
    noisy = (1 - level) * latents + level * noise
    times = jnp.repeat(time, size, axis=1)
    flow, _ = dit(noisy, times, dit.encode_text(text), jnp.arange(f), None, mask)
    error = (wide(flow) - (noise - latents)) ** 2
    return jnp.mean(error.reshape(b, sigma.shape[1], -1), axis=2)
