"""Operations counted from shapes, `tt-jax plan`, and a program for a TPU that isn't here."""

import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import TINY

from tt_jax.checkpoint import shapes
from tt_jax.cli import main as cli
from tt_jax.models.configs import CONFIGS
from tt_jax.models.dit import DiTConfig
from tt_jax.planning import compiler, fit
from tt_jax.planning.machines import MACHINES, machine
from tt_jax.planning.operations import cost
from tt_jax.strategies.flowmo import FlowMo
from tt_jax.strategies.rolling_forcing import RollingForcing
from tt_jax.strategies.self_forcing import SelfForcing
from tt_jax.trim.tokentrim import TokenTrim


def array(*shape, dtype=np.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


# --- operations ---------------------------------------------------------------------------------


def test_a_product_in_a_loop_counts_as_often_as_it_runs():
    def loop(x, weights):
        return jax.lax.scan(lambda x, w: (jax.jit(jnp.dot)(x, w), None), x, weights)[0]

    got = cost(loop, array(2, 8), array(5, 8, 8))
    assert got.operations == 5 * 2 * 2 * 8 * 8
    assert got.bytes == 4 * (2 * 8 + 5 * 8 * 8 + 2 * 8)


def test_the_dearest_branch_counts():
    def either(x):
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)

    assert cost(either, array(4, 4)).operations == 2 * 2 * 4**3


def test_a_convolution():
    def convolution(x, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)

    got = cost(convolution, array(1, 6, 5, 3), array(3, 3, 3, 7))
    assert got.operations == 2 * (6 * 5 * 7) * (3 * 3 * 3)


def request(device="h200", model="wan2.1-1.3b", strategy=None, batch=1, frames=480):
    config = CONFIGS[model]
    strategy = strategy or SelfForcing()
    return fit.Request(config, MACHINES[device], strategy, TokenTrim(), config.size, frames, batch)


def test_a_pass_of_the_1_3b_model_has_the_operations_that_arithmetic_says():
    t, s, d, f, text, layers = 3 * 1560, 21 * 1560, 1536, 8960, 512, 30
    linear = 2 * t * (6 * d * d + 2 * d * f) * layers
    turning = 2 * 2 * t * d * 128 * layers  # of queries and keys, by a product
    attention = 4 * t * (s + text) * d * layers
    transformer, decoder = fit.pass_cost(request(), 3), fit.decoding_cost(request())
    assert transformer.operations == pytest.approx(linear + attention + turning, rel=2e-3)
    # Weights and context once, in bfloat16.
    weights = sum(leaf.size for leaf in shapes("dit", DiTConfig.wan_1_3b()).values())
    context = 2 * layers * 18 * 1560 * d
    assert transformer.bytes == pytest.approx(2 * (weights + context), rel=0.02)
    # The six convolutions at full resolution are between a quarter and all of the decoder.
    full = 6 * 2 * 27 * 96 * 96 * (4 * 480 * 832)
    assert full < decoder.operations < 4 * full


@pytest.mark.parametrize(
    ("strategy", "passes"),
    [
        (SelfForcing(), [(4, 3), (1, 3)]),
        (RollingForcing(), [(1, 15), (1, 3)]),
        (SelfForcing(guidance=FlowMo("all")), [(7, 3), (1, 3)]),  # one of four is guided
        (SelfForcing(guidance=FlowMo("first")), [(4, 3), (1, 3)]),
        (RollingForcing(guidance=FlowMo("all")), [(4, 15), (1, 3)]),
    ],
    ids=["self", "rolling", "self-guided", "self-first", "rolling-guided"],
)
def test_passes_of_a_chunk(strategy, passes):
    assert fit.passes(strategy) == passes


# --- memory on each chip ------------------------------------------------------------------------


def test_ten_minutes_of_the_14b_model_need_more_than_an_h100():
    """A stream holds two states, 23 GB each; without the second, it would seem to fit."""
    need = fit.estimate(request("h100", "wan2.1-14b", frames=9600))
    assert need.kept == need.state == pytest.approx(23e9, rel=0.01)
    assert need.generating - need.kept < MACHINES["h100"].memory < need.device
    # Frames leave as they are made: the length is no matter.
    short = fit.estimate(request("h100", "wan2.1-14b", frames=160))
    assert (need.made, need.host) == (short.made, short.host)


