"""Captions on the device say what the scenes show, in the world's words."""

import re

import jax
import numpy as np
import pytest

from tt_jax.models.tokenizer import Tokenizer, train_sentencepiece
from tt_jax.shapes import language, world
from tt_jax.shapes.training.captions import read_grammar, say
from tt_jax.shapes.training.scenes import from_scenes

LENGTH = 40


@pytest.fixture(scope="module")
def tokenizer():
    rng = np.random.default_rng(0)
    captions = [language.caption(world.sample_scene(rng), rng) for _ in range(3000)]
    return Tokenizer(train_sentencepiece(captions), LENGTH)


@pytest.fixture(scope="module")
def told(tokenizer):
    """Scenes, and what is said of them."""
    rng = np.random.default_rng(1)
    scenes = [world.sample_scene(rng) for _ in range(1500)]
    grammar = read_grammar(tokenizer)
    ids, mask = jax.jit(lambda key, scenes: say(key, grammar, scenes, LENGTH))(
        jax.random.key(0), from_scenes(scenes)
    )
    ids, mask = np.asarray(ids), np.asarray(mask)
    texts = [
        tokenizer._pieces.Decode(row[there][:-1].tolist())
        for row, there in zip(ids, mask, strict=True)
    ]
    return scenes, texts, ids, mask


@pytest.mark.slow
def test_they_are_split_as_the_tokenizer_splits_them(told, tokenizer):
    _, texts, ids, mask = told
    expected_ids, expected_mask = tokenizer(texts)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_array_equal(mask, expected_mask)


@pytest.mark.slow
def test_they_say_the_scenes_facts(told):
    scenes, texts, _, _ = told
    for scene, text in zip(scenes, texts, strict=True):
        said, shown = language.parse(text), language.facts(scene)
        assert (said.objects, said.background) == (shown.objects, shown.background), text
        assert said.camera in ({shown.camera} if scene.pan else {None, "fixed"})


@pytest.mark.slow
def test_they_use_every_word_and_no_other(told):
    scenes, texts, _, _ = told
    rng = np.random.default_rng(2)
    theirs = [language.caption(scene, rng) for scene in scenes]

    def words(captions):
        return set(re.findall(r"[a-z-]+", " ".join(captions)))

    assert words(texts) == words(theirs)
    length = [np.mean([len(text.split()) for text in captions]) for captions in (texts, theirs)]
    assert abs(length[0] - length[1]) < 0.3
