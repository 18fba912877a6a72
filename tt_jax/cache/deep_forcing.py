"""Deep Forcing: a deep sink, and of what lies between it and now the tokens that matter."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tt_jax.cache import buffer
from tt_jax.cache import tokens as table
from tt_jax.cache.buffer import Context
from tt_jax.cache.policy import Policy
from tt_jax.cache.selection import best_tokens
from tt_jax.models.dit import KV, Read, reader
from tt_jax.nn.rope import rotate


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class DeepForcing(Policy):
    """A deep sink and participative compression (Deep Forcing, arXiv 2512.05081).

    Whenever a chunk would exceed `frames`, the cache is compressed to `budget` frames, that chunk
    included: `sink` first frames; of the tokens in the middle, in each layer, those that the
    queries of the latest `recent` frames score highest; those frames. A key's score is the sum over
    queries and heads of q k / (sqrt(width) heads), rotated; the queries are the chunk's own in its
    first pass and those the frames before it had in their last. A token chosen `reuse` times is no
    candidate. Each compression moves the sinks to the frames from `budget` before the chunk on.

    Positions are those of the recorded code: five stay empty between sink and recent frames, and
    chosen tokens never move, other than in the paper. Frames decide whether to compress; the
    original counts tokens, which differ where `reuse` left fewer candidates than places.

    Caches `frames` frames, computes a pass more, with a score a key, before every second chunk, has
    no end. TokenTrim drops chosen tokens by the place in a frame that they come from.

    Attributes:
        frames: that attention spans, the chunk included.
        sink: first slots, never compressed.
        budget: frames that a compression leaves, the chunk included.
        recent: newest frames that stay, the chunk included.
        reuse: how often a token may be chosen.
    """

    frames: int = 21
    sink: int = 10
    budget: int = 16
    recent: int = 4
    reuse: int = 7

    @property
    def sinks(self) -> int:
        return self.sink

    @property
    def _kept(self) -> int:  # slots of sinks and chosen tokens
        return self.budget - self.recent

    def check(self, chunk: int) -> None:
        if not chunk <= self.recent <= 2 * chunk:
            raise ValueError(
                f"recent counts the chunk and at most one before it, {chunk} to {2 * chunk} "
                f"frames, not {self.recent}."
            )
        if self.sink < 1 or self._kept <= self.sink or self.frames < self.budget + chunk:
            raise ValueError(
                f"a budget of {self.budget} frames must have room for a frame beside sink and "
                f"recent frames, {self.sink} + {self.recent}, and {self.frames} for another chunk."
            )

    def slots(self, chunk: int) -> int:
        return self.frames

    def start(self, context: Context, chunk: int) -> Context:
        shape = context.k.shape
        # Sum of the rotated queries that the frames before the next chunk had.
        query = jnp.zeros((*shape[:2], *shape[3:]), jnp.float32)
        return dataclasses.replace(context, memory=table.empty(context) | {"query": query})

    def begin(
        self,
        context: Context,
        frame: Int[Array, ""],
        size: int,
        grid: tuple[int, int],
        first: Callable[[Any, Read], Any],
    ) -> Context:
        full = jnp.sum(context.filled) + size > self.frames
        sinks = jnp.arange(self.sink, dtype=jnp.int32)
        context = table.timed(context, sinks, frame - self.budget + sinks, full)
        chosen = self.read(context, context.valid, frame, size, grid, choosing=True)
        shape = (*context.k.shape[:2], (self._kept - self.sink) * context.valid.shape[2])
        nothing = jnp.zeros(shape, jnp.int32), jnp.ones(shape, bool)
        index, kept = jax.lax.cond(full, lambda: first(*chosen), lambda: nothing)
        gone = full & (context.frame < frame - (self.recent - size))
        gone &= jnp.arange(self.frames, dtype=jnp.int32) >= self._kept
        return buffer.drop(table.gathered(context, index, kept, self.sink, full), gone)

    def read(
        self,
        context: Context,
        valid: Bool[Array, "b s p"],
        frame: Int[Array, ""],
        size: int,
        grid: tuple[int, int],
        choosing: bool = False,
    ) -> tuple[Any, Read]:
        """Where it is `choosing`, by tokens that a layer chooses and returns."""
        per_frame, older = valid.shape[2], self.recent - size
        slot = jnp.arange(self.frames, dtype=jnp.int32)
        always = context.filled & (slot >= self._kept) & (context.frame >= frame - older)
        always = jnp.repeat((slot < self.sink) | always, per_frame)[None]
        candidate = jnp.repeat(context.filled, per_frame)[None] & ~always
        shape, bias = context.k.shape[3:], self.bias(context, size)
        turn = self.turn(frame + jnp.arange(size, dtype=jnp.int32), grid, shape)

        def read(past: Any, q: Array, k: Array, v: Array) -> tuple[Array, Any]:
            cached, memory = past
            may = table.seen(memory, valid)
            turns = self.turn(memory["time"], grid, shape, memory["place"])
            queries = rotate(q, turn).astype(jnp.float32)
            out: Any = KV(k, v), jnp.sum(queries[:, q.shape[1] - older * per_frame :], axis=1)
            if choosing:
                query = jnp.sum(queries, axis=1) + memory["query"]
                keys = rotate(cached.k.astype(k.dtype), turns)
                able = may & candidate & (memory["count"] < self.reuse)
                most = (self._kept - self.sink) * per_frame
                *out, picked = best_tokens(query, keys, able, most)
                may &= always | picked
            mask = buffer.attention_mask(may.reshape(valid.shape), q.shape[1])
            return reader(turn, mask, turns, bias=bias)(cached, q, k, v)[0], tuple(out)

        return (context.keys_values, context.memory), read

    def accept(
        self,
        context: Context,
        own: Any,
        tokens: Float[Array, "b f p d"],
        frames: Int[Array, " f"],
    ) -> Context:
        (kv, query), slot = own, jnp.arange(self.frames, dtype=jnp.int32)
        # Until the first choice, frames like others are there.
        chosen = (slot >= self.sink) & (slot < self._kept) & jnp.any(context.memory["count"] > 0)
        at = buffer.ring(context, frames, self._kept)
        context = table.timed(table.settled(context, chosen), at, frames)
        context = dataclasses.replace(context, memory=context.memory | {"query": query})
        return buffer.write(context, KV(*kv), tokens, frames, at)
