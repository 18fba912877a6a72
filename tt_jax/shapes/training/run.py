"""All stages of the embedded model's training, one after the other, each resumable."""

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tt_jax.checkpoint import (
    PARTS,
    abstract,
    cast,
    find,
    inside,
    load_part,
    read_config,
    save_part,
    write_config,
    write_vocabulary,
)
from tt_jax.files import atomic, new_folder
from tt_jax.models.configs import CONFIGS, ModelConfig
from tt_jax.models.tokenizer import Tokenizer, Vocabulary, train_sentencepiece
from tt_jax.shapes.language import DRAWS, caption, words
from tt_jax.shapes.training import stages
from tt_jax.shapes.training.captions import read_grammar
from tt_jax.shapes.training.optimise import Log, Params, run_stage
from tt_jax.shapes.training.reading import questions
from tt_jax.shapes.training.recipe import STAGES, Recipe
from tt_jax.shapes.training.rollouts import own_past
from tt_jax.shapes.world import sample_scene

CAPTIONS = 6000  # that the tokenizer is made from


def train(
    recipe: Recipe,
    minutes: float,
    folder: Path,
    config: ModelConfig | None = None,
    only: Sequence[str] = STAGES,
) -> Path:
    """Runs what is left of the stages, within so many minutes, and writes the models.

    Called again with the same folder it goes on where it stopped; with more minutes each stage
    goes on for its share of them.

    Args:
        recipe: the stages' settings.
        minutes: of all stages together, each by its share.
        folder: where checkpoints, log and models go.
        config: the model's sizes; those of the recipe's start, or else of "shapes".
        only: the stages to run; what others would train stays as it was left, or began.

    Returns:
        The model's folder. Beside it lies `young`, the model from before the last stage.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if recipe.start:
        config = read_config(find(recipe.start))[0]
    elif config is None:
        config = CONFIGS["shapes"]
    log = Log(folder / "log.csv")
    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    tokenizer = _tokenizer(recipe, folder, config)
    graphs = {
        name: nnx.graphdef(abstract(name, getattr(config, name), jnp.float32)) for name in PARTS
    }

    total = sum(getattr(recipe, name).share for name in only)

    def run(name: str, params: Params, loss: Any, data: Any = lambda params, key: ()) -> Params:
        stage = getattr(recipe, name)
        seconds = 60 * minutes * stage.share / total if name in only else 0.0
        return run_stage(name, stage, seconds, folder, params, loss, data, log, recipe.seed)

    start = _initial("vae", config, recipe)
    coder = run("vae", start, stages.vae_loss(graphs["vae"], recipe, dtype))
    if not recipe.start or "vae" in only:  # else the latents are those of the start
        config = _normalised(nnx.merge(graphs["vae"], coder), config, recipe, folder)
    vae = nnx.merge(nnx.graphdef(abstract("vae", config.vae, jnp.float32)), coder)

    maker = stages.Maker(config, recipe, read_grammar(tokenizer), graphs, dtype)
    text = {
        "text": _initial("text", config, recipe),
        "questions": questions(np.random.default_rng(recipe.seed), config.text.dim),
    }
    params = {"text": run("reading", text, stages.reading(maker))["text"]}
    params["dit"] = _initial("dit", config, recipe)

    def openings(_: Params, key: Any) -> stages.Pool:
        return stages.encode_pool(vae, recipe, recipe.openings, 1, key, late=False)

    def longer(key: Any, count: int, late: bool) -> stages.Pool:
        return stages.encode_pool(vae, recipe, count, recipe.clip_chunks, key, late=late)

    def pools(params: Params, key: Any) -> tuple[stages.Pool, stages.Pool]:
        first, second = jax.random.split(key)
        return openings(params, first), longer(second, recipe.clip_pool, True)

    def own(params: Params, key: Any) -> tuple[stages.Pool, stages.Pool]:
        first, second, third = jax.random.split(key, 3)
        pool = longer(second, recipe.own_pool, False)
        both = {"dit": params["dit"], "text": young["text"]}
        return openings(params, first), own_past(maker, vae, pool)(both, third)

    params = run("pictures", params, stages.pictures(maker), openings)
    young = run("clips", params, stages.clips(maker), pools)
    best = young | run("rollouts", {"dit": young["dit"]}, stages.drilled(maker, young["text"]), own)
    tokenizer_file = tokenizer_of(folder)
    _export(folder / "model", config, {"vae": coder, **best}, tokenizer_file)
    _export(folder / "young", config, {"dit": young["dit"]}, shared="../model")
    return folder / "model"


def _initial(part: str, config: ModelConfig, recipe: Recipe) -> Params:
    """The parameters that training begins with: random ones, or those to go on with."""
    if recipe.start:
        module = load_part(find(recipe.start), part, getattr(config, part), jnp.float32)
    else:
        # "rbg" compiles many times faster than the default here.
        keys = nnx.Rngs(jax.random.key(recipe.seed, impl="rbg"))
        module = PARTS[part][1](getattr(config, part), rngs=keys)
    return nnx.to_pure_dict(nnx.state(module))


def tokenizer_of(folder: Path) -> Path:
    """Where a training's tokenizer lies."""
    return folder / "tokenizer.model"


def _tokenizer(recipe: Recipe, folder: Path, config: ModelConfig) -> Tokenizer:
    path = tokenizer_of(folder)
    if not path.exists():
        if recipe.start:
            pieces = inside(find(recipe.start), "tokenizer.model").read_bytes()
        else:
            rng = np.random.default_rng(recipe.seed)
            scenes = (sample_scene(rng) for _ in range(CAPTIONS))
            pieces = train_sentencepiece(caption(scene, rng) for scene in scenes)
        with atomic(path) as aside:
            aside.write_bytes(pieces)
    return Tokenizer(path, config.text.text_len)


def _normalised(vae: Any, config: ModelConfig, recipe: Recipe, folder: Path) -> ModelConfig:
    """The sizes with mean and deviation of the latents, which are measured once."""
    path = folder / "latents.npz"
    if not path.exists():
        pool = stages.encode_pool(
            vae, recipe, recipe.clip_pool // 4 + 1, recipe.clip_chunks,
            jax.random.key(recipe.seed), late=True,
        )  # fmt: skip
        latents = pool.latents.astype(jnp.float32)
        mean, std = (np.asarray(f(latents, axis=(0, 1, 2, 3))) for f in (jnp.mean, jnp.std))
        # The VAE's own numbers are what it was loaded with.
        old = vae.config
        mean = mean * np.array(old.std) + np.array(old.mean)
        std = std * np.array(old.std)
        with atomic(path) as aside, aside.open("wb") as file:
            np.savez(file, mean=mean, std=std)
    stored = np.load(path)
    numbers = {name: tuple(float(x) for x in stored[name]) for name in ("mean", "std")}
    return dataclasses.replace(config, vae=dataclasses.replace(config.vae, **numbers))


def _export(
    out: Path,
    config: ModelConfig,
    params: Params,
    tokenizer: Path | None = None,
    shared: str | None = None,
) -> None:
    """Writes a model's folder, in bfloat16, that `tt_jax.load` takes.

    What isn't given is taken from the folder `shared`.
    """
    aside = new_folder(out.with_name(f".{out.name}.part"))
    write_config(aside, config, "causal generator", shared)
    if tokenizer:
        (aside / "tokenizer.model").write_bytes(tokenizer.read_bytes())
        write_vocabulary(aside, Vocabulary(words(), DRAWS))
    for part, values in params.items():
        save_part(aside, part, cast(values, jnp.bfloat16))
    shutil.rmtree(out, ignore_errors=True)
    aside.rename(out)
