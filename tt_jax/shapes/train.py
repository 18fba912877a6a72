"""Trains the embedded model: `python -m tt_jax.shapes.train FOLDER`.

Stages, each resumable: the VAE on short rendered clips; the latents of longer ones; the decoder on
those; then transformer and text encoder together, by flow matching with block-causal teacher
forcing: every chunk is denoised from its own noise level while it sees the clean chunks before it,
through the same context path that a rollout uses. Some steps take a window of Rolling Forcing
instead, whose chunks see one another at staggered levels. The settings are one dataclass; the log
is `FOLDER/log.csv`.
"""

import argparse
import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from tt_jax.attention import rotate, rotation
from tt_jax.checkpoint import cast, save_part, write_config
from tt_jax.models.dit import KV, DiT
from tt_jax.models.presets import PRESETS, ModelConfig
from tt_jax.models.text import TextEncoder
from tt_jax.models.vae import VAE
from tt_jax.schedule import time_sinusoid, warp
from tt_jax.shapes.optimise import Log, Params, optimizer, run_stage, schedule
from tt_jax.shapes.world import caption, render, sample_scene
from tt_jax.tokens import Tokenizer, train_sentencepiece

# Noise levels of Self Forcing and of Rolling Forcing: the only ones a rollout ever uses.
LEVELS = np.array(warp((1000, 750, 500, 250)) + warp((800, 600, 400, 200)))
LEVEL_ODDS = np.array([0.2, 0.2, 0.18, 0.18, 0.06, 0.06, 0.06, 0.06])
# Rolling Forcing's windows of five chunks, from four clean chunks and one to be finished, to the
# video's first chunk alone. NaN: no chunk yet.
STAGGERED = np.lib.stride_tricks.sliding_window_view(
    (0.0,) * 4 + warp((200, 400, 600, 800, 1000)) + (np.nan,) * 4, 5
)
STAGGERED_ODDS = np.array([0.05, 0.05, 0.1, 0.2, 0.25, 0.1, 0.1, 0.1, 0.05])


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that decides the result, beside the model's sizes."""

    seed: int = 0
    vae_steps: int = 1500
    vae_batch: int = 4
    vae_crop: int = 24
    vae_frames: int = 9
    vae_rate: float = 4e-3
    kl: float = 5e-4
    clips: int = 3000
    clip_frames: int = 57
    decoder_steps: int = 1250
    decoder_crop: int = 32
    steps: int = 5000
    batch: int = 4
    chunks: int = 3
    chunk: int = 3
    window_every: int = 5
    rate: float = 2e-3
    warmup: int = 50
    decay: float = 0.6
    average: float = 0.995
    save_every: int = 200


def rng_of(*key: int) -> np.random.Generator:
    """A generator of its own for every (seed, stage, step), so that resuming changes nothing."""
    return np.random.default_rng(key)


def rngs(recipe: Recipe) -> nnx.Rngs:
    """Keys for the initial weights; "rbg" compiles many times faster than the default here."""
    return nnx.Rngs(jax.random.key(recipe.seed, impl="rbg"))


# --- the VAE ------------------------------------------------------------------------------------


def video_batch(recipe: Recipe, step: int, crop: int, count: int) -> Float[np.ndarray, "b t h w 3"]:
    """Random crops of freshly rendered clips, in [-1, 1]."""
    rng = rng_of(recipe.seed, 1, step)
    clips = []
    for _ in range(count):
        start = int(rng.integers(0, 64))
        clip = render(sample_scene(rng), recipe.vae_frames, start)
        top, left = (int(rng.integers(0, side - crop + 1)) for side in clip.shape[1:3])
        clips.append(clip[:, top : top + crop, left : left + crop])
    return np.stack(clips).astype(np.float32) / 127.5 - 1.0


