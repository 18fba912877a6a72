"""TetherCache: each layer keeps the frames that its queries look at, apart from one another."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tt_jax.cache import buffer, members, selection
from tt_jax.cache.buffer import Context
from tt_jax.cache.policy import Policy, check_window
from tt_jax.models.dit import KV, Read, reader


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class TetherCache(Policy):
    """Sinks, a memory that each layer fills for itself, recent frames (TetherCache, 2606.13035).

    The recent frames are the chunk and the one before it. When a chunk is finished, those that
    leave compete with the memory's: a = softmax over these frames of mean q k / sqrt(width), not
    rotated, over heads, tokens and the finished chunk's clean queries; a frame's diversity is 1 -
    max over the others of exp(-|t_i - t_j| / s) a_j, at least 0, s = half the span of their times
    and at least 1; those with the highest a + `diversity` x diversity stay. A frame that comes into
    a full memory is drawn towards sinks and memory: per head and channel, 1 - `trust` of it and
    `trust` of it with their mean and deviation over tokens. Positions are relative, in the order of
    the video, so that videos have no end.

    Caches `frames - chunk` frames. Computes a mean and a variance over the cache a chunk, copies up
    to `chunk` frames. TokenTrim drops entries of memory and newest frame; they are in no mean and
    never admitted. The sizes are the published ones; written from a description, not a recording.

    Attributes:
        frames: that attention spans, the chunk included.
        sink: first frames that always stay.
        diversity: weight of a frame's distance from others that are attended to.
        trust: how much of its mean and deviation a new frame takes from sinks and memory.
    """

    frames: int = 21
    sink: int = 3
    diversity: float = 0.35
    trust: float = 0.35

    @property
    def sinks(self) -> int:
        return self.sink

    def check(self, chunk: int) -> None:
        check_window(self.frames, self.sink + 1, chunk)
        if self.sink < 1 or self.frames < self.sink + 1 + 2 * chunk:
            raise ValueError("TetherCache needs a sink, and a memory of at least a chunk's frames.")

    def slots(self, chunk: int) -> int:
        return self.frames - chunk

    def start(self, context: Context, chunk: int) -> Context:
        layers, batch = context.k.shape[:2]
        count, per_frame = self.frames - chunk - self.sink - 1, context.valid.shape[2]
        memory = members.empty(layers, batch, count, per_frame)
        return dataclasses.replace(context, memory=memory)

    def read(
        self,
        context: Context,
        valid: Bool[Array, "b s p"],
        frame: Int[Array, ""],
        size: int,
        grid: tuple[int, int],
    ) -> tuple[Any, Read]:
        batch, slots, per_frame = valid.shape
        middle = slice(self.sink, slots - 1)
        own, at = self.positions(context, frame, size)
        assert at is not None  # keys are kept without rotation
        shape, bias = context.k.shape[3:], self.bias(context, size)
        turn = self.turn(own, grid, shape)
        at = jnp.broadcast_to(jnp.where(context.filled, at, 0), (batch, slots))
        place = jnp.tile(jnp.arange(per_frame, dtype=jnp.int32), (batch, slots))

        def read(past: Any, q: Array, k: Array, v: Array) -> tuple[Array, Any]:
            cached, memory = past
            rank = self.sink + members.ranks(memory["time"])
            may = valid.at[:, middle].set(valid[:, middle] & memory["kept"])
            times = jnp.repeat(at.at[:, middle].set(rank), per_frame, axis=1)
            mask = buffer.attention_mask(may, size * per_frame)
            turns = self.turn(times, grid, shape, place)
            out, kv = reader(turn, mask, turns, bias=bias)(cached, q, k, v)
            # What `accept` decides by: frames' logits, and the moments of sinks and memory.
            query = jnp.mean(q.astype(jnp.float32), axis=1)
            new = jnp.ones((batch, size, per_frame), bool)
            pool = may[:, :-1].reshape(batch, -1)
            return out, (kv, {
                "past": selection.frame_logits(query, cached.k, may),
                "own": selection.frame_logits(query, k, new),
                "pool": tuple(selection.moments(x[:, : pool.shape[1]], pool) for x in cached),
            })  # fmt: skip

        return (context.keys_values, context.memory), read

    def accept(
        self,
        context: Context,
        own: Any,
        tokens: Float[Array, "b f p d"],
        frames: Int[Array, " f"],
    ) -> Context:
        kv, seen = own
        size, per_frame, newest = len(frames), context.valid.shape[2], context.valid.shape[1] - 1
        middle = slice(self.sink, newest)
        time, kept = context.memory["time"], context.memory["kept"]
        kept &= context.valid[None, :, middle]
        count = time.shape[2]

        # The frames that come into question: the newest of before, and all but the newest of now.
        new = jnp.concatenate([context.frame[newest:], frames[:-1].astype(jnp.int32)])
        there = jnp.ones((len(tokens), size - 1, per_frame), bool)
        there = jnp.concatenate([context.valid[:, newest:], there], axis=1)
        shape = (*time.shape[:2], size)
        times = jnp.concatenate([time, jnp.broadcast_to(new, shape)], axis=2)
        some = [jnp.any(kept, axis=3), jnp.broadcast_to(jnp.any(there, axis=2), shape)]
        able = (times >= self.sink) & jnp.concatenate(some, axis=2)
        logits = [seen["past"][:, :, self.sink :], seen["own"][:, :, : size - 1]]
        score = selection.apart(jnp.concatenate(logits, 2), times, able, self.diversity)
        enters, to = selection.admitted(score, times >= self.sink, count)
        comes = jnp.sum(new >= self.sink, dtype=jnp.int32)
        crowded = jnp.sum(time >= 0, axis=2) + comes > count

        drawn = members.Drawn(crowded, seen["pool"], self.trust)
        values, memory = members.enter(
            context,
            {"time": time, "kept": kept},
            members.Newcomers(kv, new, there, enters, to),
            drawn,
        )

        # The shared arrays: in order, whatever each layer has; what was dropped is in `kept`.
        order = jnp.arange(count, dtype=jnp.int32)
        filled = order < jnp.sum(context.filled[middle], dtype=jnp.int32) + comes
        frame = jnp.where(filled, self.sink + order, -1).astype(jnp.int32)
        context = dataclasses.replace(
            context,
            **values._asdict(),
            frame=context.frame.at[middle].set(frame),
            valid=context.valid.at[:, middle].set(filled[None, :, None]),
            memory=memory,
        )
        # A sink, or the newest frame; another is in the memory already.
        at = jnp.where(frames < self.sink, frames, newest)
        return buffer.write(context, KV(*kv), tokens, frames, at)
