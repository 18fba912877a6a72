"""What each stage is shown and asked: its data, made on the device, and its loss.

Every loss takes the stage's parameters, its data and a key, and draws its own batch from them.
Axes: B sample, F latent frame, N chunk of a clip.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, DTypeLike, Float, Int, Key

from tt_jax.models.configs import ModelConfig
from tt_jax.models.vae import VAE
from tt_jax.nn.layers import wide
from tt_jax.shapes.training.captions import Grammar, say
from tt_jax.shapes.training.losses import (
    clip_loss,
    denoising_loss,
    rolling_levels,
    rolling_loss,
    window_loss,
)
from tt_jax.shapes.training.optimise import Loss, Params
from tt_jax.shapes.training.reading import answers, reading_loss
from tt_jax.shapes.training.recipe import Recipe
from tt_jax.shapes.training.scenes import Scenes, render, sample
from tt_jax.shapes.world import FPS, SIDE
from tt_jax.strategies.schedule import time_sinusoid, warp

ROLLING = (200, 400, 600, 800, 1000)  # nominal steps of a window of Rolling Forcing
LATE = 8 * FPS  # frames within which clips that don't begin with the video begin
SKIPPED = 2  # their first latent frames, which are coded without the past: left out


class Pool(NamedTuple):
    """Clips on the device.

    Attributes:
        scenes: what they show.
        latents: float16.
        past: what is shown as the past of their chunks, float16.
        target: what comes after that, float16.
    """

    scenes: Scenes
    latents: Float[Array, "n f h w c"]
    past: Float[Array, "n f h w c"]
    target: Float[Array, "n f h w c"]


class Maker(NamedTuple):
    """What all stages of transformer and text encoder share.

    Attributes:
        config: sizes of the model.
        recipe: of the training.
        grammar: pieces of captions.
        graphs: of "dit" and "text".
        dtype: of the products; parameters stay float32.
    """

    config: ModelConfig
    recipe: Recipe
    grammar: Grammar
    graphs: dict[str, nnx.GraphDef]
    dtype: DTypeLike

    def models(self, params: Params) -> tuple[Any, Any]:
        """Transformer and text encoder with these parameters, in the dtype of products."""
        params = jax.tree.map(lambda x: x.astype(self.dtype), params)
        return tuple(nnx.merge(self.graphs[name], params[name]) for name in ("dit", "text"))

    def text(self, encoder: Any, key: Key[Array, ""], scenes: Scenes) -> Float[Array, "b l e"]:
        """Encoded captions of scenes.

        Args:
            encoder: of texts.
            key: of the phrasings.
            scenes: what captions say.

        Returns:
            Embeddings.
        """
        return encoder(*say(key, self.grammar, scenes, self.config.text.text_len))


# --- the VAE ------------------------------------------------------------------------------------


def vae_loss(graph: nnx.GraphDef, recipe: Recipe, dtype: DTypeLike) -> Loss:
    """Reconstruction (L1 + L2) of crops around objects, of fresh scenes, and a little KL.

    Args:
        graph: the VAE's.
        recipe: of the training.
        dtype: of the products.

    Returns:
        The loss of parameters, by a key.
    """

    def loss(params: Params, _: Any, key: Key[Array, ""]) -> tuple[Array, dict]:
        draw, when, where, add = jax.random.split(key, 4)
        count, side = recipe.vae.batch, recipe.crop
        scenes = sample(draw, count)
        start = jax.random.randint(when, (count,), 0, 4 * FPS)
        video = render(scenes, recipe.vae_frames, start)
        # About the first object's way: a corner from which the crop holds some of it.
        off = jax.random.uniform(where, (count, 2), minval=-side, maxval=0)
        corner = jnp.clip(scenes.at[:, 0] + off, 0, SIDE - side).astype(jnp.int32)
        cut = jax.vmap(
            lambda clip, at: jax.lax.dynamic_slice(
                clip, (0, at[1], at[0], 0), (recipe.vae_frames, side, side, 3)
            )
        )
        video = (cut(video, corner).astype(jnp.float32) / 127.5 - 1).astype(dtype)
        vae = nnx.merge(graph, jax.tree.map(lambda x: x.astype(dtype), params))
        mean, log_variance = vae.encode_moments(video)
        latents = mean + jnp.exp(0.5 * log_variance) * jax.random.normal(add, mean.shape)
        error = wide(vae.decode_raw(latents)) - wide(video)
        squared = jnp.mean(error**2)
        kl = 0.5 * jnp.mean(mean**2 + jnp.exp(log_variance) - 1 - log_variance)
        total = jnp.mean(jnp.abs(error)) + squared + recipe.kl * kl
        return total, {"psnr": -10 * jnp.log10(squared / 4), "kl": kl}

    return loss


def encode_pool(
    vae: VAE, recipe: Recipe, count: int, chunks: int, key: Key[Array, ""], *, late: bool
) -> Pool:
    """Renders and encodes clips of fresh scenes, a group at a time.

    Args:
        vae: what encodes.
        recipe: of the training.
        count: how many clips.
        chunks: of each.
        key: of the scenes.
        late: half of them begin somewhere in their video, and not as a video begins.

    Returns:
        The clips, their own latents as the past and as what comes after it.
    """
    graph, state = nnx.split(vae)
    keys = jax.random.split(key, -(-count // recipe.encode))
    parts = [_encode_group(graph, recipe, chunks, late, state, key) for key in keys]
    scenes, latents = jax.tree.map(lambda *x: jnp.concatenate(x)[:count], *parts)
    return Pool(scenes, latents, latents, latents)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _encode_group(
    graph: nnx.GraphDef, recipe: Recipe, chunks: int, late: bool, state: Any, key: Key[Array, ""]
) -> tuple[Scenes, Float[Array, "n f h w c"]]:
    vae, frames, skipped = nnx.merge(graph, state), 3 * chunks, SKIPPED if late else 0
    draw, when = jax.random.split(key)
    scenes = sample(draw, recipe.encode, recipe.pairs)
    start = jax.random.randint(when, (recipe.encode,), 0, LATE)
    begins = jnp.arange(recipe.encode) % 2 == 0 if late else jnp.ones(recipe.encode, bool)
    length = vae.config.temporal_stride * (frames + skipped - 1) + 1
    video = render(scenes, length, jnp.where(begins, 0, start))
    latents = vae.encode(video.astype(jnp.float32) / 127.5 - 1)
    pick = jnp.where(begins, 0, skipped)[:, None] + jnp.arange(frames)[None]
    latents = jnp.take_along_axis(latents, pick[..., None, None, None], axis=1)
    return scenes, latents.astype(jnp.float16)


# --- text encoder and transformer ---------------------------------------------------------------


def reading(maker: Maker) -> Loss:
    """The text encoder by itself, asked what captions say."""

    def loss(params: Params, _: Any, key: Key[Array, ""]) -> tuple[Array, dict]:
        draw, speak = jax.random.split(key)
        scenes = sample(draw, maker.recipe.reading.batch, maker.recipe.pairs)
        ids, mask = say(speak, maker.grammar, scenes, maker.config.text.text_len)
        rows = nnx.merge(maker.graphs["text"], params["text"])(ids, mask)
        error, right = reading_loss(params["questions"], rows, mask, answers(scenes))
        return error, {"right": right}

    return loss


def weigh(latents: Float[Array, "b f h w c"]) -> Float[Array, "b 1"]:
    """A small object must count about as much as one that fills the frame."""
    ground = jnp.median(latents, axis=(2, 3), keepdims=True)
    return 0.3 / (0.05 + jnp.mean((latents - ground) ** 2, axis=(1, 2, 3, 4)))[:, None]


def draw_levels(
    recipe: Recipe, key: Key[Array, ""], shape: tuple[int, ...]
) -> tuple[Float[Array, "b n"], Float[Array, "b n 256"], Int[Array, "b n"]]:
    """Noise levels by the recipe's odds.

    Args:
        recipe: of the training.
        key: of the draws.
        shape: samples and chunks.

    Returns:
        The levels, their sinusoids, and which of the recipe they are.
    """
    levels = np.array(recipe.levels, np.float32)
    index = jax.random.categorical(key, jnp.log(np.array(recipe.odds, np.float32)), shape=shape)
    return jnp.asarray(levels)[index], jnp.asarray(time_sinusoid(levels))[index], index


def hardness(scenes: Scenes) -> Float[Array, " b"]:
    """How much there is to be learned from scenes, by what a young model gets wrong most.

    Corners and arms end as discs, and the smaller the more; two objects count for both.
    """
    shapes = np.array([1.0, 1.0, 3.0, 3.0], np.float32)  # circle, square, triangle, cross
    sizes = np.array([2.0, 1.5, 1.0], np.float32)  # small, medium, large
    each = jnp.asarray(shapes)[scenes.shape] * jnp.asarray(sizes)[scenes.size]
    return jnp.sum(jnp.where(scenes.there, each, 0.0), axis=1)


def draw(recipe: Recipe, pool: Pool, key: Key[Array, ""], count: int) -> Pool:
    """Samples of a pool: a share by their hardness, the others all alike.

    Args:
        recipe: of the training.
        pool: what is drawn from.
        key: of the draw.
        count: how many samples.

    Returns:
        The samples, float32.
    """
    chances = hardness(pool.scenes)
    chances = recipe.hard * chances / jnp.sum(chances) + (1 - recipe.hard) / len(chances)
    ends = jnp.cumsum(chances)
    rows = jnp.searchsorted(ends, ends[-1] * jax.random.uniform(key, (count,)))
    rows = jnp.minimum(rows, len(chances) - 1)
    scenes, *rest = jax.tree.map(lambda x: x[rows], pool)
    return Pool(scenes, *(x.astype(jnp.float32) for x in rest))


def pictures(maker: Maker) -> Loss:
    """Single latent frames of first chunks, but for the very first: composition, cheaply.

    The first latent frame of a video is coded by itself and differs from the others by more than
    all scenes do; a transformer that sees one frame can't know which it is to draw.
    """
    recipe = maker.recipe

    def loss(params: Params, pool: Pool, key: Key[Array, ""]) -> tuple[Array, dict]:
        rows, frame, *keys = jax.random.split(key, 6)
        scenes, latents, *_ = draw(recipe, pool, rows, recipe.pictures.batch)
        index = jax.random.randint(frame, (len(latents),), 1, latents.shape[1])
        latents = latents[jnp.arange(len(index)), index][:, None]
        return flow(maker, params, scenes, latents[:, :0], latents, keys, chunk=1)

    return loss


def flow(maker, params, scenes, past, latents, keys, chunk=3) -> tuple[Array, dict]:
    """Weighted error of chunks after a clean past, and that of pure noise.

    Most samples are the truth with noise on it; a share is followed along the model's own
    denoising.

    Args:
        maker: what the stages share.
        params: of transformer and text encoder.
        scenes: what captions say.
        past: clean latent frames before, `[B, F, h, w, C]`.
        latents: the chunks, likewise.
        keys: four.
        chunk: latent frames of one.

    Returns:
        The error; and, to be logged, that of pure noise and that of the denoising's end.
    """
    level, add, follow, speak = keys
    recipe, rollout = maker.recipe, maker.config.rollout
    dit, encoder = maker.models(params)
    text = maker.text(encoder, speak, scenes)
    weight, sizes = weigh(latents), {"chunk": chunk, "window": rollout.window}
    own = max(1, round(recipe.own * len(latents)))

    chunks = latents.shape[1] // chunk
    sigma, time, index = draw_levels(recipe, level, (len(latents) - own, chunks))
    noise = jax.random.normal(add, latents[own:].shape)
    error = clip_loss(dit, text[own:], past[own:], latents[own:], noise, sigma, time, **sizes)
    pure = index == 0
    figure = jnp.sum(jnp.where(pure, error, 0)) / jnp.maximum(jnp.sum(pure, dtype=jnp.float32), 1)

    levels = np.array(warp(rollout.steps, rollout.shift), np.float32)
    noise = jax.random.normal(follow, (len(levels), *latents[:own].shape))
    ends = denoising_loss(
        dit, text[:own], past[:own], latents[:own], noise, jnp.asarray(levels),
        jnp.asarray(time_sinusoid(levels)), **sizes,
    )  # fmt: skip
    # Of latents, not of the flow, whose target grows with what there is to mend.
    followed = weight[None, :own] * ends / levels[:, None, None]
    total = (jnp.mean(weight[own:] * error) + jnp.mean(followed)) / 2
    return total, {"noise": figure, "end": jnp.mean(ends[-1])}


def clips(maker: Maker) -> Loss:
    """First chunks, later chunks after clean ones, and windows of Rolling Forcing, in each step."""
    recipe, chunk = maker.recipe, maker.config.rollout.chunk

    def loss(params: Params, pools: tuple[Pool, Pool], key: Key[Array, ""]) -> tuple[Array, dict]:
        keys = jax.random.split(key, 15)
        openings, longer = pools
        scenes, latents, *_ = draw(
            recipe, openings, keys[0], recipe.openings_share * recipe.clips.batch
        )
        first, of_first = flow(maker, params, scenes, latents[:, :0], latents, keys[1:5])
        scenes, latents, past, target = draw(recipe, longer, keys[5], recipe.clips.batch)
        past = _wobble(recipe, keys[6], past[:, :-chunk])
        later, of_later = flow(maker, params, scenes, past, target[:, chunk:], keys[7:11])
        # Of clips that begin as a video does: of others the caption doesn't say where things are.
        begin = jax.tree.map(lambda x: x[::2], longer)
        scenes, latents, *_ = draw(recipe, begin, keys[11], recipe.clips.batch)
        rolling = _rolling(maker, params, scenes, latents, keys[12:])
        figures = {"first": of_first["noise"], "later": of_later["noise"], "rolling": rolling}
        return (first + later + rolling) / 3, figures

    return loss


def drilled(maker: Maker, text: Params) -> Loss:
    """`clips` for the transformer alone: the text encoder stays what the models share.

    Args:
        maker: what the stages share.
        text: the encoder's parameters.

    Returns:
        The loss of the transformer's parameters.
    """
    loss = clips(maker)
    return lambda params, pools, key: loss({"dit": params["dit"], "text": text}, pools, key)


def _wobble(recipe: Recipe, key: Key[Array, ""], past: Array) -> Array:
    """Noise on a clean past: a rollout's own chunks aren't perfect either."""
    size, add = jax.random.split(key)
    size = jax.random.uniform(size, (len(past), 1, 1, 1, 1), maxval=recipe.wobble)
    return past + size * jax.random.normal(add, past.shape)


def staggered(shift: float | None, chunks: int) -> tuple[np.ndarray, np.ndarray]:
    """Rolling Forcing's passes over a clip: levels of its chunks (NaN: not there), and their odds.

    The full window after a finished chunk, the window that fills at a video's start, and the one
    that empties at its end.

    Args:
        shift: of the levels (`warp`).
        chunks: of a clip.

    Returns:
        A row of levels for each pass, and the odds of the passes.
    """
    window = warp(ROLLING, shift)
    none = (np.nan,) * 5
    fills = [(np.nan, *window[5 - n :], *none[n:]) for n in range(1, 6)]
    empties = [(0.0, *window[:n], *none[n:]) for n in range(5, 0, -1)]
    table = np.array(fills + empties, np.float32)[:, :chunks]
    odds = np.array([0.1, 0.08, 0.06, 0.06, 0.1, 0.48, 0.03, 0.03, 0.03, 0.03])
    return table, odds


def _rolling(maker, params, scenes, latents, keys) -> Array:
    """Windows of Rolling Forcing: of the truth, and a share along the model's own rolling."""
    recipe, rollout = maker.recipe, maker.config.rollout
    own = max(1, round(recipe.own * len(latents)))
    speak, add, shown = keys
    rest = jax.tree.map(lambda x: x[own:], scenes)
    plain = _windows(maker, params, rest, latents[own:], shown)

    scenes, latents = jax.tree.map(lambda x: x[:own], (scenes, latents))
    dit, encoder = maker.models(params)
    window = warp(ROLLING, rollout.shift)
    table = rolling_levels(window, latents.shape[1] // rollout.chunk)
    noise = jax.random.normal(add, (len(table), *latents.shape))
    text = maker.text(encoder, speak, scenes)
    error = rolling_loss(dit, text, latents, noise, window, chunk=rollout.chunk)
    counts = table > 0
    # Of latents, not of the flow, as in `flow`.
    level = jnp.asarray(np.where(counts, table, 1.0))[:, None]
    followed = jnp.sum(weigh(latents)[None] * error / level) / float(own * counts.sum())
    return (plain + followed) / 2


def _windows(maker, params, scenes, latents, key) -> Array:
    """Passes of Rolling Forcing over clips that begin with a video."""
    # A window that fills begins at the clip's first chunk; what follows a finished chunk does too.
    chunk = maker.config.rollout.chunk
    chunks = latents.shape[1] // chunk
    table, odds = staggered(maker.config.rollout.shift, chunks)
    pick, add, speak, wobble = jax.random.split(key, 4)
    row = jax.random.categorical(pick, jnp.log(odds.astype(np.float32)), shape=(len(latents),))
    sigma = jnp.asarray(table)[row]
    there, clean = ~jnp.isnan(sigma), sigma == 0
    # Where the first chunk isn't there the others move up: a video begins at its first chunk.
    moved = jnp.where(there[:, :1], 0, 1)
    place = jnp.maximum(jnp.arange(chunks)[None] - moved, 0)
    frames = (chunk * place[..., None] + jnp.arange(chunk)[None, None]).reshape(len(latents), -1)
    latents = jnp.take_along_axis(latents, frames[..., None, None, None], axis=1)
    causal = jnp.asarray(np.tril(np.ones((1, chunks, chunks), bool)))
    seen = jnp.where(clean[:, :, None], causal & clean[:, None], there[:, None])
    levels = jnp.nan_to_num(sigma, nan=1.0)
    known = np.unique(np.nan_to_num(table, nan=1.0))
    index = jnp.argmin(jnp.abs(levels[..., None] - known[None, None]), axis=-1)
    time = jnp.asarray(time_sinusoid(known))[index]
    still = jnp.repeat(clean, chunk, axis=1)[:, :, None, None, None]
    shown = jnp.where(still, _wobble(maker.recipe, wobble, latents), latents)
    dit, encoder = maker.models(params)
    text = maker.text(encoder, speak, scenes)
    noise = jax.random.normal(add, latents.shape)
    error = window_loss(dit, text, shown, noise, levels, time, seen)
    counts = there & ~clean
    total = jnp.sum(jnp.where(counts, weigh(latents) * error, 0))
    return total / jnp.maximum(jnp.sum(counts, dtype=jnp.float32), 1)
