"""Relax Forcing: an archive of the past, of which one well-chosen frame is shown."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tt_jax.cache import buffer, selection
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
        _, batch, _, heads, width = context.k.shape
        archive = buffer.empty(
            layers=len(context.k), batch=batch, slots=self.archive - chunk,
            tokens=context.valid.shape[2], heads=heads, head_dim=width,
            token_dim=context.tokens.shape[3], sink=self.sink, dtype=context.k.dtype,
        )  # fmt: skip
        # The archive, and the frame of its middle that is shown.
        memory = {"archive": archive, "shown": jnp.full((batch,), -1, jnp.int32)}
        return dataclasses.replace(context, memory=memory)

    def accept(
        self,
        context: Context,
        own: Any,
        tokens: Float[Array, "b f p d"],
        frames: Int[Array, " f"],
    ) -> Context:
        archive = buffer.append(self._pruned(context), KV(*own), tokens, frames)
        newest, per_frame = frames[-1], tokens.shape[2]
        held = archive.frame.shape[0] - self.sink
        oldest = jnp.maximum(self.sink, newest + 1 - held)
        score, number = self._scores(archive, oldest, newest)
        chosen = jnp.take_along_axis(number, jnp.argmax(score, axis=1)[:, None], axis=1)[:, 0]
        between = newest > oldest

        sinks = jnp.arange(self.sink, dtype=jnp.int32)
        last = jnp.stack([newest - 1, newest])  # one number for all samples: for the order
        named = jnp.concatenate([sinks, last]).astype(jnp.int32)
        there = jnp.concatenate([sinks <= newest, between[None], newest[None] >= self.sink])
        at = buffer.ring(archive, self._numbers(chosen, newest))
        pick = jax.vmap(lambda x, slot: x[slot][None])
        for slot in range(self.sink + 2):
            where, one = at[:, slot], slice(slot, slot + 1)
            context = buffer.write(
                context,
                KV(*(buffer.frames_at(x, where, per_frame) for x in archive.keys_values)),
                pick(archive.tokens, where),
                jnp.where(there, named, -1)[one],
                jnp.array([slot], jnp.int32),
                pick(archive.valid, where) & there[slot],
            )
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
            keys = buffer.frames_at(archive.k[:1], slot, per_frame, size)[0]
            there = jax.lax.dynamic_slice_in_dim(archive.valid, slot, size, axis=1)
            return selection.prototype(keys, there.reshape(len(there), -1))

        sinks, tail = prototype(jnp.zeros((), jnp.int32), self.sink), prototype(newest)
        ones = jnp.stack([prototype(number[i]) for i in range(self.candidates)], axis=1)
        alike, tired = (jnp.sum(ones * x[:, None], axis=-1) for x in (sinks, tail))
        score = alike - self.weight * tired
        return score, jnp.broadcast_to(number, score.shape)

    def _numbers(self, middle: Int[Array, " b"], newest: Int[Array, ""]) -> Int[Array, "b s"]:
        """The frames of the archive that the slots show, for each sample."""
        sinks = jnp.arange(self.sink, dtype=jnp.int32)
        rows = [jnp.broadcast_to(x, (len(middle), *x.shape)) for x in (sinks, newest[None])]
        return jnp.concatenate([rows[0], middle[:, None], rows[1]], axis=1)

    def _pruned(self, context: Context) -> Context:
        """The archive, less what was dropped from the slots that show it."""
        archive = context.memory["archive"]
        at = self._numbers(context.memory["shown"], jnp.max(archive.frame))
        here = jax.nn.one_hot(buffer.ring(archive, at), len(archive.frame), dtype=bool)
        lost = context.filled[None, :, None] & ~context.valid
        gone = jnp.any(here[..., None] & lost[:, :, None], axis=1)
        return dataclasses.replace(archive, valid=archive.valid & ~gone)
