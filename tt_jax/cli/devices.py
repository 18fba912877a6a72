"""`--mesh`: several devices, of one process or of several, of which the first writes."""

import argparse
import contextlib
import importlib.util
import math
import os
from collections.abc import Iterator, Sequence

import jax
from jax.sharding import AxisType, Mesh

from tt_jax._rollout import Strategy
from tt_jax.models.configs import ModelConfig
from tt_jax.sharding import AXES, mesh_shape


def join(args: argparse.Namespace) -> None:
    """Makes this process one of several, if it is: before anything else of JAX.

    Args:
        args: with `--coordinator`, or of a TPU pod, whose processes find each other.

    Raises:
        ValueError: what was given doesn't fit together, or nobody answers.
    """
    given = [args.coordinator, args.processes, args.process]
    if all(value is None for value in given):
        pod = importlib.util.find_spec("libtpu") and os.environ.get("JAX_PLATFORMS") != "cpu"
        if args.mesh and pod and not jax.distributed.is_initialized():
            with contextlib.suppress(ValueError, RuntimeError):  # no pod
                jax.distributed.initialize()
        return
    if None in given or not args.mesh:
        raise ValueError("several processes need --coordinator, --processes, --process and --mesh.")
    if not args.process < args.processes:
        raise ValueError(
            f"of {args.processes} processes the last is --process {args.processes - 1}."
        )
    try:
        jax.distributed.initialize(args.coordinator, args.processes, args.process)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"{args.coordinator} can't be joined: {str(error).splitlines()[0]}"
        ) from None


def mesh_of(
    asked: int | dict[str, int],
    config: ModelConfig,
    strategies: Sequence[Strategy],
    size: tuple[int, int],
    batch: int,
) -> Mesh:
    """The mesh that was asked for.

    Args:
        asked: how many devices, shared out by `sharding.mesh_shape`, or how many for each axis.
        config: sizes of the model.
        strategies: of all runs.
        size: height and width of the video.
        batch: videos made at once.

    Returns:
        The mesh; of several processes' devices all of them.

    Raises:
        ValueError: there are fewer devices, or an axis doesn't divide what it would shard.
    """
    heads, there = config.dit.heads, jax.devices()
    if isinstance(asked, int):
        shape = mesh_shape(asked, heads, batch)
    else:
        shape = tuple(asked.get(axis, 1) for axis in AXES)
    data, sequence, tensor = shape
    count = math.prod(shape)
    if count > len(there) or (jax.process_count() > 1 and count != len(there)):
        raise ValueError(f"the mesh has {count} devices, and there are {len(there)}.")
    unit = config.vae.spatial_stride * config.dit.patch
    tokens = (size[0] // unit) * (size[1] // unit)
    shards = [
        ("tensor", tensor, heads, f"the transformer's {heads} heads"),
        ("tensor", tensor, config.dit.ffn_dim, f"its hidden width of {config.dit.ffn_dim}"),
        ("data", data, batch, f"{batch} videos made at once (--batch)"),
    ]
    for strategy in strategies:
        own = strategy.pass_frames * tokens
        shards.append(("sequence", sequence, own, f"the {own} tokens of a pass"))
    for axis, parts, whole, what in shards:
        if whole % parts:
            raise ValueError(f"{axis}={parts} doesn't divide {what}: give another --mesh.")
    kinds = (AxisType.Auto,) * len(AXES)
    return jax.make_mesh(shape, AXES, axis_types=kinds, devices=there[:count])


@contextlib.contextmanager
def on(mesh: Mesh | None) -> Iterator[None]:
    """Where everything runs on the mesh, and says nothing in other processes than the first.

    Args:
        mesh: of `mesh_of`; None for JAX's default device.
    """
    with contextlib.ExitStack() as stack:
        if mesh is not None:
            stack.enter_context(jax.set_mesh(mesh))
        if not first():
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
            stack.enter_context(contextlib.redirect_stderr(nowhere))
        yield


def first() -> bool:
    """Whether this is the process that writes."""
    return jax.process_index() == 0
