"""Sizes that no network has are refused in one sentence; the others make one that runs."""

import dataclasses

import jax
import numpy as np
import pytest
from models import random_dit

from tt_jax import RollingForcing, SelfForcing, TokenTrim, rollout
from tt_jax.errors import ModelError
from tt_jax.models.dit import DiTConfig
from tt_jax.models.text import TextConfig
from tt_jax.models.tokenizer import Tokenizer
from tt_jax.models.vae import VAEConfig

DIT = DiTConfig(dim=24, ffn_dim=32, layers=1, heads=2, channels=2, text_dim=8, text_len=3)
TEXT = TextConfig(vocab=96, dim=32, attention_dim=48, ffn_dim=40, heads=4, layers=3)


@pytest.mark.parametrize(
    ("config", "wrong", "words"),
    [
        (DIT, {"dim": 100, "heads": 3}, "a width of 100 can't be split into 3 heads"),
        (DIT, {"dim": 18, "heads": 2}, "must be even and at least 6, not 9"),
        (DIT, {"dim": 16, "heads": 4}, "must be even and at least 6, not 4"),
        (DIT, {"freq_dim": 63}, "freq_dim.*even, not 63"),
        (DIT, {"patch": 0}, "DiTConfig's patch must be a whole number at least 1, not 0"),
        (DIT, {"layers": -1}, "layers must be a whole number"),
        (DIT, {"heads": True}, "heads must be a whole number at least 1, not True"),
        (TEXT, {"attention_dim": 50}, "a width of 50 can't be split into 4 heads"),
        (TEXT, {"vocab": 0}, "TextConfig's vocab must be a whole number"),
        (TEXT, {"buckets": 3}, "buckets must be even and at least 4, not 3"),
        (TEXT, {"max_distance": 8}, "max_distance must be more than a quarter"),
        (VAEConfig(), {"mean": (0.0,) * 4}, "one entry for each latent channel"),
        (VAEConfig(), {"std": (1.0,) * 15}, "one entry for each latent channel"),
        (VAEConfig(), {"std": (0.0,) * 16}, "std, .*must be above 0, not 0.0"),
        (VAEConfig(), {"dim_mult": ()}, "dim_mult needs whole numbers"),
        (VAEConfig(), {"dim_mult": (1, 2, 0, 4)}, "dim_mult needs whole numbers from 1 on"),
        (VAEConfig(), {"dim": 3, "dim_mult": (1, 1, 2, 2)}, "must be even, not 3"),
        (VAEConfig(), {"temporal_downsample": (True,)}, "one entry less than dim_mult"),
        (VAEConfig(), {"res_blocks": 0}, "VAEConfig's res_blocks must be a whole number"),
    ],
)
def test_sizes_that_no_network_has(config, wrong, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(config, **wrong)


@pytest.mark.parametrize("strategy", [SelfForcing(window=6, steps=(1000, 500)), RollingForcing()])
def test_sinusoids_are_as_wide_as_the_transformer_wants(strategy):
    dit = random_dit(dataclasses.replace(DIT, freq_dim=64))
    text = jax.numpy.zeros((1, 3, 8))

    def run(key):
        return rollout(
            dit, text, key, chunks=5, grid=(4, 4), strategy=strategy, trim=TokenTrim.off()
        )

    assert jax.eval_shape(run, jax.random.key(0)).latents.shape == (1, 15, 4, 4, 2)


def test_a_bad_tokenizer(tmp_path):
    path = tmp_path / "tokenizer.model"
    with pytest.raises(ModelError, match=r"tokenizer\.model is missing: convert"):
        Tokenizer(path, 8)
    path.write_bytes(np.random.default_rng(0).bytes(1000))
    with pytest.raises(
        ModelError, match=r"tokenizer\.model is no tokenizer, or is damaged: convert"
    ):
        Tokenizer(path, 8)
    with pytest.raises(ModelError, match="the tokenizer is no tokenizer"):
        Tokenizer(b"no model", 8)
    with pytest.raises(ModelError, match="the tokenizer is no tokenizer"):
        Tokenizer(b"", 8)
