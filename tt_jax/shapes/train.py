"""Trains the embedded model: `python -m tt_jax.shapes.train FOLDER`.

Stages, each resumable: the VAE on rendered clips; their latents; the decoder alone on those, if it
needs more; the text encoder on what captions say; then transformer and text encoder together, by
flow matching. Its batches take turns: first chunks of many videos; later chunks by block-causal
teacher forcing, each denoised from its own noise level while it sees the clean chunks before it,
through the same context path that a rollout uses; and windows of Rolling Forcing, whose chunks see
one another at staggered levels. The settings are one dataclass; the log is `FOLDER/log.csv`.
"""

import argparse
import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from tt_jax.checkpoint import PARTS, abstract, cast, find, load_part, save_part, write_config
from tt_jax.models.configs import CONFIGS, ModelConfig
from tt_jax.models.tokenizer import Tokenizer, train_sentencepiece
from tt_jax.models.vae import VAE, VAEConfig
from tt_jax.shapes.losses import teacher_forcing_loss, window_loss
from tt_jax.shapes.optimise import Log, Params, optimizer, run_stage, schedule
from tt_jax.shapes.reading import answers, questions, reading_loss
from tt_jax.shapes.world import Scene, caption, render, sample_scene
from tt_jax.strategies.schedule import time_sinusoid, warp

# Self Forcing's noise levels, the only ones its rollout ever uses.
LEVELS = np.array(warp((1000, 750, 500, 250)), np.float32)
LEVEL_ODDS = np.array([0.28, 0.28, 0.24, 0.2])
# Rolling Forcing's passes, from the first to the last of a video: levels of the anchor, of the
# latest finished chunk and of the five of the window. NaN: not there.
_WINDOW = warp((200, 400, 600, 800, 1000))
_NONE = (np.nan,) * 5
STAGGERED = np.array(
    [(np.nan, np.nan, *_WINDOW[5 - n :], *_NONE[n:]) for n in range(1, 6)]
    + [(np.nan, 0.0, *_WINDOW)]
    + [(0.0, 0.0, *_WINDOW[:n], *_NONE[n:]) for n in range(5, 0, -1)],
    np.float32,
)
STAGGERED_ODDS = np.array([0.08, 0.08, 0.06, 0.06, 0.08, 0.08, 0.44, 0.03, 0.03, 0.03, 0.03])
# Whose turn it is, step by step.
TURNS = ("first", "window", "first", "later", "first", "window", "first", "first")
CLIPS, OPENINGS = 3, 6  # random streams


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that decides the result, beside the model's sizes."""

    vae_start: str = ""  # a model, by name or folder, whose VAE is gone on with
    dit_start: str = ""  # likewise its transformer, text encoder and tokenizer
    seed: int = 0
    vae_steps: int = 1500
    vae_batch: int = 2
    vae_crop: int = 24
    vae_frames: int = 33
    vae_rate: float = 4e-3
    kl: float = 5e-4
    openings: int = 4000  # clips of one chunk
    clips: int = 800
    clip_chunks: int = 10
    decoder_steps: int = 500
    decoder_crop: int = 32
    reading_steps: int = 1000
    reading_batch: int = 32
    steps: int = 10000
    first_batch: int = 12
    later_batch: int = 4
    window_batch: int = 2
    wobble: float = 0.2  # greatest deviation of the noise added to clean context
    chunk: int = 3
    rate: float = 2e-3
    warmup: int = 50
    decay: float = 0.6
    average: float = 0.995
    save_every: int = 200


def rng_of(*key: int) -> np.random.Generator:
    """A generator of its own for every (seed, stage, step), so that resuming changes nothing."""
    return np.random.default_rng(key)


