"""Reward Forcing's sink: what is evicted goes into it, by an exponential moving average."""

import dataclasses
from functools import partial
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

    Attributes:
        frames: that attention spans, the chunk included.
        sink: how many of them are sinks.
        alpha: what a sink keeps of itself.
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
        at = buffer.ring(context, frames)
        # The sink that each frame begins, or that takes the one it replaces.
        begins = frames < self.sink
        into = jnp.where(begins, frames, frames - slots) % self.sink
        takes = context.valid[:, at] & (frames >= slots)[None, :, None]

        def fold(i: int, layer: Array, means: KV) -> KV:
            folded = []
            for mean, past, new in zip(means, context.keys_values, own, strict=True):
                now, gone, first = (
                    buffer.frames_at(x, slot, per_frame, layer=layer).astype(jnp.float32)
                    for x, slot in ((mean, into[i]), (past, at[i]), (new, jnp.int32(i)))
                )
                moved = self.alpha * now + (1 - self.alpha) * gone
                moved = jnp.where(takes[None, :, i, :, None, None], moved, now)
                moved = jnp.where(begins[i], first, moved)
                folded.append(buffer.put_frames(mean, moved, into[i], per_frame, layer))
            return KV(*folded)

        means = context.memory
        for i in range(len(frames)):
            means = buffer.each_layer(partial(fold, i), means)
        # Before the frames: what they replace is read until then.
        k, v = (
            buffer.put_frames(past, mean, jnp.int32(0), per_frame)
            for past, mean in zip(context.keys_values, means, strict=True)
        )
        context = dataclasses.replace(context, k=k, v=v, memory=means)
        return super().accept(context, own, tokens, frames)
