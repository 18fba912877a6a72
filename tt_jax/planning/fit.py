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

from tt_jax._rollout import Strategy
from tt_jax.checkpoint import abstract, flatten, vae_part
from tt_jax.models.configs import ModelConfig
from tt_jax.models.dit import KV
from tt_jax.nn.attention import choice
from tt_jax.planning import compiler, memory
from tt_jax.planning.machines import MACHINES, Machine
from tt_jax.planning.memory import Memory
from tt_jax.planning.operations import Cost, cost
from tt_jax.sharding import AXES, mesh_shape, spec
from tt_jax.strategies.schedule import time_sinusoid
from tt_jax.strategies.self_forcing import SelfForcing
from tt_jax.trim.tokentrim import TokenTrim

DTYPE = jnp.bfloat16


@dataclasses.dataclass(frozen=True)
class Request:
    """Some videos on a machine.

    Attributes:
        config: sizes of the model.
        machine: where they are made.
        strategy: how chunks are made.
        trim: TokenTrim's settings.
        size: height and width in pixels.
        frames: of a video.
        batch: videos made at once.
    """

    config: ModelConfig
    machine: Machine
    strategy: Strategy
    trim: TokenTrim
    size: tuple[int, int]
    frames: int
    batch: int = 1

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the latents."""
        side = self.config.vae.spatial_stride
        return self.size[0] // side, self.size[1] // side

    @property
    def tokens(self) -> int:
        """Of a latent frame."""
        patch = self.config.dit.patch
        return (self.grid[0] // patch) * (self.grid[1] // patch)

    @property
    def chunks(self) -> int:
        """Of the rollout."""
        latents = 1 + -(-(self.frames - 1) // self.config.vae.temporal_stride)
        return -(-latents // self.strategy.chunk)

    @property
    def mesh(self) -> tuple[int, int, int]:
        """Chips along data, sequence and tensor."""
        return mesh_shape(self.machine.chips, self.config.dit.heads, self.batch)


def estimate(asked: Request) -> Memory:
    """What one chip must hold, from shapes alone.

    Args:
        asked: the videos, and the machine.

    Returns:
        Bytes on each chip, but `host`, which is the whole machine's. Each chip decodes every video.
    """
    config, (data, sequence, tensor) = asked.config, asked.mesh
    mesh = AbstractMesh(asked.mesh, AXES)

    def weights(part: str) -> int:
        total = 0
        held = vae_part(config) if part == "vae" else part
        arrays = nnx.to_pure_dict(nnx.state(abstract(held, getattr(config, part), DTYPE)))
        for path, leaf in flatten(arrays):
            shards = math.prod(mesh.shape[axis] for axis in spec(path, leaf.shape, mesh) if axis)
            total += leaf.size * leaf.dtype.itemsize // shards
        return total

    whole = memory.estimate(
        config, DTYPE, asked.strategy, size=asked.size, frames=asked.frames, batch=asked.batch,
        streamed=True,
    )  # fmt: skip
    state = whole.state // (data * tensor)
    return dataclasses.replace(
        whole,
        text=weights("text"),
        transformer=weights("dit"),
        vae=weights("vae"),
        state=state,
        kept=state,
        made=whole.made // data,
        denoising=whole.denoising // (data * sequence * tensor),
    )


def compiled(asked: Request, guess: Memory) -> Memory:
    """What one chip must hold, as the TPU's compiler says of the rollout.

    Args:
        asked: the videos, and a TPU.
        guess: from shapes, for what isn't part of the rollout: weights, VAE and text encoder.

    Returns:
        Bytes on each chip. Where the compiler refuses, `denoising` is all that it asked for.
    """
    mesh = compiler.mesh_of(asked.machine, asked.config.dit.heads, asked.batch)
    try:
        program = compiler.compile_rollout(
            asked.config.dit, asked.strategy, mesh, chunks=1,  # a stream's program
            grid=asked.grid, batch=asked.batch, trim=asked.trim, dtype=DTYPE,
        )  # fmt: skip
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        # "... required for HLO temporaries (16.55G) exceeds available HBM (15.75G)."
        wanted = re.search(r"\(([\d.]+)G\) exceeds", str(error))
        least = float(wanted[1]) * 2**30 if wanted else asked.machine.memory
        return dataclasses.replace(guess, denoising=int(least))
    state = program.arguments - guess.transformer
    return dataclasses.replace(
        guess, state=state, kept=state, made=2 * program.outputs, denoising=program.temporaries
    )


def remedies(asked: Request, scale: float) -> Iterator[str]:
    """Settings that would make it fit.

    Args:
        asked: what doesn't fit.
        scale: what the compiler asked for, over the estimate from shapes; the text encoder's is
            exact.

    Yields:
        The largest such window, batch and size, and other machines, as options of `tt-jax plan`.
    """

    def fits(**changes: Any) -> bool:
        changed = dataclasses.replace(asked, **changes)
        need = estimate(changed)
        return max(scale * need.generating, need.text) <= changed.machine.memory

    strategy, chunk = asked.strategy, asked.strategy.chunk
    if isinstance(strategy, SelfForcing) and strategy.cache is None:
        for window in range(strategy.window - chunk, strategy.sink + 2 * chunk - 1, -chunk):
            if fits(strategy=dataclasses.replace(strategy, window=window)):
                yield f"--window {window}"
                break
    for batch in range(asked.batch - 1, 0, -1):
        if fits(batch=batch):
            yield f"--batch {batch}"
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


def passes(strategy: Strategy) -> list[tuple[int, int]]:
    """The transformer's passes for one chunk without intervention.

    A guided pass counts four: it is made, made again by recomputation, and has a gradient, which
    costs two. FlowMo's guidance of the first chunk alone isn't counted.

    Args:
        strategy: how chunks are made.

    Returns:
        For each kind of pass, how many there are and the latent frames of each.
    """
    count = len(strategy.steps) * strategy.chunk // strategy.pass_frames
    guidance = strategy.guidance
    if guidance is not None and guidance.chunks == "all":
        count += 3 * (int(guidance.steps(count).sum()) if strategy.lag == 0 else count)
    return [(count, strategy.pass_frames), (1, strategy.chunk)]


def pass_cost(asked: Request, frames: int) -> Cost:
    """What one pass of the transformer costs.

    Args:
        asked: the videos; all of them are in one pass.
        frames: latent frames of the pass, beside the whole K/V buffer.

    Returns:
        Operations and bytes.
    """
    (height, width), dit = asked.grid, asked.config.dit

    def kv(length: int) -> KV:
        shape = (dit.layers, asked.batch, length, dit.heads, dit.head_dim)
        return jax.eval_shape(lambda: KV(jnp.zeros(shape, DTYPE), jnp.zeros(shape, DTYPE)))

    graph, params = nnx.split(abstract("dit", dit, DTYPE))
    times = jnp.asarray(time_sinusoid(np.zeros((1, frames)), dit.freq_dim))
    shape = (asked.batch, frames, height, width, dit.channels)
    latents = jax.ShapeDtypeStruct(shape, jnp.float32)

    def one(params, latents, text, context):
        return nnx.merge(graph, params)(latents, times, text, jnp.arange(frames), context)[0]

    # Kernels can't be counted: XLA's attention, which has the same operations, stands for them.
    with jax.default_device(jax.devices("cpu")[0]):
        context = kv(asked.strategy.slots * asked.tokens)
        return cost(one, params, latents, kv(dit.text_len), context)


def decoding_cost(asked: Request) -> Cost:
    """What a latent frame costs the VAE's decoder.

    Args:
        asked: the videos; it is one of each.

    Returns:
        Operations and bytes.
    """
    vae = asked.config.vae
    decoder, weights = nnx.split(abstract(vae_part(asked.config), vae, DTYPE))
    shape = (asked.batch, 1, *asked.grid, vae.latent_channels)
    latent = jax.ShapeDtypeStruct(shape, jnp.float32)

    def step(weights, cache, latent):
        return nnx.merge(decoder, weights).decode_stream(cache, latent)

    with jax.default_device(jax.devices("cpu")[0]):
        cache = jax.eval_shape(step, weights, None, latent)[1]
        return cost(step, weights, cache, latent)


def table(asked: Request, need: Memory, spent: float | None) -> Iterator[str]:
    """The lines of the answer.

    Args:
        asked: the videos, and the machine.
        need: bytes on each chip.
        spent: seconds in the compiler, if it was asked.

    Yields:
        Lines of text.
    """
    machine = asked.machine
    data, sequence, tensor = asked.mesh
    source = "estimated from shapes"
    if spent is not None:
        source = (
            f"compiled by the TPU's compiler ({compiler.version()}) in {spent:.0f} s, VAE and text "
            "encoder by shapes"
        )
    bits = "bfloat16"
    if asked.config.dit.quantize is not None:
        bits = f"{asked.config.dit.quantize} weights, else bfloat16"
    yield f"{machine.chips} x {machine.chip}, {bits}: {source}"
    if machine.chips > 1:
        yield f"mesh: {data} over prompts, {sequence} over tokens, {tensor} over heads"
    yield "GB on each chip"
    rows = (
        ("transformer's weights", need.transformer),
        ("VAE's weights", need.vae),
        ("state with its K/V buffer", need.state),
        ("a stream keeps another", need.kept),
        ("latents and records", need.made),
        ("a pass, or a VAE's step", max(need.denoising, need.decoding)),
        ("together", need.generating),
        ("text encoder, before these", need.text),
        ("the chip has", machine.memory),
        ("main memory, for frames", need.host),
    )
    yield from (f"  {name:<27}{value / 1e9:8.2f}" for name, value in rows)
    yield from _speed(asked)
    if spent is not None:
        yield f"Attention: {' - '.join(kernel(asked))}."


def _speed(asked: Request) -> Iterator[str]:
    """The lines about operations, and what the machine's peaks allow."""
    machine, strategy = asked.machine, asked.strategy
    data, _, tensor = asked.mesh
    kinds = [(count, pass_cost(asked, frames)) for count, frames in passes(strategy)]
    decoder = decoding_cost(asked)
    frames = strategy.chunk * asked.config.vae.temporal_stride
    made = sum(count for count, _ in kinds)
    work = sum(count * one.operations for count, one in kinds)
    yield f"A chunk is {made} passes and {frames} frames of a video; counted from shapes"
    yield f"  {'its passes':<27}{work / 1e12:8.2f} TFLOP"
    yield f"  {'decoding a latent frame':<27}{decoder.operations / 1e12:8.2f} TFLOP"
    if machine.peak is None or machine.bandwidth is None:
        return
    chunk = sum(
        count
        * max(
            one.operations / (machine.peak * machine.chips),
            one.bytes / (machine.bandwidth * data * tensor),
        )
        for count, one in kinds
    )
    step = max(decoder.operations / machine.peak, decoder.bytes / machine.bandwidth)
    whole = chunk + strategy.chunk * step
    rates = [asked.batch * frames / seconds for seconds in (chunk, whole)]
    yield f"  {'frames a second, at most':<27}{rates[0]:8.2f} (with VAE {rates[1]:.2f})"
    yield f"  {'all of it, at least':<27}{asked.chunks * whole:8.2f} s"


def kernel(asked: Request) -> tuple[str, str]:
    """The implementation of attention on a TPU.

    Args:
        asked: the videos, and a TPU.

    Returns:
        Its name, and why it is taken.
    """
    dit, strategy = asked.config.dit, asked.strategy
    q, k = (
        jax.ShapeDtypeStruct((asked.batch, frames * asked.tokens, dit.heads, dit.head_dim), DTYPE)
        for frames in (strategy.pass_frames, strategy.slots + strategy.pass_frames)
    )
    with jax.set_mesh(compiler.mesh_of(asked.machine, dit.heads, asked.batch)):
        return choice(q, k)
