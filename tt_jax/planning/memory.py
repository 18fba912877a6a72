"""Whether a model fits a machine: memory of a run, from shapes alone."""

import dataclasses
import math
import os
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jaxtyping import DTypeLike

from tt_jax._rollout import Strategy
from tt_jax.checkpoint import PARTS, abstract
from tt_jax.models.configs import ModelConfig
from tt_jax.nn.dot_product import LOGIT_BYTES


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes that a streamed run needs, by what for; an estimate. The prompt is encoded first."""

    text: int  # weights of the text encoder
    weights: int  # of transformer and VAE, which follow it
    context: int  # the K/V buffer: the one that a chunk reads, and the next
    transformer: int  # activations of one pass
    vae: int  # activations and cache of one decoding step
    host: int  # frames and latents of the finished video, on the host's side

    @property
    def device(self) -> int:
        """What the device must hold at once."""
        return max(self.text, self.weights + self.context + max(self.transformer, self.vae))


def estimate(
    config: ModelConfig,
    dtype: DTypeLike,
    strategy: Strategy,
    *,
    size: tuple[int, int],
    frames: int,
    batch: int,
) -> Memory:
    """Memory of a run of `frames` frames of `size` (height, width) pixels each."""
    wide, kind = 4, np.dtype(dtype).itemsize
    dit, vae = config.dit, config.vae
    height, width = size
    latent = (height // vae.spatial_stride) * (width // vae.spatial_stride)
    tokens = latent // dit.patch**2
    own, past = strategy.pass_frames * tokens, strategy.slots * tokens
    weights = {
        part: kind
        * sum(
            math.prod(leaf.shape)
            for leaf in jax.tree.leaves(nnx.state(abstract(part, getattr(config, part), dtype)))
        )
        for part in PARTS
    }
    keys_values = 2 * dit.layers * past * dit.dim * kind + past * dit.patch**2 * dit.channels * wide
    # One layer: its keys and values joined, logits and weights, a few of its own width, the
    # feed-forward's hidden one; and the keys and values of every layer, to be appended.
    logits = 2 * min(LOGIT_BYTES, wide * batch * dit.heads * own * (past + own))
    per_token = 8 * dit.dim * wide + 2 * dit.ffn_dim * wide + 2 * dit.layers * dit.dim * kind
    transformer = logits + batch * (2 * (past + own) * dit.dim * kind + own * per_token)
    if strategy.guidance is not None:  # its backward pass, and every layer's input
        transformer = 2 * transformer + batch * own * dit.layers * dit.dim * kind
    # The last level, at full resolution: about eight of its arrays at once, the cache included.
    vae_step = 8 * vae.temporal_stride * height * width * vae.dim * vae.dim_mult[0] * kind
    video = frames * height * width * 3
    latents = math.ceil(frames / vae.temporal_stride) * latent * dit.channels * wide
    return Memory(
        text=weights["text"],
        weights=weights["dit"] + weights["vae"],
        context=2 * batch * keys_values,
        transformer=transformer,
        vae=batch * vae_step,
        host=2 * batch * (video + latents),  # chunk by chunk, then joined
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
    stats = jax.devices()[0].memory_stats()
    return stats["bytes_limit"] - stats["bytes_in_use"] if stats else None


def check(memory: Memory) -> None:
    """Raises ValueError, in one sentence, when the run needs more memory than there is."""
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
