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

    summary: "mean" takes m over all tokens of the evicted frames, one vector a head, and shows it
        at every place of a frame; "adaptive" takes it place by place, and the short memory moves
        the faster the further m is from it, a from `short` / 10 to 5 `short`; "none" keeps no
        memory but more recent frames (the original's eviction only, `Window` with relative
        positions).
    frames: frames that attention spans, the chunk included. sink: first frames that always stay.

    Caches `frames - chunk` frames, and the memories in float32. Computes one mean over `chunk`
    frames a chunk. What TokenTrim dropped enters no mean; the memories themselves are never pruned,
    since they stand for no frame.
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
        places = per_frame if self.summary == "adaptive" else 1
        zeros = jnp.zeros(
            (*context.k.shape[:2], MEMORIES, places, *context.k.shape[3:]), jnp.float32
        )
        return dataclasses.replace(
            context, memory=KV(zeros, zeros), exempt=jnp.zeros((slots,), bool)
        )

    def _slots(self, context: Context, frames: Int[Array, " f"]) -> Int[Array, " f"]:
        turns = context.frame.shape[0] - self._kept
        return jnp.where(frames < self._kept, frames, self._kept + (frames - self._kept) % turns)

    def accept(
        self,
        context: Context,
        own: Any,
        tokens: Float[Array, "b f p d"],
        frames: Int[Array, " f"],
    ) -> Context:
        at = self._slots(context, frames)
        if self.summary != "none":
            context = self._summarise(context, at, frames >= context.frame.shape[0])
        return buffer.write(context, KV(*own), tokens, frames, at)

    def _summarise(
        self, context: Context, at: Int[Array, " f"], leaves: Bool[Array, " f"]
    ) -> Context:
        """With the frames in the slots `at` that `leaves` says in the memories."""
        batch, _, per_frame = context.valid.shape
        counts = context.valid[:, at] & leaves[None, :, None]
        weight = counts[None, ..., None, None].astype(jnp.float32)
        axes = (2,) if self.summary == "adaptive" else (2, 3)
        total = jnp.sum(weight, axis=axes, keepdims=True)
        some = total > 0

        def mean(values: Array) -> Array:
            # Frame by frame, so that no copy of them is needed.
            whole = jnp.zeros(())
            for i, slot in enumerate(at):
                gone = buffer.frames_at(values, slot, per_frame).astype(jnp.float32)
                part = weight[:, :, i] * gone
                whole += part if len(axes) == 1 else jnp.sum(part, axis=2, keepdims=True)
            return whole[:, :, None] / jnp.maximum(total, 1)

        means = KV(mean(context.k), mean(context.v))
        assert context.exempt is not None
        begun = context.exempt[self.sink]
        rates = [jnp.float32(self.long), jnp.float32(self.short)]
        if self.summary == "adaptive":
            apart = means.k[:, :, 0] - context.memory.k[:, :, 1]
            apart = jnp.mean(jnp.linalg.norm(apart, axis=-1), axis=-1)
            share = apart / (jnp.max(apart, axis=-1, keepdims=True) + 1e-8)
            rates[1] = (self.short * (0.1 + share * 4.9))[..., None, None]
        new = []
        for old, m in zip(context.memory, means, strict=True):
            moved = [a * m[:, :, 0] + (1 - a) * old[:, :, i] for i, a in enumerate(rates)]
            moved = jnp.where(begun, jnp.stack(moved, axis=2), m)
            new.append(jnp.where(some, moved, old))

        # Shown from now on, or still the frames that came first.
        shown = begun | jnp.any(leaves)
        start = self.sink * per_frame
        put = jax.lax.dynamic_update_slice_in_dim
        values = []
        for past, memory in zip((context.k, context.v), new, strict=True):
            rows = jnp.broadcast_to(memory, (*memory.shape[:3], per_frame, *memory.shape[4:]))
            rows = rows.reshape(*past.shape[:2], -1, *past.shape[3:]).astype(past.dtype)
            frames = buffer.frames_at(past, jnp.asarray(self.sink), per_frame, MEMORIES)
            values.append(put(past, jnp.where(shown, rows, frames), start, 2))
        part = slice(self.sink, self.sink + MEMORIES)
        ever = jnp.broadcast_to(some[0, :, 0, :, 0], (batch, per_frame, 1))[:, None, :, 0]
        ever = jnp.where(begun, context.valid[:, part] | ever, ever)
        valid = context.valid.at[:, part].set(jnp.where(shown, ever, context.valid[:, part]))
        return dataclasses.replace(
            context, k=values[0], v=values[1], valid=valid, memory=KV(*new),
            exempt=context.exempt.at[part].set(shown),
        )  # fmt: skip