def test_the_compiler_is_asked_for_the_program_of_a_stream(monkeypatch):
    """One chunk, whatever the length: else ten minutes' latents seem to lie on the chip."""
    asked = []

    def compile_rollout(*_, chunks, **__):
        asked.append(chunks)
        return compiler.Compiled(arguments=8 * 10**9, outputs=10**6, temporaries=10**9)

    monkeypatch.setattr(compiler, "mesh_of", lambda *_: None)
    monkeypatch.setattr(compiler, "compile_rollout", compile_rollout)
    long = request("v5e-1", frames=9600)
    need = fit.compiled(long, fit.estimate(long))
    assert asked == [1] and need.made == 2 * 10**6 and need.kept == need.state


def test_a_batch_is_shared_out_over_the_chips():
    one, eight = (fit.estimate(request("v6e-8", batch=batch)) for batch in (1, 8))
    # 12 heads: 4 chips share weights and state; of 8 chips, 2 are left to share the prompts.
    assert request("v6e-8", batch=8).mesh == (2, 1, 4)
    assert eight.transformer == one.transformer
    assert eight.state == pytest.approx(4 * one.state, rel=0.01)


def test_a_gpu_is_known_by_its_memory():
    assert machine("24gb").memory == 24e9 and machine("24GB").peak is None
    assert machine("24 GB") == machine("24gb")
    assert machine("a100-40").memory == 40e9 and machine("A100-40") == machine("a100-40")
    for name in ("0gb", "24", "abacus"):
        with pytest.raises(ValueError, match="like 24gb"):
            machine(name)


# --- the command --------------------------------------------------------------------------------


def run(capsys, *arguments):
    try:
        code = cli.main(["plan", *arguments])
    except SystemExit as end:
        code = end.code
    return code, *capsys.readouterr()


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch):
    monkeypatch.setattr(cli, "keep_programs", lambda: None)


def test_a_gpu_is_estimated(capsys):
    code, out, _ = run(capsys, "--device", "h200")
    assert code == 0 and "estimate" in out
    rate = float(re.search(r"frames a second, at most +([\d.]+)", out)[1])
    assert rate == pytest.approx(12 / (5 * 40.4 / 989), rel=0.01)


def test_a_preset_and_a_batch_on_a_gpu_of_which_only_the_memory_is_known(capsys):
    model = ["--model", "shapes", "--device", "24gb", "--seconds", "3"]
    code, out, _ = run(capsys, *model, "--preset", "rolling-forcing", "--batch", "2")
    assert code == 0 and "rolling-forcing" in out and "2 videos" in out
    assert "A chunk is 2 passes" in out and "frames a second" not in out
    code, _, err = run(capsys, *model, "--preset", "rolling-forcing", "--window", "12")
    assert code == 2 and "leave --window out" in err


def test_a_cache_policy_has_memory_of_its_own(capsys):
    """Rolling Sink's archive is another window; Infinity-RoPE keeps 3 frames of a window's 18."""
    device = ("--device", "h200", "--cache")
    frame = 2 * 30 * 1560 * 1536 * 2 / 1e9  # GB of keys and values of all layers
    for name, frames, words in (
        ("rolling-sink", 2 * 18, "rolling-sink, frames 21"),
        ("infinity-rope", 3, "infinity-rope, frames 6, sink 1"),
        ("infinity-rope:frames=9", 6, "infinity-rope, frames 9, sink 1"),
        ("ema-sink", 6 + 2 * 3, "ema-sink, frames 9, sink 3"),  # the sinks once more, in float32
        ("deep-forcing", 21, "deep-forcing, frames 21, sink 10"),
    ):
        code, out, _ = run(capsys, *device, name)
        state = float(re.search(r"state with its K/V buffer +([\d.]+)", out)[1])
        assert code == 0 and words in out
        assert state == pytest.approx(frames * frame, rel=0.02)


def test_a_policy_that_does_not_fit_names_what_would(capsys):
    code, out, _ = run(capsys, "--device", "24gb", "--cache", "relax-forcing")
    assert code == 1 and "It doesn't fit" in out and "--device" in out and "--window" not in out