def train_vae(config: ModelConfig, recipe: Recipe, folder: Path, log: Log) -> Params:
    """First on crops, then on whole frames; reconstruction (L1 + L2) and a little KL."""
    graph, state = nnx.split(VAE(config.vae, rngs=rngs(recipe)))

    def loss(params: Params, video: Array, noise: Array) -> tuple[Array, dict]:
        vae = nnx.merge(graph, params)
        mean, log_variance = vae.encode_moments(video)
        latents = mean + jnp.exp(0.5 * log_variance) * noise
        error = vae.decode_raw(latents) - video
        squared = jnp.mean(error**2)
        kl = 0.5 * jnp.mean(mean**2 + jnp.exp(log_variance) - 1 - log_variance)
        psnr = -10 * jnp.log10(squared / 4)
        return jnp.mean(jnp.abs(error)) + squared + recipe.kl * kl, {"psnr": psnr, "kl": kl}

    whole_from = int(0.85 * recipe.vae_steps)

    def batch(step: int) -> tuple:
        whole = step >= whole_from
        crop, count = (64, 1) if whole else (recipe.vae_crop, recipe.vae_batch)
        video = video_batch(recipe, step, crop, count)
        ratio = 2 ** len(config.vae.temporal_downsample)
        frames = 1 + (recipe.vae_frames - 1) // 2 ** sum(config.vae.temporal_downsample)
        shape = (count, frames, crop // ratio, crop // ratio, config.vae.latent_channels)
        return video, rng_of(recipe.seed, 2, step).normal(size=shape).astype(np.float32)

    rate = schedule(recipe.vae_rate, recipe.vae_steps, recipe.warmup, 0.4)
    return run_stage(
        "vae", folder, nnx.to_pure_dict(state), optimizer(rate), loss, batch,
        steps=recipe.vae_steps, average=0.98, save_every=250, log=log,
    )  # fmt: skip


# --- the latents --------------------------------------------------------------------------------


def encode_clips(vae: VAE, recipe: Recipe, path: Path, log: Log) -> None:
    """Renders and encodes the training clips, once.

    Stores normalised latents (float16), four captions each, and the latents' mean and deviation.
    """
    graph, state = nnx.split(vae)
    encode = jax.jit(lambda state, video: nnx.merge(graph, state).encode(video))
    latents, captions = [], []
    group = 4
    for first in range(0, recipe.clips, group):
        videos = []
        for clip in range(first, first + group):
            rng = rng_of(recipe.seed, 3, clip)
            scene = sample_scene(rng)
            videos.append(render(scene, recipe.clip_frames))
            captions.append([caption(scene, rng) for _ in range(4)])
        video = np.stack(videos).astype(np.float32) / 127.5 - 1.0
        latents.append(np.asarray(encode(state, video), np.float16))
        if (first + group) % 200 == 0:
            log("clips", first + group, std=float(latents[-1].astype(np.float32).std()))
    everything = np.concatenate(latents).astype(np.float32)
    mean, std = (f(everything, axis=(0, 1, 2, 3)) for f in (np.mean, np.std))
    everything = ((everything - mean) / std).astype(np.float16)
    aside = path.with_name("aside.npz")
    np.savez(aside, latents=everything, captions=np.array(captions), mean=mean, std=std)
    aside.rename(path)


def train_decoder(
    config: ModelConfig, recipe: Recipe, folder: Path, vae: Params, log: Log
) -> Params:
    """Goes on with the VAE's decoder alone, on whole clips and the latents that are stored.

    Each frame depends on a long past, which the short clips of the first stage don't have: trained
    on those alone, the decoder is good for just as many frames. The encoder stays as it is, and
    with it the latents.
    """
    stored = np.load(folder / "clips.npz")
    clips = stored["latents"]
    scale, shift = stored["std"], stored["mean"]
    graph = nnx.graphdef(nnx.eval_shape(lambda: VAE(config.vae, rngs=nnx.Rngs(0))))
    trained = ("decoder", "from_latents")
    side = config.vae.spatial_stride
    crop = recipe.decoder_crop // side

    def loss(params: Params, latents: Array, video: Array) -> tuple[Array, dict]:
        error = nnx.merge(graph, vae | params).decode_raw(latents) - video
        squared = jnp.mean(error**2)
        return jnp.mean(jnp.abs(error)) + squared, {"psnr": -10 * jnp.log10(squared / 4)}

    def batch(step: int) -> tuple:
        rng = rng_of(recipe.seed, 5, step)
        row = int(rng.integers(0, len(clips)))
        top, left = (int(rng.integers(0, size - crop + 1)) for size in clips.shape[2:4])
        video = render(sample_scene(rng_of(recipe.seed, 3, row)), recipe.clip_frames)
        rows, columns = (slice(side * x, side * (x + crop)) for x in (top, left))
        latents = clips[row, :, top : top + crop, left : left + crop].astype(np.float32)
        latents = latents * scale + shift
        return latents[None], video[None, :, rows, columns].astype(np.float32) / 127.5 - 1.0

    rate = schedule(recipe.vae_rate / 2, recipe.decoder_steps, recipe.warmup, 0.6)
    params = run_stage(
        "decoder", folder, {name: vae[name] for name in trained}, optimizer(rate), loss, batch,
        steps=recipe.decoder_steps, average=0.98, save_every=250, log=log,
    )  # fmt: skip
    return vae | params


# --- transformer and text encoder ---------------------------------------------------------------


def teacher_forcing_loss(
    dit: DiT,
    text: Float[Array, "b l e"],
    latents: Float[Array, "b f h w c"],
    noise: Float[Array, "b f h w c"],
    sigma: Float[Array, "b n"],
    time_of_clean: Float[Array, "1 f0 e"],
    time_of_noisy: Float[Array, "b n e"],
    weight: Float[Array, "b n"],
) -> tuple[Float[Array, ""], Float[Array, " n"]]:
    """Mean squared error of the flow over all chunks, by their `weight`, and each chunk's own.

    `n` chunks of equal length. Pass 1 makes the keys and values of the clean chunks but the last;
    pass 2 denoises all chunks side by side along the batch axis, each at the window's end with the
    clean chunks before it at its left. Positions are relative, so only their differences matter.
    """
    b, f, height, width, _ = latents.shape
    n = sigma.shape[1]
    size = f // n
    past = f - size
    patch, head_dim = dit.config.patch, dit.config.head_dim
    grid = height // patch, width // patch
    chunk_tokens = size * grid[0] * grid[1]
    cross = dit.encode_text(text)

    chunk_of = np.repeat(np.arange(n - 1), chunk_tokens)
    causal = jnp.asarray(chunk_of[:, None] >= chunk_of)[None]
    _, kv = dit(latents[:, :past], time_of_clean, cross, jnp.arange(past), None, causal)

    def window(i: int) -> tuple[Array, Array]:
        """Context of chunk i: the i chunks before it, right-aligned, rotated to their places."""
        tokens = i * chunk_tokens
        turn = rotation(jnp.arange(past - i * size, past), *grid, head_dim)
        pad = [(0, 0), (0, 0), ((n - 1) * chunk_tokens - tokens, 0), (0, 0), (0, 0)]
        k = rotate(kv.k[:, :, :tokens], turn) if i else kv.k[:, :, :0]
        return jnp.pad(k, pad), jnp.pad(kv.v[:, :, :tokens], pad)

    k, v = (jnp.concatenate(part, axis=1) for part in zip(*map(window, range(n)), strict=True))
    visible = np.arange(n * chunk_tokens) >= (n - 1 - np.arange(n)[:, None]) * chunk_tokens
    mask = jnp.asarray(np.repeat(visible, b, axis=0))[:, None]

    def side_by_side(x: Array) -> Array:
        return jnp.concatenate(jnp.split(x, n, axis=1), axis=0)

    x0, eps = side_by_side(latents), side_by_side(noise)
    level = side_by_side(sigma)[..., None, None, None]
    noisy = (1 - level) * x0 + level * eps
    sinusoids = jnp.repeat(side_by_side(time_of_noisy), size, axis=1)
    text_kv = KV(*(jnp.concatenate([part] * n, axis=1) for part in cross))
    flow, _ = dit(noisy, sinusoids, text_kv, jnp.arange(past, f), KV(k, v), mask)
    error = jnp.mean((flow - (eps - x0)) ** 2, axis=(1, 2, 3, 4)).reshape(n, b) * weight.T
    total = jnp.maximum(jnp.sum(weight, axis=0), 1)
    return jnp.sum(error) / jnp.sum(total), jnp.sum(error, axis=1) / total


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


def train_dit(
    config: ModelConfig, recipe: Recipe, folder: Path, tokenizer: Tokenizer, log: Log
) -> Params:
    """Trains the transformer and, through it, the text encoder."""
    stored = np.load(folder / "clips.npz")
    clips, captions = stored["latents"], stored["captions"]
    ids, masks = tokenizer([str(text) for text in captions.ravel()])
    ids, masks = (x.reshape(*captions.shape, -1) for x in (ids, masks))
    dit_graph, dit_state = nnx.split(DiT(config.dit, rngs=rngs(recipe)))
    text_graph, text_state = nnx.split(TextEncoder(config.text, rngs=rngs(recipe)))
    frames = recipe.chunks * recipe.chunk
    time_of_clean = jnp.asarray(time_sinusoid(np.zeros((1, frames - recipe.chunk))))

    def loss(
        params: Params, latents: Array, noise: Array, sigma: Array, sinusoid: Array, weight: Array,
        ids: Int[Array, "b l"], mask: Bool[Array, "b l"], seen: Bool[Array, "b n n"] | None = None,
    ) -> tuple[Array, dict]:  # fmt: skip
        text = nnx.merge(text_graph, params["text"])(ids, mask)
        dit = nnx.merge(dit_graph, params["dit"])
        if seen is not None:
            mean = window_loss(dit, text, latents, noise, sigma, sinusoid, weight, seen)
            return mean, {"window": mean}
        mean, chunks = teacher_forcing_loss(
            dit, text, latents, noise, sigma, time_of_clean, sinusoid, weight
        )
        return mean, {f"chunk{i}": value for i, value in enumerate(chunks)}

    def draw(rng: np.random.Generator, starts: np.ndarray, frames: int) -> tuple:
        """Latents, their noise, weights of the samples, token ids and their mask."""
        rows = rng.integers(0, len(clips), recipe.batch)
        phrasing = rng.integers(0, captions.shape[1], recipe.batch)
        latents = np.stack(
            [clips[row, start : start + frames] for row, start in zip(rows, starts, strict=True)]
        ).astype(np.float32)
        # A small object must count about as much as one that fills the frame.
        ground = np.median(latents, axis=(2, 3), keepdims=True)
        detail = np.mean((latents - ground) ** 2, axis=(1, 2, 3, 4))
        weight = 0.3 / (0.05 + detail)
        noise = rng.standard_normal(latents.shape, np.float32)
        return latents, noise, weight[:, None], ids[rows, phrasing], masks[rows, phrasing]

    def teacher_batch(rng: np.random.Generator) -> tuple:
        last = (clips.shape[1] - frames) // recipe.chunk
        # Half of the windows start with the video.
        starts = recipe.chunk * np.where(
            rng.random(recipe.batch) < 0.5, 0, rng.integers(0, last + 1, recipe.batch)
        )
        latents, noise, weight, *text = draw(rng, starts, frames)
        sigma = rng.choice(LEVELS, (recipe.batch, recipe.chunks), p=LEVEL_ODDS)
        # A rollout's first chunk is a video's start, and its first latent frame unlike all others:
        # chunks without context from within a video must not be mistaken for it.
        weight = np.repeat(weight, recipe.chunks, axis=1)
        weight[:, 0] *= starts == 0
        return (
            latents, noise, sigma.astype(np.float32), time_sinusoid(sigma), weight, *text
        )  # fmt: skip

    def window_batch(rng: np.random.Generator) -> tuple:
        count = STAGGERED.shape[1]
        latents, noise, weight, *text = draw(rng, np.zeros(recipe.batch, int), count * recipe.chunk)
        sigma = STAGGERED[rng.choice(len(STAGGERED), recipe.batch, p=STAGGERED_ODDS)]
        clean, there = sigma == 0, ~np.isnan(sigma)
        # Clean chunks are context: they see no others than clean ones, none after themselves.
        causal = np.tril(np.ones((count, count), bool))
        seen = np.where(clean[:, :, None], causal & clean[:, None], there[:, None])
        sigma = np.nan_to_num(sigma, nan=1.0).astype(np.float32)
        weight = weight * (there & ~clean)
        return (
            latents, noise, sigma, time_sinusoid(sigma), weight.astype(np.float32), *text, seen
        )  # fmt: skip

    def batch(step: int) -> tuple:
        rng = rng_of(recipe.seed, 4, step)
        of_window = step % recipe.window_every == recipe.window_every - 1
        return window_batch(rng) if of_window else teacher_batch(rng)

    rate = schedule(recipe.rate, recipe.steps, recipe.warmup, recipe.decay)
    params = {"dit": nnx.to_pure_dict(dit_state), "text": nnx.to_pure_dict(text_state)}
    return run_stage(
        "dit", folder, params, optimizer(rate), loss, batch,
        steps=recipe.steps, average=recipe.average, save_every=recipe.save_every, log=log,
    )  # fmt: skip


# --- all of it ----------------------------------------------------------------------------------


def export(config: ModelConfig, folder: Path, vae: Params, dit: Params, out: Path) -> None:
    """Writes a model folder with the averaged weights, in bfloat16, that `tt_jax.load` takes."""
    out.mkdir(parents=True)
    stored = np.load(folder / "clips.npz")
    normalised = dataclasses.replace(
        config.vae,
        mean=tuple(float(x) for x in stored["mean"]),
        std=tuple(float(x) for x in stored["std"]),
    )
    write_config(out, dataclasses.replace(config, vae=normalised), "causal generator")
    (out / "tokenizer.model").write_bytes((folder / "tokenizer.model").read_bytes())
    for part, params in (("vae", vae), ("dit", dit["dit"]), ("text", dit["text"])):
        save_part(out, part, cast(params, jnp.bfloat16))


def train(recipe: Recipe, folder: Path) -> None:
    """Runs what is left of the three stages and writes the model to `folder/model`."""
    folder.mkdir(parents=True, exist_ok=True)
    folder = folder.absolute()
    log = Log(folder / "log.csv")
    config = PRESETS["shapes"]

    pieces = folder / "tokenizer.model"
    if not pieces.exists():
        rng = rng_of(recipe.seed, 0)
        scenes = (sample_scene(rng) for _ in range(5000))
        pieces.write_bytes(train_sentencepiece(caption(scene, rng) for scene in scenes))
    tokenizer = Tokenizer(pieces, config.text.text_len)

    vae = train_vae(config, recipe, folder, log)
    if not (folder / "clips.npz").exists():
        graph = nnx.graphdef(nnx.eval_shape(lambda: VAE(config.vae, rngs=nnx.Rngs(0))))
        encode_clips(nnx.merge(graph, vae), recipe, folder / "clips.npz", log)
    vae = train_decoder(config, recipe, folder, vae, log)
    dit = train_dit(config, recipe, folder, tokenizer, log)
    export(config, folder, vae, dit, folder / f"model-{recipe.steps}")


def main() -> None:
    """The command line: one option per field of the recipe."""
    parser = argparse.ArgumentParser(prog="python -m tt_jax.shapes.train", description=__doc__)
    parser.add_argument("folder", type=Path, help="where checkpoints, log and model go")
    for field in dataclasses.fields(Recipe):
        flag = "--" + field.name.replace("_", "-")
        parser.add_argument(flag, type=type(field.default), default=field.default)
    options = vars(parser.parse_args())
    train(folder=options.pop("folder"), recipe=Recipe(**options))


if __name__ == "__main__":
    main()