def initial(part: str, config: ModelConfig, recipe: Recipe) -> Params:
    """The parameters that training begins with: random ones, or those to go on with."""
    start = recipe.vae_start if part == "vae" else recipe.dit_start
    if start:
        module = load_part(find(start), part, getattr(config, part), jnp.float32)
    else:
        # "rbg" compiles many times faster than the default here.
        keys = nnx.Rngs(jax.random.key(recipe.seed, impl="rbg"))
        module = PARTS[part][1](getattr(config, part), rngs=keys)
    return nnx.to_pure_dict(nnx.state(module))


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
    graph = nnx.graphdef(abstract("vae", config.vae, jnp.float32))

    def loss(params: Params, video: Array, noise: Array) -> tuple[Array, dict]:
        vae = nnx.merge(graph, params)
        mean, log_variance = vae.encode_moments(video)
        latents = mean + jnp.exp(0.5 * log_variance) * noise
        error = vae.decode_raw(latents) - video
        squared = jnp.mean(error**2)
        kl = 0.5 * jnp.mean(mean**2 + jnp.exp(log_variance) - 1 - log_variance)
        psnr = -10 * jnp.log10(squared / 4)
        return jnp.mean(jnp.abs(error)) + squared + recipe.kl * kl, {"psnr": psnr, "kl": kl}

    whole_from = int(0.9 * recipe.vae_steps)

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
        "vae", folder, initial("vae", config, recipe), optimizer(rate), loss, batch,
        steps=recipe.vae_steps, average=0.98, save_every=250, log=log,
    )  # fmt: skip


# --- the latents --------------------------------------------------------------------------------


def scene_of(recipe: Recipe, stream: int, clip: int) -> Scene:
    """The scene of one of the clips that are stored."""
    return sample_scene(rng_of(recipe.seed, stream, clip))


def length(vae: VAEConfig, latent_frames: int) -> int:
    """Frames of a clip of so many latent frames."""
    return vae.temporal_stride * (latent_frames - 1) + 1


def encode_clips(vae: VAE, recipe: Recipe, path: Path, log: Log) -> None:
    """Renders and encodes the training clips, long ones ("clips") and short ones ("openings").

    Stores their normalised latents (float16), four captions each, and the latents' mean and
    deviation, which are those of the long clips.
    """
    graph, state = nnx.split(vae)
    encode = jax.jit(lambda state, video: nnx.merge(graph, state).encode(video))
    stored = {}
    for stream, name, count, chunks, group in (
        (CLIPS, "clips", recipe.clips, recipe.clip_chunks, 4),
        (OPENINGS, "openings", recipe.openings, 1, 40),
    ):
        latents, captions = [], []
        for first in range(0, count, group):
            videos = []
            for clip in range(first, min(first + group, count)):
                rng = rng_of(recipe.seed, stream, clip)
                scene = sample_scene(rng)
                videos.append(render(scene, length(vae.config, recipe.chunk * chunks)))
                captions.append([caption(scene, rng) for _ in range(4)])
            video = np.stack(videos).astype(np.float32) / 127.5 - 1.0
            latents.append(np.asarray(encode(state, video), np.float32))
            if (first + group) % 200 == 0:
                log(name, first + group, std=float(latents[-1].std()))
        stored[name] = np.concatenate(latents)
        stored[f"{name}_captions"] = np.array(captions)
    mean, std = (f(stored["clips"], axis=(0, 1, 2, 3)) for f in (np.mean, np.std))
    for name in ("clips", "openings"):
        stored[name] = ((stored[name] - mean) / std).astype(np.float16)
    aside = path.with_name("aside.npz")
    np.savez(aside, **stored, mean=mean, std=std)
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
    clips = stored["clips"]
    scale, shift = stored["std"], stored["mean"]
    graph = nnx.graphdef(abstract("vae", config.vae, jnp.float32))
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
        frames = length(config.vae, clips.shape[1])
        video = render(scene_of(recipe, CLIPS, row), frames)
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


class Captions:
    """The tokens of the captions of all clips that are stored, some for each clip."""

    def __init__(self, captions: np.ndarray, tokenizer: Tokenizer) -> None:
        tokens = tokenizer([str(text) for text in captions.ravel()])
        self.tokens = [x.reshape(*captions.shape, -1) for x in tokens]

    def draw(self, rng: np.random.Generator, rows: np.ndarray) -> list[np.ndarray]:
        """Token ids of one of each row's captions, and their mask."""
        phrasing = rng.integers(0, self.tokens[0].shape[1], len(rows))
        return [x[rows, phrasing] for x in self.tokens]


