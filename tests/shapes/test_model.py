"""The embedded model: small enough for the wheel, and trained."""

import warnings

import jax.numpy as jnp
import numpy as np
import pytest

import tt_jax
from tt_jax.checkpoint import EMBEDDED, find, inside, load_tokenizer, read_config
from tt_jax.models.tokenizer import Vocabulary
from tt_jax.shapes.language import DRAWS, evaluation_prompts, words
from tt_jax.shapes.verdict import judge
from tt_jax.shapes.world import render


@pytest.fixture(scope="module")
def pipe():
    return tt_jax.load("shapes")


def test_weights_fit_into_the_wheel():
    files = [path for name in EMBEDDED for path in find(name).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 24e6


def test_both_know_their_words_levels_and_the_same_latents():
    old, young = (read_config(find(name))[0] for name in EMBEDDED)
    assert old == young
    assert (old.rollout.shift, old.rollout.window) == (1.0, 9)
    for part in ("tokenizer.model", "vocabulary.json", "vae", "text"):
        assert len({inside(find(name), part).resolve() for name in EMBEDDED}) == 1
    tokenizer = load_tokenizer(find("shapes"), old.text.text_len)
    assert tokenizer.vocabulary == Vocabulary(words(), DRAWS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer([caption for caption, _ in evaluation_prompts()])
    with pytest.warns(UserWarning, match="doesn't know: cat, walks, grass"):
        tokenizer(["A cat walks on the grass"])


@pytest.mark.slow
def test_vae_restores_a_clip(pipe):
    (_, scene), *_ = evaluation_prompts(1)
    clip = render(scene, 33).astype(np.float32) / 127.5 - 1
    error = np.asarray(pipe.vae.decode(pipe.vae.encode(jnp.asarray(clip[None])))) - clip
    assert -10 * np.log10(np.mean(error**2) / 4) > 28


@pytest.mark.slow
def test_videos_show_the_background_that_was_asked_for(pipe):
    prompts = [caption for caption, _ in evaluation_prompts(4)]
    video = pipe.generate(prompts, seconds=2, seed=0, trim=tt_jax.TokenTrim.off())
    assert video.frames.shape == (4, 32, 64, 64, 3)
    right = [judge(frames, text)["background"] for text, frames in zip(prompts, video.frames)]
    assert sum(right) >= 3
