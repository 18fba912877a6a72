"""The embedded model: small enough for the wheel, and trained."""

import jax.numpy as jnp
import numpy as np
import pytest

import tt_jax
from tt_jax.checkpoint import find
from tt_jax.shapes.checker import judge
from tt_jax.shapes.world import evaluation_prompts, render


@pytest.fixture(scope="module")
def pipe():
    return tt_jax.load("shapes")


def test_weights_fit_into_the_wheel():
    files = [path for path in find("shapes").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 12e6


def test_vae_restores_a_clip(pipe):
    (_, scene), *_ = evaluation_prompts(1)
    clip = render(scene, 33).astype(np.float32) / 127.5 - 1
    error = np.asarray(pipe.vae.decode(pipe.vae.encode(jnp.asarray(clip[None])))) - clip
    assert -10 * np.log10(np.mean(error**2) / 4) > 24


def test_videos_show_the_background_that_was_asked_for(pipe):
    prompts = [caption for caption, _ in evaluation_prompts(4)]
    video = pipe.generate(prompts, seconds=2, seed=0, trim=tt_jax.TokenTrim.off())
    assert video.frames.shape == (4, 32, 64, 64, 3)
    right = [judge(frames, text)["background"] for text, frames in zip(prompts, video.frames)]
    assert sum(right) >= 3
