"""Whether a model fits a machine: memory of a run, from shapes alone."""

import dataclasses
import math
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import DTypeLike

from tt_jax._rollout import Strategy
from tt_jax.checkpoint import PARTS, abstract, vae_part
from tt_jax.models.configs import ModelConfig
from tt_jax.models.tiny_vae import TinyVAEConfig
from tt_jax.nn.dot_product import LOGIT_BYTES

ENCODED = 64  # frames' worth of RGB that x264 holds, measured: `python -m benchmarks memory`


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes that a streamed run needs, by what for; an estimate from shapes.

    The prompt is encoded first, and the text encoder gone before the rest is loaded. A chunk is
    made and then decoded, never both at once.

    Attributes:
        text: weights of the text encoder.
        transformer: its weights.
        vae: weights of the VAE.
        state: one state of the rollout, with its K/V buffer.
        kept: the second state: a stream gives one away with each chunk, to continue from, and makes
            the next one beside it.
        made: latents and records of all chunks, as parts and then joined; of a streamed video, of
            the two chunks that are at work.
        denoising: activations of one pass of the transformer.
        decoding: activations and cache of one step of the VAE.
        host: frames of the finished video in main memory, chunk by chunk and then joined; of a
            streamed video, of two chunks, and the pictures that an encoder looks ahead at.
    """

    text: int
    transformer: int
    vae: int
    state: int
    kept: int
    made: int
    denoising: int
    decoding: int
    host: int

    @property
    def generating(self) -> int:
        """What the device must hold at once while chunks are made."""
        held = self.transformer + self.vae + self.state + self.kept + self.made
        return held + max(self.denoising, self.decoding)

    @property
    def device(self) -> int:
        """What the device must hold at once."""
        return max(self.text, self.generating)


def nbytes(tree: Any) -> int:
    """Bytes of all arrays of a pytree.

    Args:
        tree: of arrays, which may be abstract.

    Returns:
        Their sum.
    """
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def estimate(
    config: ModelConfig,
    dtype: DTypeLike,
    strategy: Strategy,
    *,
    size: tuple[int, int],
    frames: int,
    batch: int,
    streamed: bool = False,
) -> Memory:
    """Memory of a run, from shapes alone.

    Args:
        config: sizes of the model.
        dtype: of the weights and the K/V buffer.
        strategy: how chunks are made.
        size: height and width of the video in pixels.
        frames: of the video.
        batch: videos made at once.
        streamed: frames go to a file as they are made (`Pipeline.generate(out=...)`, `tt-jax`).

    Returns:
        Bytes of the whole batch, on one device.
    """
    wide, kind = 4, np.dtype(dtype).itemsize
    dit, vae = config.dit, config.vae
    height, width = size
    grid = (height // vae.spatial_stride, width // vae.spatial_stride)
    latent = grid[0] * grid[1]
    tokens = latent // dit.patch**2
    own, past = strategy.pass_frames * tokens, strategy.slots * tokens
    weights = {
        part: nbytes(nnx.state(abstract(held, getattr(config, part), dtype)))
        for part, held in {**{name: name for name in PARTS}, "vae": vae_part(config)}.items()
    }
    transformer = abstract("dit", dit, dtype)
    state = nbytes(
        jax.eval_shape(lambda: strategy.start(transformer, batch, grid, jax.random.key(0)))
    )
    # One layer: its keys and values joined, logits and weights, a few of its own width, the
    # feed-forward's hidden one; and the keys and values of every layer, to be appended.
    logits = 2 * min(LOGIT_BYTES, wide * batch * dit.heads * own * (past + own))
    per_token = 8 * dit.dim * wide + 2 * dit.ffn_dim * wide + 2 * dit.layers * dit.dim * kind
    denoising = logits + batch * (2 * (past + own) * dit.dim * kind + own * per_token)
    if strategy.guidance is not None:  # its backward pass, and every layer's input
        denoising = 2 * denoising + batch * own * dit.layers * dit.dim * kind
    # A latent frame's last level, at full resolution: about eight of its arrays at once, the cache
    # included; of the tiny VAE, whose patches are pixels, about four.
    if isinstance(vae, TinyVAEConfig):
        decoding = 4 * height * width * vae.widths[-1] * kind // vae.patch**2
    else:
        decoding = 8 * height * width * vae.dim * vae.dim_mult[0] * kind
    decoding *= vae.temporal_stride
    chunks = math.ceil(frames / vae.temporal_stride / strategy.chunk)
    held = 2 * frames
    if streamed:
        held = 4 * min(frames, vae.temporal_stride * strategy.chunk) + ENCODED
        chunks = 1
    made = chunks * (strategy.chunk * latent * dit.channels + 2 * tokens) * wide
    return Memory(
        text=weights["text"],
        transformer=weights["dit"],
        vae=weights["vae"],
        state=state,
        kept=state,
        made=2 * batch * made,
        denoising=denoising,
        decoding=batch * decoding,
        host=batch * held * height * width * 3,
    )


def parted(memory: Memory, mesh: tuple[int, int, int]) -> Memory:
    """What one of several devices holds.

    Args:
        memory: of `estimate`.
        mesh: devices along data, sequence and tensor.

    Returns:
        About its share of it; each decodes every video. Devices that share the host's memory hold
        all shares there.
    """
    data, sequence, tensor = mesh
    if free_on_device() is None:
        return dataclasses.replace(memory, vae=math.prod(mesh) * memory.vae)
    return dataclasses.replace(
        memory,
        text=memory.text // tensor,
        transformer=memory.transformer // tensor,
        state=memory.state // (data * tensor),
        kept=memory.kept // (data * tensor),
        denoising=memory.denoising // (data * sequence * tensor),
    )


def free_on_host() -> int:
    """Bytes of main memory that a program may still take."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        table = dict(line.split(":") for line in lines)
        return int(table["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def free_on_device() -> int | None:
    """Bytes that the default device can still take; None if it shares the host's or won't say."""
    stats = jax.local_devices()[0].memory_stats()
    return stats["bytes_limit"] - stats["bytes_in_use"] if stats else None


def check(memory: Memory) -> None:
    """Compares what a run needs with what is free on this machine.

    Args:
        memory: of `estimate`.

    Raises:
        ValueError: there is less; in one sentence.
    """
    device, host = free_on_device(), free_on_host()
    needs = [("main memory", memory.host + memory.device, host)]
    if device is not None:
        needs = [("device memory", memory.device, device), ("main memory", memory.host, host)]
    for name, needed, free in needs:
        if needed > free:
            raise ValueError(
                f"this needs about {needed / 1e9:.1f} GB of {name}, and {free / 1e9:.1f} GB are "
                "free: ask for fewer seconds, a smaller size, batch or window."
            )
