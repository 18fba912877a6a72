"""Words that a small model doesn't know are named, with what it can draw."""

import warnings

import pytest

from tt_jax.checkpoint import load_tokenizer, write_vocabulary
from tt_jax.errors import ModelError
from tt_jax.models.tokenizer import Vocabulary, train_sentencepiece

KNOWN = Vocabulary(frozenset(["a", "red", "circle", "middle-sized", "on", "the"]), "red circles")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(train_sentencepiece(["a red circle"] * 20))
    write_vocabulary(tmp_path, KNOWN)
    return tmp_path


def test_unknown_words_are_named_with_what_the_model_draws(folder):
    tokenizer = load_tokenizer(folder, 64)
    with pytest.warns(UserWarning, match=r"know: cat, grass\. It draws red circles\.$"):
        tokenizer(["A cat on the grass, a cat"])


def test_known_words_are_no_matter(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_tokenizer(folder, 64)(["A Middle-sized red CIRCLE, on the red."])
        (folder / "vocabulary.json").unlink()
        load_tokenizer(folder, 64)(["A cat"])


def test_a_damaged_vocabulary_is_refused(folder):
    (folder / "vocabulary.json").write_text("{}")
    with pytest.raises(ModelError, match=r"vocabulary\.json is damaged"):
        load_tokenizer(folder, 64)