def train_reading(
    config: ModelConfig, recipe: Recipe, folder: Path, captions: Captions, log: Log
) -> Params:
    """The text encoder by itself, asked what captions say."""
    graph = nnx.graphdef(abstract("text", config.text, jnp.float32))
    right = np.stack([answers(scene_of(recipe, OPENINGS, i)) for i in range(recipe.openings)])

    def loss(params: Params, ids: Array, mask: Array, right: Array) -> tuple[Array, dict]:
        rows = nnx.merge(graph, params["text"])(ids, mask)
        error, share = reading_loss(params["questions"], rows, mask, right)
        return error, {"right": share}

    def batch(step: int) -> tuple:
        rng = rng_of(recipe.seed, 7, step)
        rows = rng.integers(0, len(right), recipe.reading_batch)
        return *captions.draw(rng, rows), right[rows]

    params = {
        "text": initial("text", config, recipe),
        "questions": questions(rng_of(recipe.seed, 8), config.text.dim),
    }
    rate = schedule(recipe.rate, recipe.reading_steps, recipe.warmup, recipe.decay)
    return run_stage(
        "reading", folder, params, optimizer(rate), loss, batch,
        steps=recipe.reading_steps, average=0.9, save_every=recipe.reading_steps, log=log,
    )["text"]  # fmt: skip


