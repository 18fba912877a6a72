"""Relax Forcing: an archive of the past, of which one well-chosen frame is shown."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tt_jax.cache import buffer
from tt_jax.cache.buffer import Context
from tt_jax.cache.policy import Policy
from tt_jax.models.dit import KV


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class RelaxForcing(Policy):
    """Sinks, one frame of the middle, the newest frame (Relax Forcing, arXiv 2603.21366).

    Of the middle's second half, up to `candidates` evenly spaced frames are compared by prototypes,
    the mean key of the first layer over tokens and heads (not rotated): shown is the one most like
    the sinks and least like the newest frame, cos(x, sinks) - `weight` cos(x, newest), chosen when
    a chunk begins, for all layers and passes. Positions are relative: the published ones differ
    from these by the same number for all that is attended.

    Attends to `sink` + 2 past frames; caches these and the archive, which at Wan 1.3B's 480p is
    0.29 GB a frame in bfloat16, 33 GB as published. Videos have no end. Computes `candidates` + 3
    means of keys, and copies `chunk` + 2 frames, a chunk. TokenTrim drops entries of the frames
    that are shown, in the archive too; they take no part in prototypes. The original's option of
    true positions isn't here.

    Attributes:
        archive: frames that are kept, the chunk included; the middle's oldest leave it.
        sink: first frames, always shown.
        candidates: frames of the middle that are compared.
        weight: of the likeness to the newest frame.
    """

    archive: int = 120
    sink: int = 2
    candidates: int = 4
    weight: float = 2.0

    @property
    def sinks(self) -> int:
        return self.sink

    def check(self, chunk: int) -> None:
        if self.sink < 1 or self.candidates < 1:
            raise ValueError("Relax Forcing needs at least one sink and one candidate.")
        if self.archive < self.sink + 2 + chunk:
            raise ValueError(
                f"an archive of {self.archive} frames must hold the sinks, two frames and a chunk, "
                f"{self.sink} + 2 + {chunk}."
            )

    def slots(self, chunk: int) -> int:
        return self.sink + 2

    def start(self, context: Context, chunk: int) -> Context:
        batch, _, per_frame, width = context.tokens.shape
        size = self.archive - chunk
        k, v = (
            jnp.zeros((*x.shape[:2], size * per_frame, *x.shape[3:]), x.dtype)
            for x in (context.k, context.v)
        )
        whole = buffer.Context(
            k=k,
            v=v,
            tokens=jnp.zeros((batch, size, per_frame, width), context.tokens.dtype),
            valid=jnp.zeros((batch, size, per_frame), bool),
            frame=jnp.full((size,), -1, jnp.int32),
            sink=self.sink,
        )
        # The archive, and the frame of it that is shown.
        memory = {"archive": whole, "shown": jnp.full((batch,), -1, jnp.int32)}
        return dataclasses.replace(context, memory=memory)

    def accept(
        self,
        context: Context,
        own: Any,
        tokens: Float[Array, "b f p d"],
        frames: Int[Array, " f"],
    ) -> Context:
        archive = buffer.append(self._pruned(context), KV(*own), tokens, frames)
        newest = frames[-1]
        count = archive.frame.shape[0]
        oldest = jnp.maximum(self.sink, newest + 1 - (count - self.sink))
        score, number = self._scores(archive, oldest, newest)
        chosen = jnp.take_along_axis(number, jnp.argmax(score, axis=1)[:, None], axis=1)[:, 0]
        between = newest - oldest >= 1

        context = self._show(context, archive, jnp.broadcast_to(newest, chosen.shape), newest >= 0)
        context = self._show(context, archive, chosen, between, history=True)
        batch, per_frame = len(tokens), context.valid.shape[2]
        for slot in range(self.sink):
            begins = jnp.any(frames == slot)
            new = self._one(archive, jnp.full((batch,), slot))
            context = _place(context, new, slot, jnp.asarray(slot), begins, per_frame)
        shown = jnp.where(between, chosen, -1)
        return dataclasses.replace(context, memory={"archive": archive, "shown": shown})

    def _scores(
        self, archive: Context, oldest: Int[Array, ""], newest: Int[Array, ""]
    ) -> tuple[Float[Array, "b c"], Int[Array, "b c"]]:
        """Of each candidate, its score and number; the middle begins at frame `oldest`."""
        middle = jnp.maximum(newest - oldest, 1)
        half = middle // 2
        count = jnp.minimum(self.candidates, middle - half)
        step = jnp.minimum(jnp.arange(self.candidates, dtype=jnp.int32), count - 1)
        number = oldest + half + step * (middle - 1 - half) // count
        per_frame = archive.valid.shape[2]

        def prototype(first: Array, size: int = 1) -> Float[Array, "b h"]:
            slot = buffer.ring(archive, first[None])[0]
            keys = buffer.frames_at(archive.k[:1], slot, per_frame, size)[0].astype(jnp.float32)
            there = jax.lax.dynamic_slice_in_dim(archive.valid, slot, size, axis=1)
            there = there.reshape(len(there), -1)[..., None, None].astype(jnp.float32)
            mean = jnp.sum(keys * there, axis=1) / jnp.maximum(jnp.sum(there, axis=1), 1)
            mean = jnp.mean(mean, axis=1)
            return mean / jnp.maximum(jnp.linalg.norm(mean, axis=-1, keepdims=True), 1e-12)

        sinks, tail = prototype(jnp.zeros((), jnp.int32), self.sink), prototype(newest)
        scores = []
        for i in range(self.candidates):
            one = prototype(number[i])
            alike = jnp.sum(one * sinks, axis=-1), jnp.sum(one * tail, axis=-1)
            scores.append(alike[0] - self.weight * alike[1])
        score = jnp.stack(scores, axis=1)
        return score, jnp.broadcast_to(number, score.shape)

    def _show(
        self,
        context: Context,
        archive: Context,
        number: Int[Array, " b"],
        there: Array,
        history: bool = False,
    ) -> Context:
        """With a sample's frame of the archive in the slot of the newest one, or before it."""
        slot = self.sink + (0 if history else 1)
        newest = jnp.max(archive.frame)
        there = there & (newest >= self.sink)
        named = newest - 1 if history else newest  # one number for all samples: for the order
        new = self._one(archive, number)
        return _place(context, new, slot, named, there, context.valid.shape[2])

    def _one(self, archive: Context, number: Int[Array, " b"]) -> tuple[Array, ...]:
        """Keys, values, tokens and mask of one frame for each sample."""
        per_frame = archive.valid.shape[2]
        slot = jnp.maximum(buffer.ring(archive, number), 0)

        def rows(x: Array) -> Array:
            def one(x: Array, slot: Array) -> Array:
                return jax.lax.dynamic_slice_in_dim(x, slot * per_frame, per_frame, axis=1)

            return jax.vmap(one, in_axes=(1, 0), out_axes=1)(x, slot)

        frame = jax.vmap(lambda x, slot: x[slot])
        return rows(archive.k), rows(archive.v), frame(archive.tokens, slot), frame(
            archive.valid, slot
        )  # fmt: skip

    def _pruned(self, context: Context) -> Context:
        """The archive, less what was dropped from the slots that show it."""
        archive, shown = context.memory["archive"], context.memory["shown"]
        slots = archive.frame.shape[0]
        newest = jnp.max(archive.frame)
        valid = archive.valid
        for slot in range(self.sink + 2):
            number = jnp.full(shown.shape, slot) if slot < self.sink else (
                shown if slot == self.sink else jnp.broadcast_to(newest, shown.shape)
            )  # fmt: skip
            lost = (context.frame[slot] >= 0) & ~context.valid[:, slot] & (number >= 0)[:, None]
            here = jax.nn.one_hot(buffer.ring(archive, number), slots, dtype=bool)
            valid &= ~(here[:, :, None] & lost[:, None])
        return dataclasses.replace(archive, valid=valid)


def _place(
    context: Context, new: tuple[Array, ...], slot: int, number: Array, there: Array, size: int
) -> Context:
    """With keys, values, tokens and mask `new` in a slot, if `there`."""
    rows = slice(slot * size, (slot + 1) * size)
    k, v, tokens, valid = new
    return dataclasses.replace(
        context,
        k=context.k.at[:, :, rows].set(jnp.where(there, k, context.k[:, :, rows])),
        v=context.v.at[:, :, rows].set(jnp.where(there, v, context.v[:, :, rows])),
        tokens=context.tokens.at[:, slot].set(jnp.where(there, tokens, context.tokens[:, slot])),
        valid=context.valid.at[:, slot].set(jnp.where(there, valid, context.valid[:, slot])),
        frame=context.frame.at[slot].set(
            jnp.where(there, number, context.frame[slot]).astype(jnp.int32)
        ),
    )