def test_what_does_not_fit_names_what_would(capsys):
    code, out, _ = run(capsys, "--model", "wan2.1-14b", "--device", "rtx4090")
    assert code == 1 and "It doesn't fit" in out
    others = re.search(r"--device ([\w\- ]+)", out)[1].split(" or ")
    assert "h200" in others and "rtx4090" not in others
    assert run(capsys, "--model", "wan2.1-14b", "--device", "h200")[0] == 0


def test_a_remedy_helps_by_the_estimate():
    asked = request("v5e-1")
    scale = 1.3 * asked.machine.memory / fit.estimate(asked).generating
    window = next(one for one in fit.remedies(asked, scale) if "--window" in one).split()[1]
    smaller = fit.estimate(request("v5e-1", strategy=SelfForcing(window=int(window))))
    assert scale * smaller.generating <= asked.machine.memory


@pytest.mark.parametrize(
    "arguments",
    [
        ["--device", "abacus"],
        ["--device", "h100", "--size", "831x480"],
        ["--device", "h100", "--window", "3"],
        ["--device", "h100", "--seconds", "0"],
        ["--device", "h100", "--model", "nowhere"],
        ["--device", "h100", "--batch", "0"],
        ["--device", "h100", "--preset", "rolling"],
        ["--device", "h100", "--cache", "sink"],
        ["--device", "h100", "--cache", "window", "--window", "12"],
        ["--device", "h100", "--cache", "window", "--preset", "rolling-forcing"],
        ["--device", "h100", "--preset", "rolling-forcing", "--seconds", "2"],
    ],
    ids=lambda arguments: " ".join(arguments[2:] or arguments),
)
def test_bad_input_is_one_sentence(capsys, arguments):
    code, out, err = run(capsys, *arguments)
    assert code == 2 and not out and err.count("\n") == 1


# --- a TPU's compiler ---------------------------------------------------------------------------


def test_without_the_compiler_it_says_how_to_get_it(monkeypatch):
    from jax.experimental import topologies

    def missing(*_, **__):
        raise RuntimeError("no libtpu")

    monkeypatch.setattr(topologies, "get_topology_desc", missing)
    with pytest.raises(ValueError, match=r"pip install 'tt-jax\[tpu\]'"):
        compiler.devices(MACHINES["v5e-1"])


def test_the_compiler_does_not_complain_that_there_is_no_tpu():
    pytest.importorskip("libtpu")
    code = (
        "from tt_jax.planning import compiler, machines;"
        "print(len(compiler.devices(machines.machine('v5e-4'))))"
    )
    env = {name: value for name, value in os.environ.items() if not name.startswith("TPU_")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env | {"JAX_PLATFORMS": "cpu"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("4\n", "")


def test_a_gpu_is_no_tpu():
    with pytest.raises(ValueError, match="H100"):
        compiler.devices(MACHINES["h100"])


@pytest.mark.parametrize("chips", [1, 2])
def test_a_small_rollout_compiles_for_a_tpu(tpu_mesh, chips):
    mesh = tpu_mesh(chips, heads=TINY.dit.heads)
    memory = compiler.compile_rollout(
        TINY.dit, SelfForcing(window=9), mesh, chunks=4, grid=(8, 8), dtype=jnp.bfloat16
    )
    weights = sum(leaf.size for leaf in shapes("dit", TINY.dit).values()) * 2
    assert memory.arguments > weights / chips and memory.temporaries > 0


@pytest.mark.parametrize("strategy", [SelfForcing(), RollingForcing()], ids=["self", "rolling"])
def test_a_tpu_updates_the_kv_buffer_in_place(tpu_mesh, strategy):
    """What a layer adds beside weights and buffer: its keys and values of the new frames."""
    mesh = tpu_mesh(1, heads=3)

    def memory(layers):
        config = DiTConfig(dim=384, ffn_dim=512, layers=layers, heads=3, text_dim=64, text_len=128)
        used = compiler.compile_rollout(config, strategy, mesh, chunks=8, grid=(32, 32))
        return used.outputs + used.temporaries

    buffer = 2 * 2 * 384 * strategy.slots * 16**2  # of one layer: keys and values, two bytes each
    assert memory(10) - memory(2) <= 8 * 0.25 * buffer
