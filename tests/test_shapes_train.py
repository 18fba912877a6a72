"""The training recipe: its loss against a plain one, and that stopping changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
from models import random_dit

from tt_jax.models.dit import KV, DiTConfig
from tt_jax.nn.rope import rotate, rotation
from tt_jax.shapes.losses import teacher_forcing_loss, window_loss
from tt_jax.shapes.optimise import Log, optimizer, run_stage, schedule
from tt_jax.shapes.reading import ANSWERS, answers, questions, reading_loss
from tt_jax.shapes.train import LEVEL_ODDS, STAGGERED, STAGGERED_ODDS
from tt_jax.shapes.world import Object, Scene
from tt_jax.strategies.schedule import time_sinusoid

CONFIG = DiTConfig(dim=24, ffn_dim=32, layers=2, heads=2, channels=2, text_dim=8, text_len=3)


def test_teacher_forcing_is_each_chunk_after_the_clean_ones():
    dit = random_dit(CONFIG)
    keys = jax.random.split(jax.random.key(0), 3)
    latents, noise = (jax.random.normal(key, (2, 9, 4, 4, 2)) for key in keys[:2])
    text = jax.random.normal(keys[2], (2, CONFIG.text_len, CONFIG.text_dim))
    sigma = np.random.default_rng(0).uniform(0.5, 1, (2, 2)).astype(np.float32)
    clean = jnp.asarray(time_sinusoid(np.zeros((1, 6))))
    weight = jnp.array([0.5, 2.0])
    mean, chunks = jax.jit(teacher_forcing_loss)(
        dit, text, latents[:, :6], latents[:, 3:], noise[:, 3:], jnp.asarray(sigma), clean,
        jnp.asarray(time_sinusoid(sigma)), weight,
    )  # fmt: skip

    cross, context, expected = dit.encode_text(text), None, []
    for chunk in range(3):
        part, frames = slice(3 * chunk, 3 * chunk + 3), jnp.arange(3 * chunk, 3 * chunk + 3)
        if chunk:
            level = jnp.asarray(sigma[:, chunk - 1])[:, None, None, None, None]
            noisy = (1 - level) * latents[:, part] + level * noise[:, part]
            time = jnp.asarray(time_sinusoid(np.repeat(sigma[:, chunk - 1 : chunk], 3, axis=1)))
            flow, _ = dit(noisy, time, cross, frames, context)
            error = jnp.mean((flow - noise[:, part] + latents[:, part]) ** 2, axis=(1, 2, 3, 4))
            expected.append(jnp.mean(error * weight))
        _, kv = dit(latents[:, part], clean[:, :3], cross, frames, context)
        kv = KV(rotate(kv.k, rotation(frames, 2, 2, CONFIG.head_dim)), kv.v)
        context = kv if context is None else KV(
            *(jnp.concatenate(pair, axis=2) for pair in zip(context, kv, strict=True))
        )  # fmt: skip
    np.testing.assert_allclose(chunks, expected, rtol=1e-5)
    np.testing.assert_allclose(mean, np.mean(expected), rtol=1e-5)


def test_a_windows_chunk_after_a_clean_one_is_teacher_forcings():
    dit = random_dit(CONFIG)
    keys = jax.random.split(jax.random.key(0), 4)
    latents, noise = (jax.random.normal(key, (2, 9, 4, 4, 2)) for key in keys[:2])
    text = jax.random.normal(keys[2], (2, CONFIG.text_len, CONFIG.text_dim))
    sigma = np.array([[0.0, 0.8, 1.0], [0.0, 0.6, 1.0]], np.float32)
    time, weight = jnp.asarray(time_sinusoid(sigma)), jnp.array([[0.0, 1.0, 0.0]] * 2)
    seen = jnp.array([[[1, 0, 0], [1, 1, 0], [1, 1, 1]]] * 2, bool)
    window = jax.jit(window_loss)(dit, text, latents, noise, sigma, time, weight, seen)

    clean = jnp.asarray(time_sinusoid(np.zeros((1, 3))))
    plain, _ = teacher_forcing_loss(
        dit, text, latents[:, :3], latents[:, 3:6], noise[:, 3:6], jnp.asarray(sigma[:, 1:2]),
        clean, time[:, 1:2], jnp.ones(2),
    )  # fmt: skip
    np.testing.assert_allclose(window, plain, rtol=1e-5)
    # A chunk that isn't seen is as good as absent, one that is seen isn't.
    other = latents.at[:, 6:].add(1.0)
    same = window_loss(dit, text, other, noise, sigma, time, weight, seen)
    np.testing.assert_allclose(window, same, rtol=1e-6)
    joint = window_loss(dit, text, other, noise, sigma, time, weight, seen.at[:, 1, 2].set(True))
    assert abs(joint - window) > 1e-4 * window


def test_windows_of_rolling_forcing():
    assert STAGGERED.shape == (len(STAGGERED_ODDS), 7)
    assert np.isclose(STAGGERED_ODDS.sum(), 1)
    # The first pass: one block, of pure noise, and nothing before it.
    assert STAGGERED[0, 2] == 1 and np.isnan(np.delete(STAGGERED[0], 2)).all()
    # A full one: anchor and last finished block, then noisier from block to block.
    full = STAGGERED[STAGGERED_ODDS.argmax()]
    assert (full[:2] == 0).all() and full[2] > 0.5 and full[-1] == 1
    assert (np.diff(full[1:]) > 0).all()


def test_answers_and_their_loss():
    things = (
        Object("square", "cyan", "large", 23.0, 32.0, 32.0, "up", "slow"),
        Object("circle", "red", "small", 7.0, 9.0, 9.0),
    )
    right = answers(Scene(things, "navy", "right"))
    np.testing.assert_array_equal(right, [2, 6, 3, 3, 1, 1, 1, 1, 0, 0, 5, 2])
    alone = answers(Scene(things[1:], "white"))
    np.testing.assert_array_equal(alone, [1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0])

    rows = jax.random.normal(jax.random.key(0), (2, 5, 8))
    mask = jnp.arange(5) < jnp.array([[5], [3]])
    asked = questions(np.random.default_rng(0), 8)
    both = jnp.asarray(np.stack([right, alone]))
    error, share = reading_loss(asked, rows, mask, both)
    # Rows beyond the mask have no say; a bias towards the right answers leaves no error.
    far = rows.at[1, 3:].set(99.0)
    np.testing.assert_allclose(reading_loss(asked, far, mask, both)[0], error, rtol=1e-6)
    certain = {"attention": asked["attention"], "answer": jnp.zeros((12, 8, ANSWERS))}
    certain["answer"] = certain["answer"].at[jnp.arange(12), :, right].set(50.0)
    error, share = reading_loss(certain, jnp.ones((1, 5, 8)), mask[:1], both[:1])
    assert error < 1e-6 and share == 1


def test_stopping_and_going_on_changes_nothing(tmp_path):
    target = jax.random.normal(jax.random.key(1), (8, 8))

    def loss(params, noise):
        return jnp.mean((params["kernel"] + params["bias"] - target + noise) ** 2), {}

    def batch(step):
        return (0.1 * np.random.default_rng(step).normal(size=(8, 8)).astype(np.float32),)

    def train(folder, steps):
        params = {"kernel": jnp.zeros((8, 8)), "bias": jnp.zeros((8,))}
        rate = schedule(1e-1, 8, 2, 0.5)
        (tmp_path / folder).mkdir(exist_ok=True)
        with jax.numpy_dtype_promotion("standard"):  # optax relies on it
            return run_stage(
                "stage", tmp_path / folder, params, optimizer(rate), loss, batch,
                steps=steps, average=0.9, save_every=2, log=Log(tmp_path / folder / "log.csv"),
            )  # fmt: skip

    whole = train("whole", 8)
    half = train("parts", 4)
    parts = train("parts", 8)
    for a, b, c in zip(*map(jax.tree.leaves, (whole, parts, half)), strict=True):
        np.testing.assert_array_equal(a, b)
        assert not np.array_equal(a, c)
    again = train("parts", 4)  # the model at that age
    np.testing.assert_array_equal(again["kernel"], half["kernel"])


def test_schedule_warms_up_and_decays():
    rate = schedule(1.0, 100, 10, 0.3)
    values = [float(rate(step)) for step in (0, 5, 10, 50, 70, 85, 100)]
    np.testing.assert_allclose(values, [0, 0.5, 1, 1, 1, 0.525, 0.05], rtol=1e-6)
    assert np.isclose(LEVEL_ODDS.sum(), 1)
