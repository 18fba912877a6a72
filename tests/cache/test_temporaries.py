"""Policies change the buffer in place: what a rollout needs beside its state grows with the model's
layers as a plain window's does, by the keys and values of one chunk."""

import re

import jax
import jax.numpy as jnp
import pytest

from tt_jax import SelfForcing
from tt_jax._rollout import lower
from tt_jax.cache import (
    DeepForcing,
    EmaSink,
    FadeMem,
    InfinityRope,
    MemRope,
    RollingSink,
    TetherCache,
    Window,
)
from tt_jax.checkpoint import abstract
from tt_jax.models.dit import DiTConfig
from tt_jax.planning import compiler


@pytest.mark.slow
@pytest.mark.parametrize("policy", [EmaSink(), TetherCache()], ids=repr)
def test_temporaries_are_a_windows(policy):
    places, sizes = 16**2, {"channels": 4, "text_dim": 8, "text_len": 4}

    def temporaries(layers):
        config = DiTConfig(dim=48, ffn_dim=64, layers=layers, heads=2, **sizes)
        text = jax.ShapeDtypeStruct((1, config.text_len, config.text_dim), jnp.float32)
        program = lower(
            abstract("dit", config, jnp.float32), text, chunks=4, grid=(32, 32),
            strategy=SelfForcing(cache=policy),
        )  # fmt: skip
        return program.compile().memory_analysis().temp_size_in_bytes

    chunk = 2 * 3 * places * 48 * 4  # of one layer: keys and values
    assert temporaries(10) - temporaries(2) <= 1.15 * 8 * chunk


@pytest.mark.huge
@pytest.mark.parametrize(
    "policy",
    [InfinityRope(), MemRope(), RollingSink(), EmaSink(), DeepForcing(), TetherCache(), FadeMem()],
    ids=repr,
)
def test_temporaries_on_a_tpu_are_a_windows(tpu_mesh, policy):
    """Within 15 %; a minute of the TPU's compiler for each."""
    mesh, sizes = tpu_mesh(1, heads=3), {"heads": 3, "text_dim": 64, "text_len": 128}

    def growth(policy):
        used = []
        for layers in (2, 10):
            config = DiTConfig(dim=384, ffn_dim=512, layers=layers, **sizes)
            strategy = SelfForcing(cache=policy)
            memory = compiler.compile_rollout(config, strategy, mesh, chunks=8, grid=(32, 32))
            used.append(memory.outputs + memory.temporaries)
        return used[1] - used[0]

    assert growth(policy) <= 1.15 * growth(Window())


@pytest.mark.huge
@pytest.mark.parametrize(
    "policy", [Window(), InfinityRope(), MemRope(), RollingSink(), EmaSink()], ids=repr
)
def test_no_stack_of_keys_is_copied_on_a_tpu(tpu_mesh, policy):
    """In Wan-1.3B's rollout on a v5e; a minute each."""
    config, mesh = DiTConfig.wan_1_3b(), tpu_mesh(1, heads=12)
    text = jax.ShapeDtypeStruct((1, config.text_len, config.text_dim), jnp.bfloat16)
    lowered = lower(
        abstract("dit", config, jnp.bfloat16), text, chunks=8, grid=(60, 104),
        strategy=SelfForcing(cache=policy), mesh=mesh,
    )  # fmt: skip
    with jax.set_mesh(mesh):
        program = lowered.compile().as_text()
    stack = r"\w+\[30,1,\d+,12,128\]"  # of all layers
    assert re.search(rf" = {stack}\S* dynamic-update-slice\(", program)
    assert not re.findall(rf" = \(?{stack}.* copy(?:-start)?\(", program)
