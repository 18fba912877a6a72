"""Deep Forcing: a deep sink, and of what lies between it and now the tokens that matter."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tt_jax.cache import buffer
from tt_jax.cache.buffer import Context
from tt_jax.cache.policy import Policy
from tt_jax.models.dit import KV, Read
from tt_jax.nn.attention import attention
from tt_jax.nn.rope import rotate


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class DeepForcing(Policy):
    """A deep sink and participative compression (Deep Forcing, arXiv 2512.05081).

    Whenever a chunk would exceed `frames`, the cache is compressed to `budget` frames, that chunk
    included: `sink` first frames; of the tokens in the middle, in each layer, those that the
    queries of the latest `recent` frames score highest; those frames. A key's score is the sum over
    queries and heads of q k / (sqrt(width) heads), rotated; the queries are the chunk's own in its
    first pass and those the frames before it had in their last. A token that was chosen `reuse`
    times is no candidate any more. Each compression moves the sinks to the frames from `budget`
    before the chunk on; a chosen token keeps its position.

    Positions are those of the vendored code that was recorded: five of them stay empty between sink
    and recent frames, and chosen tokens are never moved, other than in the paper. Whether to
    compress is decided by frames, where the original counts tokens; they differ where `reuse` left
    fewer candidates than places.

    Caches `frames` frames. Computes one more pass, with a score for each key, before every second
    chunk. Videos have no end. TokenTrim drops chosen tokens by the place in a frame they come from.

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
    def _chosen(self) -> int:
        return self.budget - self.sink - self.recent

    def check(self, chunk: int) -> None:
        if not chunk <= self.recent <= 2 * chunk:
            raise ValueError(
                f"recent counts the chunk and at most one before it, {chunk} to {2 * chunk} "
                f"frames, not {self.recent}."
            )
        if self.sink < 1 or self._chosen < 1 or self.frames < self.budget + chunk:
            raise ValueError(
                f"a budget of {self.budget} frames must have room for a frame beside sink and "
                f"recent frames, {self.sink} + {self.recent}, and {self.frames} for another chunk."
            )

    def slots(self, chunk: int) -> int:
        return self.frames

    def start(self, context: Context, chunk: int) -> Context:
        layers, batch, _, heads, width = context.k.shape
        per_frame = context.valid.shape[2]
        # Of the chosen tokens: their place in a frame, the frame, whether they may be attended, how
        # often they were chosen. What is there before any was are frames like others.
        shape = (layers, batch, self._chosen * per_frame)
        place = jnp.tile(jnp.arange(per_frame, dtype=jnp.int32), self._chosen)
        time = self.sink + jnp.repeat(jnp.arange(self._chosen, dtype=jnp.int32), per_frame)
        memory = {
            "place": jnp.broadcast_to(place, shape),
            "time": jnp.broadcast_to(time, shape),
            "kept": jnp.ones(shape, bool),
            "count": jnp.zeros(shape, jnp.int32),
            # Sum of the rotated queries that the frames before the next chunk had.
            "query": jnp.zeros((layers, batch, heads, width), jnp.float32),
            "sink_at": jnp.zeros((), jnp.int32),
            "compressed": jnp.zeros((), bool),
        }
        return dataclasses.replace(context, memory=memory)

    def _slots(self, frames: Int[Array, " f"]) -> Int[Array, " f"]:
        kept = self.sink + self._chosen
        return jnp.where(frames < kept, frames, kept + (frames - kept) % (self.frames - kept))

    def begin(
        self,
        context: Context,
        frame: Int[Array, ""],
        size: int,
        grid: tuple[int, int],
        first: Callable[[Any, Read], Any],
    ) -> Context:
        memory = context.memory
        full = jnp.sum(context.filled) + size > self.frames
        layers, batch, count = memory["place"].shape
        memory = memory | {"sink_at": jnp.where(full, frame - self.budget, memory["sink_at"])}
        context = dataclasses.replace(context, memory=memory)

        def choose() -> tuple[Array, Array]:
            past, read = self._reader(context, context.valid, frame, size, grid, choosing=True)
            return first(past, read)

        nothing = (
            jnp.zeros((layers, batch, count), jnp.int32),
            jnp.ones((layers, batch, count), bool),
        )
        index, kept = jax.lax.cond(full, choose, lambda: nothing)
        return self._compressed(context, index, kept, full, frame - (self.recent - size))

    def _compressed(
        self,
        context: Context,
        index: Int[Array, "l b c"],
        kept: Bool[Array, "l b c"],
        full: Bool[Array, ""],
        recent: Int[Array, ""],
    ) -> Context:
        """With the tokens `index` of the buffer in the chosen ones' place, if it was `full`."""
        per_frame = context.valid.shape[2]
        memory, count = context.memory, index.shape[2]
        start = self.sink * per_frame
        within = (index >= start) & (index < start + count)
        before = jnp.clip(index - start, 0, count - 1)
        now = {
            "place": index % per_frame,
            "time": context.frame[index // per_frame],
            "count": jnp.zeros_like(index),
        }
        for name, new in now.items():
            was = jnp.take_along_axis(memory[name], before, axis=2)
            now[name] = jnp.where(within, was, new)
        now["count"] += 1
        now["kept"] = kept
        memory = memory | {name: jnp.where(full, new, memory[name]) for name, new in now.items()}
        memory["compressed"] = memory["compressed"] | full

        values = {}
        for name in ("k", "v"):
            past = getattr(context, name)
            new = jnp.take_along_axis(past, index[..., None, None], axis=2)
            new = jnp.where(full, new, past[:, :, start : start + count])
            values[name] = jax.lax.dynamic_update_slice_in_dim(past, new, start, 2)
        slot = jnp.arange(self.frames, dtype=jnp.int32)
        chosen = (slot >= self.sink) & (slot < self.sink + self._chosen)
        gone = full & (slot >= self.sink) & ~chosen & (context.frame < recent)
        context = dataclasses.replace(context, **values, memory=memory)
        context = buffer.drop(context, gone)
        valid = jnp.where((full & chosen)[None, :, None], True, context.valid)
        frame = jnp.where(full & chosen, slot, context.frame)
        return dataclasses.replace(context, valid=valid, frame=frame)

    def read(
        self,
        context: Context,
        valid: Bool[Array, "b s p"],
        frame: Int[Array, ""],
        size: int,
        grid: tuple[int, int],
    ) -> tuple[Any, Read]:
        return self._reader(context, valid, frame, size, grid)

    def _reader(
        self,
        context: Context,
        valid: Bool[Array, "b s p"],
        frame: Int[Array, ""],
        size: int,
        grid: tuple[int, int],
        choosing: bool = False,
    ) -> tuple[Any, Read]:
        """How a layer reads; where it is `choosing`, by the tokens it chooses, which it returns."""
        batch, _, per_frame = valid.shape
        width = context.k.shape[-1]
        memory = context.memory
        places = jnp.arange(self.frames * per_frame, dtype=jnp.int32)
        start, count = self.sink * per_frame, self._chosen * per_frame
        middle = slice(start, start + count)
        slot = jnp.arange(self.frames, dtype=jnp.int32)
        at = jnp.where(slot < self.sink, memory["sink_at"] + slot, context.frame)
        time = jnp.broadcast_to(jnp.repeat(at, per_frame), (batch, len(places)))
        place = jnp.broadcast_to(places % per_frame, time.shape)
        shape, bias = context.k.shape[3:], self.bias(context, size)
        turn = self.turn(frame + jnp.arange(size, dtype=jnp.int32), grid, shape)
        older = self.recent - size
        recent = context.filled & (slot >= self.sink + self._chosen)
        recent &= context.frame >= frame - older
        candidate = context.filled & (slot >= self.sink) & ~recent
        candidate = jnp.repeat(candidate, per_frame)[None]
        always = jnp.repeat((slot < self.sink) | recent, per_frame)[None]
        seen = valid.reshape(batch, -1)
        own = jnp.ones((batch, size * per_frame), bool)

        def read(past: Any, q: Array, k: Array, v: Array) -> tuple[Array, Any]:
            cached, chosen = past
            times = time.at[:, middle].set(chosen["time"])
            where = place.at[:, middle].set(chosen["place"])
            may = seen.at[:, middle].set(self._seen(chosen, valid))
            q = rotate(q, turn)
            keys = rotate(cached.k.astype(k.dtype), self.turn(times, grid, shape, where))
            new = rotate(k, turn)
            query = jnp.sum(q.astype(jnp.float32), axis=1)
            out: Any = KV(k, v), jnp.sum(q[:, -older * per_frame :].astype(jnp.float32), axis=1)
            if older == 0:
                out = out[0], jnp.zeros_like(out[1])
            if choosing:
                often = jnp.zeros(may.shape, jnp.int32).at[:, middle].set(chosen["count"])
                able = may & candidate & (often < self.reuse)
                score = jnp.einsum(
                    "bnh,bsnh->bs", query + chosen["query"], keys.astype(jnp.float32),
                    precision=jax.lax.Precision.HIGHEST,
                ) / (width**0.5 * q.shape[2])  # fmt: skip
                best, index = jax.lax.top_k(jnp.where(able, score, -jnp.inf), count)
                kept = best > -jnp.inf
                rows = jnp.arange(batch, dtype=jnp.int32)[:, None]
                picked = jnp.zeros(may.shape, bool).at[rows, index].set(kept)
                may = may & (always | picked)
                out = index, kept
            mask = jnp.concatenate([may, own], axis=1)[:, None]
            keys = jnp.concatenate([keys, new], axis=1)
            values = jnp.concatenate([cached.v.astype(v.dtype), v], axis=1)
            return attention(q, keys, values, mask, bias=bias), out

        layers = {n: memory[n] for n in ("place", "time", "kept", "count", "query")}
        return (context.keys_values, layers), read

    def _seen(self, chosen: dict[str, Array], valid: Bool[Array, "b s p"]) -> Bool[Array, "b c"]:
        """Which of the chosen tokens may be attended: `valid` is by places of a frame there."""
        batch, _, per_frame = valid.shape
        part = valid[:, self.sink : self.sink + self._chosen]
        place = chosen["place"].reshape(batch, self._chosen, per_frame)
        return chosen["kept"] & jnp.take_along_axis(part, place, axis=2).reshape(batch, -1)

    def accept(
        self,
        context: Context,
        own: Any,
        tokens: Float[Array, "b f p d"],
        frames: Int[Array, " f"],
    ) -> Context:
        kv, query = own
        memory = context.memory
        # What was dropped from the chosen tokens is gone for good.
        kept = jax.vmap(lambda m: self._seen(m, context.valid))(
            {"place": memory["place"], "kept": memory["kept"]}
        )
        kept = jnp.where(memory["compressed"], kept, memory["kept"])
        memory = memory | {"query": query, "kept": kept}
        part = slice(self.sink, self.sink + self._chosen)
        there = context.valid[:, part] | memory["compressed"]
        context = dataclasses.replace(
            context, memory=memory, valid=context.valid.at[:, part].set(there)
        )
        return buffer.write(context, KV(*kv), tokens, frames, self._slots(frames))
