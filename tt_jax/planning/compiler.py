"""The TPU's compiler without a TPU: programs compiled ahead of time for a named machine."""

import os
from importlib import metadata
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import DTypeLike

from tt_jax._rollout import Strategy, lower
from tt_jax.checkpoint import abstract
from tt_jax.models.dit import DiTConfig
from tt_jax.planning.machines import Machine
from tt_jax.sharding import make_mesh
from tt_jax.trim.tokentrim import TokenTrim

# A host for the library to believe in; the topology is what counts.
NOWHERE = {
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}


class Compiled(NamedTuple):
    """What the compiler says of a rollout: bytes on each chip.

    Attributes:
        arguments: weights, text, and the state with its K/V buffer.
        outputs: latents and records; the next state takes the memory of the one before.
        temporaries: all that lives within the program.
    """

    arguments: int
    outputs: int
    temporaries: int


# The rule: see `sharding.make_mesh`.
def devices(machine: Machine) -> list[jax.Device]:  # pyright: ignore[reportInvalidTypeForm]
    """The machine's chips, for the compiler alone.

    Args:
        machine: a TPU.

    Returns:
        As many abstract devices as it has chips.

    Raises:
        ValueError: the compiler isn't installed, or the machine is no TPU.
    """
    from jax.experimental import topologies

    # Else the library looks for a TPU's host, over the network, and complains. (JAX sets this one
    # itself where there is no TPU.)
    if os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1") == "1":
        for name, value in NOWHERE.items():
            os.environ.setdefault(name, value)
    # No chip is taken, so several processes may compile at once.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    if machine.topology is None:
        raise ValueError(f"the TPU's compiler can't compile for the {machine.chip}.")
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=machine.topology)
    except (RuntimeError, ImportError) as error:
        raise ValueError(
            f"the TPU's compiler isn't here (pip install 'tt-jax[tpu]' brings it; it needs no "
            f"TPU): {str(error).splitlines()[0]}"
        ) from None
    return list(found.devices)[: machine.chips]


def compile_rollout(
    config: DiTConfig,
    strategy: Strategy,
    mesh: Mesh,
    *,
    chunks: int,
    grid: tuple[int, int],
    batch: int = 1,
    trim: TokenTrim | None = None,
    dtype: DTypeLike = jnp.bfloat16,
) -> Compiled:
    """Compiles a rollout for the mesh's devices.

    Args:
        config: of the transformer.
        strategy: how chunks are made.
        mesh: of `mesh_of`.
        chunks: number of chunks.
        grid: height and width of the latents.
        batch: videos made at once.
        trim: `TokenTrim()` if not given.
        dtype: of weights and K/V buffer.

    Returns:
        Bytes on each chip.

    Raises:
        jax.errors.JaxRuntimeError: the compiler refuses, for want of memory for one.
    """
    text = jax.ShapeDtypeStruct((batch, config.text_len, config.text_dim), dtype)
    lowered = lower(
        abstract("dit", config, dtype), text, chunks=chunks, grid=grid, strategy=strategy,
        trim=trim, mesh=mesh,
    )  # fmt: skip
    with jax.set_mesh(mesh):
        memory = lowered.compile().memory_analysis()
    assert memory is not None  # a TPU's compiler knows
    return Compiled(
        memory.argument_size_in_bytes,
        memory.output_size_in_bytes - memory.alias_size_in_bytes,
        memory.temp_size_in_bytes,
    )


def mesh_of(machine: Machine, heads: int, batch: int = 1) -> Mesh:
    """All chips of the machine as `make_mesh` arranges them.

    Args:
        machine: a TPU.
        heads: of the transformer.
        batch: videos made at once.

    Returns:
        The mesh.

    Raises:
        ValueError: like `devices`.
    """
    return make_mesh(heads, batch, devices=devices(machine))


def version() -> str:
    """The compiler's version."""
    return f"libtpu {metadata.version('libtpu')}"
