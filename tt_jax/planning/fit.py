"""Whether a model fits a machine that isn't here, and how fast it could be there."""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AbstractMesh

from tt_jax.checkpoint import abstract, shapes
from tt_jax.models.configs import ModelConfig
from tt_jax.models.dit import KV
from tt_jax.nn.attention import choice
from tt_jax.planning import compiler, memory
from tt_jax.planning.machines import MACHINES, Machine
from tt_jax.planning.operations import Cost, cost
from tt_jax.sharding import AXES, mesh_shape, spec
from tt_jax.strategies.schedule import time_sinusoid
from tt_jax.strategies.self_forcing import SelfForcing

DTYPE = jnp.bfloat16


@dataclasses.dataclass(frozen=True)
class Need:
    """Bytes on each chip. The prompt is encoded before the rest is loaded."""

    weights: int  # of the transformer
    state: int  # with the K/V buffer
    made: int  # latents and records
    vae: int  # weights, cache and activations of one step; each chip decodes for itself
    temporaries: int
    text: int  # weights of the text encoder

    @property
    def generating(self) -> int:
        """All but the text encoder."""
        return self.weights + self.state + self.made + self.vae + self.temporaries

    @property
    def most(self) -> int:
        """What the chip must hold at once."""
        return max(self.generating, self.text)


@dataclasses.dataclass(frozen=True)
class Request:
    """One prompt's video on a machine. size: height and width in pixels."""

    config: ModelConfig
    machine: Machine
    strategy: SelfForcing
    size: tuple[int, int]
    frames: int

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the latents."""
        side = self.config.vae.spatial_stride
        return self.size[0] // side, self.size[1] // side

    @property
    def chunks(self) -> int:
        """Of the rollout."""
        latents = 1 + -(-(self.frames - 1) // self.config.vae.temporal_stride)
        return -(-latents // self.strategy.chunk)

    @property
    def mesh(self) -> tuple[int, int, int]:
        """Chips along data, sequence and tensor."""
        return mesh_shape(self.machine.chips, self.config.dit.heads)


def estimate(asked: Request) -> Need:
    """From shapes alone."""
    config, (_, sequence, tensor) = asked.config, asked.mesh
    mesh = AbstractMesh(asked.mesh, AXES)

    def weights(part: str) -> int:
        total = 0
        for path, leaf in shapes(part, getattr(config, part)).items():
            shards = math.prod(mesh.shape[axis] for axis in spec(path, leaf.shape, mesh) if axis)
            total += leaf.size * np.dtype(DTYPE).itemsize // shards
        return total

    needed = memory.estimate(
        config, DTYPE, asked.strategy, size=asked.size, frames=asked.frames, batch=1
    )
    height, width = asked.grid
    latents = asked.chunks * asked.strategy.chunk * height * width * config.dit.channels
    return Need(
        weights=weights("dit"),
        state=needed.context // 2 // tensor,
        made=latents * np.dtype(np.float32).itemsize,
        vae=weights("vae") + needed.vae,
        temporaries=needed.transformer // (sequence * tensor),
        text=weights("text"),
    )


def compiled(asked: Request, guess: Need) -> Need:
    """As the TPU's compiler says; weights, VAE and text encoder from shapes as in `guess`."""
    mesh = compiler.mesh_of(asked.machine, asked.config.dit.heads)
    try:
        memory = compiler.compile_rollout(
            asked.config.dit, asked.strategy, mesh, chunks=asked.chunks, grid=asked.grid,
            dtype=DTYPE,
        )  # fmt: skip
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        # "... required for HLO temporaries (16.55G) exceeds available HBM (15.75G)."
        wanted = re.search(r"\(([\d.]+)G\) exceeds", str(error))
        least = float(wanted[1]) * 2**30 if wanted else asked.machine.memory
        return dataclasses.replace(guess, temporaries=int(least))
    return dataclasses.replace(
        guess,
        state=memory.arguments - guess.weights,
        made=memory.outputs,
        temporaries=memory.temporaries,
    )


