"""The whole training at toy size: every stage once, models that load, and going on."""

import csv
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import tt_jax
from tt_jax.checkpoint import PARTS
from tt_jax.models.tokenizer import Tokenizer
from tt_jax.shapes.training import stages
from tt_jax.shapes.training.captions import read_grammar
from tt_jax.shapes.training.optimise import Log, rate_at, run_stage
from tt_jax.shapes.training.recipe import STAGES, Recipe, Stage, toy, toy_config
from tt_jax.shapes.training.run import train
from tt_jax.shapes.training.scenes import from_scenes, sample
from tt_jax.shapes.world import SHAPES, SIZES, Object, Scene


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    train(toy(), 0.001, folder, toy_config(), only=STAGES[:-1])
    return folder


@pytest.mark.slow
def test_stages_run_and_the_models_load(trained):
    rows = list(csv.DictReader((trained / "log.csv").open()))
    assert list(dict.fromkeys(row["stage"] for row in rows)) == list(STAGES[:-1])
    assert all(np.isfinite(float(row["value"])) for row in rows)
    for name in ("model", "young"):
        pipe = tt_jax.load(trained / name)
        assert pipe.strategy() == tt_jax.SelfForcing(window=9, shift=1.0)
        video = pipe.generate("a small red circle", seconds=0.5)
        assert video.frames.shape == (1, 8, 64, 64, 3)


@pytest.mark.slow
def test_again_it_has_nothing_left_to_do(trained):
    before = (trained / "log.csv").read_text()
    train(toy(), 0.001, trained, toy_config(), only=STAGES[:-1])
    assert (trained / "log.csv").read_text() == before


@pytest.mark.slow
def test_the_last_stage_goes_on_alone_from_another_model(trained, tmp_path):
    recipe = dataclasses.replace(toy(), start=str(trained / "young"))
    train(recipe, 0.001, tmp_path, only=STAGES[-1:])
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    assert {row["stage"] for row in rows} == {STAGES[-1]}
    assert all(np.isfinite(float(row["value"])) for row in rows)
    for file in ("config.json", "tokenizer.model"):
        assert (tmp_path / "model" / file).read_bytes() == (trained / "model" / file).read_bytes()
    first, second = (tt_jax.load(path) for path in (trained / "young", tmp_path / "model"))
    for part in ("vae", "text"):  # shared by both
        same = jax.tree.map(
            np.array_equal, *(nnx.state(getattr(pipe, part)) for pipe in (first, second))
        )
        assert all(jax.tree.leaves(same))


def test_a_stage_goes_on_where_it_was_stopped(tmp_path):
    stage = Stage(1.0, 1, 1e-2, 0.9, 4)

    def loss(params, data, key):
        return jnp.sum((params["x"] - 1) ** 2), {}

    def run(seconds, folder):
        log = Log(tmp_path / "log.csv")
        return run_stage(
            "one", stage, seconds, folder, {"x": jnp.zeros(3)}, loss, lambda *_: (), log
        )

    first = run(1e-3, tmp_path)["x"]
    assert 0 < float(first[0]) < 1
    np.testing.assert_array_equal(run(1e-3, tmp_path)["x"], first)  # nothing left
    assert float(run(2.0, tmp_path)["x"][0]) > float(first[0])


def test_the_rate_rises_stays_and_falls():
    stage = Stage(1.0, 1, 0.1, 0.9, 1)
    rates = [rate_at(stage, progress) for progress in (0, 0.01, 0.02, 0.5, 0.75, 1.0)]
    np.testing.assert_allclose(rates, [0, 0.05, 0.1, 0.1, 0.05, 0.005])


def test_a_recipes_levels_and_shares():
    recipe = Recipe()
    assert sum(getattr(recipe, name).share for name in STAGES) == pytest.approx(1)
    with pytest.raises(ValueError, match="odds"):
        dataclasses.replace(recipe, odds=(1.0,))


def test_windows_of_rolling_forcing_are_its_passes():
    table, odds = stages.staggered(1.0, 6)
    assert odds.sum() == pytest.approx(1) and len(odds) == len(table)
    np.testing.assert_allclose(table[5], [0, 0.2, 0.4, 0.6, 0.8, 1], rtol=1e-6)
    np.testing.assert_allclose(table[1], [np.nan, 0.8, 1, np.nan, np.nan, np.nan], rtol=1e-6)


@pytest.mark.slow
def test_windows_are_of_clips_that_begin_as_a_video_does(trained):
    """Every second clip of a pool does; only the windows look at `latents`."""
    recipe, config = toy(), toy_config()
    tokenizer = Tokenizer(trained / "tokenizer.model", config.text.text_len)
    rngs = nnx.Rngs(0)
    modules = {name: PARTS[name][1](getattr(config, name), rngs=rngs) for name in PARTS}
    graphs = {name: nnx.graphdef(module) for name, module in modules.items()}
    params = {name: nnx.to_pure_dict(nnx.state(modules[name])) for name in ("dit", "text")}
    maker = stages.Maker(config, recipe, read_grammar(tokenizer), graphs, jnp.float32)
    clean = jnp.zeros((4, 3 * recipe.clip_chunks, 16, 16, config.dit.channels))
    scenes = sample(jax.random.key(0), 4)
    longer = stages.Pool(scenes, clean.at[1::2].set(jnp.nan), clean, clean)
    openings = stages.Pool(scenes, clean[:, :3], clean[:, :3], clean[:, :3])
    loss = jax.jit(stages.clips(maker))
    for key in jax.random.split(jax.random.key(1), 4):
        value, figures = loss(params, (openings, longer), key)
        assert np.isfinite(value) and figures["rolling"] > 0


def test_small_things_weigh_as_much_as_large_ones():
    ground = jnp.zeros((2, 1, 16, 16, 8))
    latents = ground.at[0, :, :2, :2].set(2.0).at[1, :, :6, :6].set(2.0)
    energy = jnp.mean(latents**2, axis=(1, 2, 3, 4))
    weighed = jax.jit(stages.weigh)(latents)[:, 0] * energy
    assert float(weighed[0] / weighed[1]) > 0.5 > float(energy[0] / energy[1])


def test_hard_scenes_are_drawn_more_often():
    circle, square, triangle, cross = (
        Object(name, "red", size, SIZES[size], 32.0, 32.0)
        for name, size in zip(SHAPES, ("large", "medium", "small", "small"), strict=True)
    )
    each = (circle,), (square,), (triangle,), (cross,), (circle, triangle)
    scenes = from_scenes([Scene(objects, "white") for objects in each])
    hard = np.asarray(stages.hardness(scenes))
    np.testing.assert_allclose(hard, [1, 1.5, 6, 6, 7])

    latents = jnp.arange(5.0).reshape(5, 1, 1, 1, 1)
    pool = stages.Pool(scenes, latents, latents, latents)
    for share in (0.0, 0.5):
        recipe = dataclasses.replace(Recipe(), hard=share)
        drawn = jax.jit(stages.draw, static_argnums=(0, 3))(recipe, pool, jax.random.key(0), 20_000)
        rows = np.asarray(drawn.latents).ravel().astype(int)
        np.testing.assert_array_equal(scenes.shape[rows], drawn.scenes.shape)
        expected = share * hard / hard.sum() + (1 - share) / 5
        np.testing.assert_allclose(np.bincount(rows, minlength=5) / 20_000, expected, atol=0.015)
