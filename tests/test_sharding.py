"""One rollout on several (virtual) devices, and over two processes; where arrays are put."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec
from quick import FLAGS

import tt_jax
from tt_jax.checkpoint import shapes
from tt_jax.models.dit import DiTConfig
from tt_jax.models.text import TextConfig
from tt_jax.sharding import AXES, constrain, make_mesh, mesh_shape, spec

HERE = Path(__file__).parent
# data x sequence x tensor
MESHES = ("1x1x1", "1x1x2", "2x1x2", "1x1x1-int8", "1x1x2-int8", "2x2x2")


def start(devices, *args):
    """The script with that many virtual CPU devices."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{FLAGS} --xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": os.pathsep.join([str(Path(tt_jax.__file__).parents[1]), str(HERE)]),
    }
    command = [sys.executable, str(HERE / "sharded.py"), *map(str, args)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def finish(process):
    _, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors[-3000:]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    path = tmp_path_factory.mktemp("sharded") / "one.npz"
    finish(start(8, path, *MESHES))
    return dict(np.load(path))


def distance(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [mesh for mesh in MESHES if "1x1x1" not in mesh])
def test_devices_agree(results, mesh):
    one = "1x1x1-int8" if mesh.endswith("int8") else "1x1x1"
    assert distance(results[mesh], results[one]) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("saved", [MESHES[0], MESHES[-1]])
def test_a_saved_state_goes_on_on_other_devices(results, saved):
    one, eight = (results[f"{saved}, then {mesh}"] for mesh in (MESHES[0], MESHES[-1]))
    assert one.shape[1] == 3 and distance(eight, one) <= 1e-6


@pytest.mark.slow
def test_two_processes_give_the_latents_of_one(results, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    path = tmp_path / "two.npz"
    for process in [start(1, path, "1x1x2", i, port) for i in range(2)]:
        finish(process)
    assert distance(np.load(path)["1x1x2"], results["1x1x1"]) <= 1e-5


def test_devices_go_to_heads_then_prompts_then_tokens():
    assert mesh_shape(8, heads=12) == (1, 2, 4)
    assert mesh_shape(8, heads=40) == (1, 1, 8)
    assert mesh_shape(8, heads=2, batch=2) == (2, 2, 2)
    assert dict(make_mesh(12, devices=jax.devices()[:1]).shape) == dict.fromkeys(AXES, 1)


@pytest.mark.parametrize(
    ("part", "config"), [("dit", DiTConfig.wan_1_3b()), ("text", TextConfig.umt5_xxl())]
)
def test_nearly_all_weights_are_parted(part, config):
    mesh = AbstractMesh((1, 2, 4), AXES)
    every = {path: leaf.size for path, leaf in shapes(part, config).items()}
    whole = {path for path in every if not any(spec(path, shapes(part, config)[path].shape, mesh))}
    assert sum(every[path] for path in whole) < 0.05 * sum(every.values())


def test_what_does_not_divide_is_whole():
    mesh = AbstractMesh((1, 2, 4), AXES)
    assert spec("blocks/ffn/fc1/kernel", (2, 16, 64), mesh) == PartitionSpec(None, None, "tensor")
    assert spec("blocks/ffn/fc1/kernel", (2, 16, 66), mesh) == PartitionSpec(None, None, None)
    only_data = AbstractMesh((2,), ("data",))
    shape = (2, 4, 6 * 16, 4, 8)
    assert spec("context/k", shape, only_data) == PartitionSpec(None, "data", *[None] * 3)
    assert spec("time_projection/kernel", (16, 96), mesh) == PartitionSpec()


def test_without_a_mesh_nothing_is_constrained():
    tree = {"context": {"k": jax.ShapeDtypeStruct((1,), np.float32)}}
    assert constrain(tree) is tree
