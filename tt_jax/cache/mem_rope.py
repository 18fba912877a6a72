"""MemRoPE: two running averages of what was evicted stand between sinks and recent frames."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tt_jax.cache import buffer
from tt_jax.cache.buffer import Context
from tt_jax.cache.policy import Policy, check_window
from tt_jax.models.dit import KV

MEMORIES = 2  # a long and a short one, a frame each


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class MemRope(Policy):
    """Sinks, a long and a short memory, recent frames (MemRoPE, arXiv 2603.12513).

    Once the window is full, the evicted frames' mean m goes into both memories, `x <- a m + (1 - a)
    x` with a = `long` and `short`, keys before rotation and values; the first m begins them. The
    two frames in whose places they then stand are lost, as in the original. Positions are relative,
    so that videos have no end.

    Caches `frames - chunk` frames, and the memories in float32. Computes one mean over `chunk`
    frames a chunk. What TokenTrim dropped enters no mean; the memories themselves are never pruned,
    since they stand for no frame.

    Attributes:
        frames: that attention spans, the chunk included.
        sink: first frames that always stay.
        long: how much of m the long memory takes.
        short: how much of it the short memory takes.
        summary: "mean" takes m over all tokens of the evicted frames, one vector a head, and shows
            it at every place of a frame; "adaptive" takes it place by place, and the short memory
            moves the faster the further m is from it, a from `short` / 10 to 5 `short`; "none"
            keeps no memory but more recent frames (the original's eviction only, `Window` with
            relative positions).
    """

    frames: int = 12
    sink: int = 3
    long: float = 0.01
    short: float = 0.1
    summary: Literal["mean", "adaptive", "none"] = "mean"

    @property
    def sinks(self) -> int:
        return self.sink

    @property
    def _kept(self) -> int:
        return self.sink + (0 if self.summary == "none" else MEMORIES)

    def check(self, chunk: int) -> None:
        if self.summary not in ("mean", "adaptive", "none"):
            raise ValueError(f'summary is "mean", "adaptive" or "none", not {self.summary!r}.')
        check_window(self.frames, self._kept, chunk)

    def slots(self, chunk: int) -> int:
        return self.frames - chunk

    def start(self, context: Context, chunk: int) -> Context:
        if self.summary == "none":
            return context
        slots, per_frame = context.valid.shape[1:]
        rows = MEMORIES * (per_frame if self.summary == "adaptive" else 1)
        zeros = jnp.zeros((*context.k.shape[:2], rows, *context.k.shape[3:]), jnp.float32)
        return dataclasses.replace(
            context, memory=KV(zeros, zeros), exempt=jnp.zeros((slots,), bool)
        )

    def accept(
        self,
        context: Context,
        own: Any,
        tokens: Float[Array, "b f p d"],
        frames: Int[Array, " f"],
    ) -> Context:
        at = buffer.ring(context, frames, self._kept)
        if self.summary != "none":
            context = self._summarise(context, at, frames >= context.frame.shape[0])
        return buffer.write(context, KV(*own), tokens, frames, at)

    def _summarise(
        self, context: Context, at: Int[Array, " f"], leaves: Bool[Array, " f"]
    ) -> Context:
        """With the frames in the slots `at` that `leaves` says in the memories."""
        per_frame = context.valid.shape[2]
        assert context.exempt is not None  # `start` made it
        begun = context.exempt[self.sink]
        by_place = self.summary == "adaptive"
        rows = per_frame if by_place else 1
        counts = context.valid[:, at] & leaves[None, :, None]
        weight = counts[None, ..., None, None].astype(jnp.float32)
        total = jnp.sum(weight, axis=2 if by_place else (2, 3))
        total = total if by_place else total[:, :, None]
        some = total > 0

        # Shown from now on, or still the frames that came first.
        shown = begun | jnp.any(leaves)
        slot = jnp.int32(self.sink)

        def mean(values: Array, layer: Array) -> Float[Array, "1 b r n h"]:
            whole = jnp.zeros(())
            for i, gone in enumerate(at):
                frame = buffer.frames_at(values, gone, per_frame, layer=layer)
                part = weight[:, :, i] * frame.astype(jnp.float32)
                whole += part if by_place else jnp.sum(part, axis=2, keepdims=True)
            return whole / jnp.maximum(total, 1)

        def fold(layer: Array, carried: tuple[KV, KV]) -> tuple[KV, KV]:
            means = KV(*(mean(past, layer) for past in carried[1]))
            rates = [jnp.float32(self.long), jnp.float32(self.short)]
            if by_place:
                apart = means.k - buffer.frames_at(carried[0].k, jnp.int32(1), rows, layer=layer)
                apart = jnp.mean(jnp.linalg.norm(apart, axis=-1), axis=-1)
                share = apart / (jnp.max(apart, axis=-1, keepdims=True) + 1e-8)
                rates[1] = (self.short * (0.1 + share * 4.9))[..., None, None]
            edited = []
            for x, past, m in zip(*carried, means, strict=True):
                frames = buffer.frames_at(past, slot, per_frame, MEMORIES, layer)
                one = (*frames.shape[:2], per_frame, *frames.shape[3:])
                both = []
                for i, rate in enumerate(rates):
                    old = buffer.frames_at(x, jnp.int32(i), rows, layer=layer)
                    new = jnp.where(begun, rate * m + (1 - rate) * old, m)
                    both.append(jnp.where(some, new, old))
                seen = jnp.concatenate([jnp.broadcast_to(x, one) for x in both], axis=2)
                seen = jnp.where(shown, seen.astype(past.dtype), frames)
                new = jnp.concatenate(both, axis=2)
                edited.append((
                    buffer.put_frames(x, new, jnp.int32(0), rows, layer),
                    buffer.put_frames(past, seen, slot, per_frame, layer),
                ))  # fmt: skip
            memory, values = zip(*edited, strict=True)
            return KV(*memory), KV(*values)

        memory, (k, v) = buffer.each_layer(fold, (context.memory, context.keys_values))
        part = slice(self.sink, self.sink + MEMORIES)
        ever = some[0, :, None, :, 0, 0] | (begun & context.valid[:, part])
        valid = context.valid.at[:, part].set(jnp.where(shown, ever, context.valid[:, part]))
        exempt = context.exempt.at[part].set(shown)
        return dataclasses.replace(context, k=k, v=v, valid=valid, memory=memory, exempt=exempt)
