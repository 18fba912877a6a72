"""Averages are folded in place: what a rollout needs beside its state grows with the model's layers
as a plain window's does, by the keys and values of one chunk."""

import jax
import jax.numpy as jnp
import pytest

from tt_jax import SelfForcing
from tt_jax._rollout import lower
from tt_jax.cache import EmaSink
from tt_jax.checkpoint import abstract
from tt_jax.models.dit import DiTConfig


@pytest.mark.slow
def test_temporaries_of_an_averaged_sink_are_a_windows():
    places, sizes = 16**2, {"channels": 4, "text_dim": 8, "text_len": 4}

    def temporaries(layers):
        config = DiTConfig(dim=48, ffn_dim=64, layers=layers, heads=2, **sizes)
        text = jax.ShapeDtypeStruct((1, config.text_len, config.text_dim), jnp.float32)
        program = lower(
            abstract("dit", config, jnp.float32), text, chunks=4, grid=(32, 32),
            strategy=SelfForcing(cache=EmaSink()),
        )  # fmt: skip
        return program.compile().memory_analysis().temp_size_in_bytes

    chunk = 2 * 3 * places * 48 * 4  # of one layer: keys and values
    assert temporaries(10) - temporaries(2) <= 1.15 * 8 * chunk