def remedies(asked: Request, scale: float) -> Iterator[str]:
    """Settings that would make it fit: the largest such window and size, and other machines.

    scale: what the compiler asked for, over the estimate from shapes; the text encoder's is exact.
    """

    def fits(**changes: Any) -> bool:
        changed = dataclasses.replace(asked, **changes)
        need = estimate(changed)
        return max(scale * need.generating, need.text) <= changed.machine.memory

    chunk = asked.strategy.chunk
    for window in range(asked.strategy.window - chunk, 2 * chunk - 1, -chunk):
        if fits(strategy=dataclasses.replace(asked.strategy, window=window)):
            yield f"--window {window}"
            break
    unit = asked.config.vae.spatial_stride * asked.config.dit.patch
    for share in (0.75, 0.5):
        height, width = (max(unit, int(side * share) // unit * unit) for side in asked.size)
        if fits(size=(height, width)):
            yield f"--size {width}x{height}"
            break
    others = [name for name, machine in MACHINES.items() if fits(machine=machine)]
    if others:
        yield f"--device {' or '.join(others)}"


def costs(asked: Request) -> tuple[Cost, Cost]:
    """Of one pass of the transformer over a chunk, and of one step of the VAE's decoder."""
    config, (height, width) = asked.config, asked.grid
    dit, size, slots = config.dit, asked.strategy.chunk, asked.strategy.slots
    tokens = (height // dit.patch) * (width // dit.patch)

    def kv(length: int) -> KV:
        shape = (dit.layers, 1, length, dit.heads, dit.head_dim)
        return jax.eval_shape(lambda: KV(jnp.zeros(shape, DTYPE), jnp.zeros(shape, DTYPE)))

    graph, params = nnx.split(abstract("dit", dit, DTYPE))
    times = time_sinusoid(np.zeros((1, size)))
    latents = jax.ShapeDtypeStruct((1, size, height, width, dit.channels), jnp.float32)

    def one(params, latents, text, context):
        return nnx.merge(graph, params)(latents, times, text, jnp.arange(size), context)[0]

    # Kernels can't be counted: XLA's attention, which has the same operations, stands for them.
    with jax.default_device(jax.devices("cpu")[0]):
        transformer = cost(one, params, latents, kv(dit.text_len), kv(slots * tokens))

    decoder, weights = nnx.split(abstract("vae", config.vae, DTYPE))
    latent = jax.ShapeDtypeStruct((1, 1, height, width, config.vae.latent_channels), jnp.float32)

    def step(weights, cache, latent):
        return nnx.merge(decoder, weights).decode_stream(cache, latent)

    with jax.default_device(jax.devices("cpu")[0]):
        cache = jax.eval_shape(step, weights, None, latent)[1]
        return transformer, cost(step, weights, cache, latent)


def table(asked: Request, need: Need, spent: float | None) -> Iterator[str]:
    """The lines of the answer. spent: seconds in the compiler, if it was asked."""
    machine, strategy = asked.machine, asked.strategy
    data, sequence, tensor = asked.mesh
    source = "estimated from shapes and published figures"
    if spent is not None:
        source = f"compiled by the TPU's compiler in {spent:.0f} s, VAE and text encoder by shapes"
    yield f"{machine.chips} x {machine.chip}, window {strategy.window}, bfloat16: {source}"
    if machine.chips > 1:
        yield f"mesh: {data} over prompts, {sequence} over tokens, {tensor} over heads"
    yield "GB on each chip"
    rows = (
        ("transformer's weights", need.weights),
        ("state with its K/V buffer", need.state),
        ("latents and records", need.made),
        ("VAE, one step", need.vae),
        ("temporaries", need.temporaries),
        ("together", need.generating),
        ("a stream keeps a state more", need.state),
        ("text encoder, before these", need.text),
        ("the chip has", machine.memory),
    )
    yield from (f"  {name:<27}{value / 1e9:8.2f}" for name, value in rows)

    transformer, decoder = costs(asked)
    passes = len(strategy.steps) + 1
    frames = strategy.chunk * asked.config.vae.temporal_stride
    one = max(
        transformer.operations / (machine.peak * machine.chips),
        transformer.bytes / (machine.bandwidth * tensor),
    )
    step = max(decoder.operations / machine.peak, decoder.bytes / machine.bandwidth)
    chunk, whole = passes * one, passes * one + strategy.chunk * step
    yield f"A chunk is {passes} passes and {frames} frames; counted from shapes"
    work = f"{transformer.operations / 1e12:8.2f} TFLOP, at least {transformer.bytes / 1e9:.2f} GB"
    yield f"  {'a pass':<27}{work}"
    yield f"  {'decoding a latent frame':<27}{decoder.operations / 1e12:8.2f} TFLOP"
    yield f"  {'frames a second, at most':<27}{frames / chunk:8.2f} (with VAE {frames / whole:.2f})"
    yield f"  {'the video, at least':<27}{asked.chunks * whole:8.2f} s"
    if spent is not None:
        yield f"Attention: {' - '.join(kernel(asked))}."


def kernel(asked: Request) -> tuple[str, str]:
    """The implementation of attention on a TPU, and why."""
    dit, (height, width) = asked.config.dit, asked.grid
    tokens = (height // dit.patch) * (width // dit.patch)
    q, k = (
        jax.ShapeDtypeStruct((1, frames * tokens, dit.heads, dit.head_dim), DTYPE)
        for frames in (asked.strategy.chunk, asked.strategy.window)
    )
    with jax.set_mesh(compiler.mesh_of(asked.machine, dit.heads)):
        return choice(q, k)