def train_dit(
    config: ModelConfig, recipe: Recipe, folder: Path, tokenizer: Tokenizer, log: Log
) -> Params:
    """Trains the transformer and, through it, the text encoder."""
    stored = np.load(folder / "clips.npz")
    clips, openings = stored["clips"], stored["openings"]
    captions = Captions(stored["clips_captions"], tokenizer)
    opening_captions = Captions(stored["openings_captions"], tokenizer)
    params = {"dit": initial("dit", config, recipe)}
    if recipe.dit_start:
        params["text"] = initial("text", config, recipe)
    else:
        params["text"] = train_reading(config, recipe, folder, opening_captions, log)
    dit_graph = nnx.graphdef(abstract("dit", config.dit, jnp.float32))
    text_graph = nnx.graphdef(abstract("text", config.text, jnp.float32))
    chunk = recipe.chunk

    def loss(
        params: Params, context: Array | None, latents: Array, noise: Array, sigma: Array,
        weight: Array, sinusoid: Array, seen: Bool[Array, "b n n"] | None,
        ids: Int[Array, "b l"], mask: Bool[Array, "b l"],
    ) -> tuple[Array, dict]:  # fmt: skip
        text = nnx.merge(text_graph, params["text"])(ids, mask)
        dit = nnx.merge(dit_graph, params["dit"])
        if context is None:
            assert seen is not None  # given in place of a context
            mean = window_loss(dit, text, latents, noise, sigma, sinusoid, weight, seen)
            return mean, {"window" if seen.shape[1] > 1 else "first": mean}
        clean = jnp.asarray(time_sinusoid(np.zeros((1, context.shape[1]))))
        mean, _ = teacher_forcing_loss(
            dit, text, context, latents, noise, sigma, clean, sinusoid, weight
        )
        return mean, {"later": mean}

    def weight_of(latents: np.ndarray) -> np.ndarray:
        """A small object must count about as much as one that fills the frame."""
        ground = np.median(latents, axis=(2, 3), keepdims=True)
        return 0.3 / (0.05 + np.mean((latents - ground) ** 2, axis=(1, 2, 3, 4)))

    def wobble(rng: np.random.Generator, latents: np.ndarray) -> np.ndarray:
        """Noise for clean context: a rollout's own chunks aren't perfect either."""
        size = rng.uniform(0, recipe.wobble, (len(latents), 1, 1, 1, 1)).astype(np.float32)
        return latents + size * rng.standard_normal(latents.shape, np.float32)

    def first_batch(rng: np.random.Generator) -> tuple:
        """First chunks of videos: without context, which nothing else is."""
        rows = rng.integers(0, len(openings), recipe.first_batch)
        latents = openings[rows].astype(np.float32)
        sigma = rng.choice(LEVELS, (len(rows), 1), p=LEVEL_ODDS)
        noise = rng.standard_normal(latents.shape, np.float32)
        return (
            None, latents, noise, sigma, weight_of(latents)[:, None], time_sinusoid(sigma),
            np.ones((1, 1, 1), bool), *opening_captions.draw(rng, rows),
        )  # fmt: skip

    def later_batch(rng: np.random.Generator) -> tuple:
        """Three chunks in a row, of which the last two are denoised; a third begin with a video."""
        last = recipe.clip_chunks - 3
        rows = rng.integers(0, len(clips), recipe.later_batch)
        starts = np.where(rng.random(len(rows)) < 1 / 3, 0, rng.integers(0, last + 1, len(rows)))
        pairs = zip(rows, chunk * starts, strict=True)
        three = np.stack([clips[r, s : s + 3 * chunk] for r, s in pairs]).astype(np.float32)
        latents = three[:, chunk:]
        sigma = rng.choice(LEVELS, (len(rows), 2), p=LEVEL_ODDS)
        noise = rng.standard_normal(latents.shape, np.float32)
        return (
            wobble(rng, three[:, :-chunk]), latents, noise, sigma, weight_of(three),
            time_sinusoid(sigma), None, *captions.draw(rng, rows),
        )  # fmt: skip

    def window_batch(rng: np.random.Generator) -> tuple:
        """Passes of Rolling Forcing: the anchor is a video's first chunk, wherever the rest is."""
        rows = rng.integers(0, len(clips), recipe.window_batch)
        sigma = STAGGERED[rng.choice(len(STAGGERED), len(rows), p=STAGGERED_ODDS)]
        latents = []
        for row, levels in zip(rows, sigma, strict=True):
            missing = int(np.isnan(levels[:2]).sum())
            start = 0 if missing else int(rng.integers(1, recipe.clip_chunks - 5))
            # Slots before the video's start hold what nobody sees.
            places = np.maximum(np.arange(-2, 5) + (2 - missing if missing else start + 1), 0)
            places[0] = 0
            frames = (chunk * places[:, None] + np.arange(chunk)).ravel()
            latents.append(clips[row, frames])
        latents = np.stack(latents).astype(np.float32)
        noise = rng.standard_normal(latents.shape, np.float32)
        clean, there = sigma == 0, ~np.isnan(sigma)
        # Clean chunks are context: they see no others than clean ones, none after themselves.
        causal = np.tril(np.ones((sigma.shape[1],) * 2, bool))
        seen = np.where(clean[:, :, None], causal & clean[:, None], there[:, None])
        weight = weight_of(latents)[:, None] * (there & ~clean)
        still = np.repeat(clean, chunk, axis=1)[:, :, None, None, None]
        latents = np.where(still, wobble(rng, latents), latents)
        sigma = np.nan_to_num(sigma, nan=1.0)
        return (
            None, latents, noise, sigma, weight.astype(np.float32), time_sinusoid(sigma), seen,
            *captions.draw(rng, rows),
        )  # fmt: skip

    batches = {"first": first_batch, "later": later_batch, "window": window_batch}

    def batch(step: int) -> tuple:
        return batches[TURNS[step % len(TURNS)]](rng_of(recipe.seed, 4, step))

    rate = schedule(recipe.rate, recipe.steps, recipe.warmup, recipe.decay)
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
    config = CONFIGS["shapes"]

    pieces = folder / "tokenizer.model"
    if recipe.dit_start and not pieces.exists():
        pieces.write_bytes((find(recipe.dit_start) / "tokenizer.model").read_bytes())
    elif not pieces.exists():
        rng = rng_of(recipe.seed, 0)
        scenes = (sample_scene(rng) for _ in range(5000))
        pieces.write_bytes(train_sentencepiece(caption(scene, rng) for scene in scenes))
    tokenizer = Tokenizer(pieces, config.text.text_len)

    vae = train_vae(config, recipe, folder, log)
    if not (folder / "clips.npz").exists():
        graph = nnx.graphdef(abstract("vae", config.vae, jnp.float32))
        encode_clips(nnx.merge(graph, vae), recipe, folder / "clips.npz", log)
    if recipe.decoder_steps:
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
