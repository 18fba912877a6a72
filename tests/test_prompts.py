"""Prompts encoded before the rest of a model is loaded, and kept."""

import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import PROMPT

import tt_jax
from tt_jax import prompts
from tt_jax.errors import ModelError


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Where prompts are kept in this test; and every loading of an encoder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    loaded = []
    load = prompts.load_part
    monkeypatch.setattr(prompts, "load_part", lambda *args: loaded.append(args) or load(*args))
    return tmp_path / "cache" / "tt-jax" / "prompts", loaded


@pytest.mark.slow
def test_they_are_the_pipelines(tiny_model, kept):
    texts = [PROMPT, "a small green square"]
    expected = tt_jax.load(tiny_model).encode_prompt(texts)
    made = tt_jax.encode_prompts(tiny_model, texts)
    assert made.shape == expected.shape and made.dtype == expected.dtype
    np.testing.assert_allclose(made, expected, rtol=1e-5, atol=1e-5)
    # The video is that of the whole pipeline, made without an encoder.
    lean = tt_jax.load(tiny_model, text=False)
    video = lean.generate(made, seconds=0.5, seed=1)
    assert video.frames.shape[:2] == (2, 8)
    with pytest.raises(ValueError, match="encode_prompts"):
        lean.encode_prompt(PROMPT)


def test_a_prompt_is_encoded_once(tiny_model, kept):
    folder, loaded = kept
    first = tt_jax.encode_prompts(tiny_model, PROMPT)
    again = tt_jax.encode_prompts(tiny_model, f"  {PROMPT}\n")  # the same to the tokenizer
    np.testing.assert_array_equal(first, again)
    assert len(loaded) == 1 and len(list(folder.iterdir())) == 1
    # Another dtype, prompt or model is another name.
    half = tt_jax.encode_prompts(tiny_model, PROMPT, jnp.bfloat16)
    np.testing.assert_array_equal(half, tt_jax.load(tiny_model, jnp.bfloat16).encode_prompt(PROMPT))
    assert len(loaded) == 2
    tt_jax.encode_prompts(tiny_model, "another")
    assert len(loaded) == 3 and len(list(folder.iterdir())) == 3


def test_another_models_prompts_are_not_taken(tiny_model, kept, tmp_path):
    _, loaded = kept
    tt_jax.encode_prompts(tiny_model, PROMPT)
    copy = tmp_path / "copy"
    shutil.copytree(tiny_model, copy)
    tt_jax.encode_prompts(copy, PROMPT)
    assert len(loaded) == 2


@pytest.mark.parametrize(
    ("module", "name", "value"),
    [(prompts, "__version__", "0.0"), (jax, "__version__", "0.0"),
     (jax, "default_backend", lambda: "tpu")],
)  # fmt: skip
def test_what_other_programs_made_is_not_taken(tiny_model, kept, monkeypatch, module, name, value):
    _, loaded = kept
    tt_jax.encode_prompts(tiny_model, PROMPT, jnp.float32)
    monkeypatch.setattr(module, name, value)
    tt_jax.encode_prompts(tiny_model, PROMPT, jnp.float32)
    assert len(loaded) == 2


def test_without_a_home_nothing_is_kept(tiny_model, kept, monkeypatch):
    folder, loaded = kept

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(pathlib.Path, "home", homeless)
    for _ in range(2):
        tt_jax.encode_prompts(tiny_model, PROMPT)
    assert len(loaded) == 2 and not folder.exists()


@pytest.mark.parametrize("damage", [b"", b"no numbers", None])
def test_what_is_damaged_is_made_again(tiny_model, kept, damage):
    folder, loaded = kept
    first = tt_jax.encode_prompts(tiny_model, PROMPT)
    (file,) = folder.iterdir()
    if damage is None:
        np.save(file, np.zeros((3, 4), np.float32))
    else:
        file.write_bytes(damage)
    np.testing.assert_array_equal(tt_jax.encode_prompts(tiny_model, PROMPT), first)
    assert len(loaded) == 2


def test_only_the_latest_are_kept(tiny_model, kept, monkeypatch):
    folder, _ = kept
    monkeypatch.setattr(prompts, "KEPT", 2)
    tt_jax.encode_prompts(tiny_model, ["one", "two", "three"])
    assert len(list(folder.iterdir())) == 2


def test_a_cache_that_cannot_be_written_is_done_without(tiny_model, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert jnp.isfinite(tt_jax.encode_prompts(tiny_model, PROMPT)).all()


def test_bad_requests(tiny_model, kept, tmp_path):
    with pytest.raises(ValueError, match="empty"):
        tt_jax.encode_prompts(tiny_model, " ")
    with pytest.raises(ValueError, match=r"'caf\\udce9' isn't Unicode"):
        tt_jax.encode_prompts(tiny_model, "caf\udce9")
    with pytest.raises(ModelError):
        tt_jax.encode_prompts(tmp_path / "nowhere", PROMPT)
    with pytest.warns(UserWarning, match="left out"):
        tt_jax.encode_prompts(tiny_model, "word " * 200)
