"""A rollout on a mesh of the caller's, and inside the caller's `shard_map` and `pmap`: everywhere
the latents of one device, in which every sample has its own noise."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from quick import FLAGS

import tt_jax

HERE = Path(__file__).parent
CASES = (
    "auto",
    "explicit",
    "explicit, prompts sharded",
    "explicit, other names",
    "explicit and auto",
    "shard_map over data",
    "shard_map over batch",
    "shard_map over two",
    "shard_map without checks",
    "shard_map, rolling",
    "shard_map over one of two",
    "pmap",
)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    path = tmp_path_factory.mktemp("meshes") / "latents.npz"
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{FLAGS} --xla_force_host_platform_device_count=8",
        "PYTHONPATH": os.pathsep.join([str(Path(tt_jax.__file__).parents[1]), str(HERE)]),
    }
    command = [sys.executable, str(HERE / "other_mesh.py"), str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(np.load(path))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_latents_are_those_of_one_device(results, case):
    want = results["rolling" if "rolling" in case else "self"]
    np.testing.assert_allclose(results[case], want, atol=1e-4 * np.abs(want).max())
    first, _, third, _ = results[case]
    assert np.abs(first - third).max() > 0.1, "two samples have the same noise"
