"""Reward Forcing's sink: what is evicted goes into it, by an exponential moving average."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tt_jax.cache import buffer
from tt_jax.cache.buffer import Context
from tt_jax.cache.policy import Policy, check_window
from tt_jax.models.dit import KV


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class EmaSink(Policy):
    """Sinks that learn from what is evicted (Reward Forcing, arXiv 2512.04678).

    A frame that leaves the window is averaged into a sink, sink <- alpha sink + (1 - alpha) frame,
    token by token, keys before rotation and values; each of its frames into the next sink in turn.
    Positions are relative, so that videos have no end.

    Caches `frames - chunk` frames, and the sinks once more in float32: in 16 bits, as released,
    most of an average's steps are rounded away. Computes one average of `chunk` frames a chunk.

    TokenTrim never drops sinks (unless asked to), and a sink's token takes nothing from a token
    that was dropped. Where other than whole chunks were evicted the original overwrites the sink;
    here every frame is averaged in.

    frames: frames that attention spans, the chunk included. sink: how many of them are sinks.
    """

    frames: int = 9
    sink: int = 3
    alpha: float = 0.999

    @property
    def sinks(self) -> int:
        return self.sink

    def check(self, chunk: int) -> None:
        check_window(self.frames, self.sink, chunk)
        if self.sink < 1 or not 0 <= self.alpha <= 1:
            raise ValueError(
                "an averaged sink needs at least one sink frame and alpha between 0 and 1, "
                f"not {self.sink} and {self.alpha}."
            )

    def slots(self, chunk: int) -> int:
        return self.frames - chunk

    def start(self, context: Context, chunk: int) -> Context:
        size = self.sink * context.valid.shape[2]
        zeros = jnp.zeros((*context.k.shape[:2], size, *context.k.shape[3:]), jnp.float32)
        return dataclasses.replace(context, memory=KV(zeros, zeros))

    def accept(
        self,
        context: Context,
        own: Any,
        tokens: Float[Array, "b f p d"],
        frames: Int[Array, " f"],
    ) -> Context:
        slots, per_frame = context.valid.shape[1:]
        means = list(context.memory)
        put = jax.lax.dynamic_update_slice_in_dim
        for i in range(len(frames)):
            slot = buffer.ring(context, frames[i : i + 1])[0]
            # The sink that this frame begins, or that takes the one it replaces.
            into = jnp.where(frames[i] < self.sink, frames[i], frames[i] - slots) % self.sink
            begins, full = frames[i] < self.sink, frames[i] >= slots
            takes = (full & context.valid[:, slot])[None, :, :, None, None]
            for j, (past, new) in enumerate(zip((context.k, context.v), own, strict=True)):
                mean = buffer.frames_at(means[j], into, per_frame)
                gone = buffer.frames_at(past, slot, per_frame).astype(jnp.float32)
                first = new[:, :, i * per_frame : (i + 1) * per_frame].astype(jnp.float32)
                kept = jnp.where(takes, self.alpha * mean + (1 - self.alpha) * gone, mean)
                means[j] = put(means[j], jnp.where(begins, first, kept), into * per_frame, 2)
        context = super().accept(context, own, tokens, frames)
        k, v = (
            put(past, mean.astype(past.dtype), 0, 2)
            for past, mean in zip((context.k, context.v), means, strict=True)
        )
        return dataclasses.replace(context, k=k, v=v, memory=KV(*means))
