"""TetherCache: each layer keeps the frames that its queries look at, apart from one another."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tt_jax.cache import buffer
from tt_jax.cache.buffer import Context
from tt_jax.cache.policy import Policy, check_window
from tt_jax.models.dit import KV, Read
from tt_jax.nn.attention import attention
from tt_jax.nn.rope import rotate


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

    Caches `frames - chunk` frames. Computes one mean and one variance over the cache a chunk, and
    copies up to `chunk` frames. TokenTrim drops entries of memory and newest frame; they are in no
    mean and never admitted. The published sizes are the defaults; it was written from a description
    and tested against a loop over that, no recording.

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
        count, per_frame = self._count(context), context.valid.shape[2]
        # Of the frames in each layer's memory; -1 where there is none.
        memory = {
            "time": jnp.full((layers, batch, count), -1, jnp.int32),
            "kept": jnp.zeros((layers, batch, count, per_frame), bool),
        }
        return dataclasses.replace(context, memory=memory)

    def _count(self, context: Context) -> int:
        return context.frame.shape[0] - self.sink - 1

    def read(
        self,
        context: Context,
        valid: Bool[Array, "b s p"],
        frame: Int[Array, ""],
        size: int,
        grid: tuple[int, int],
    ) -> tuple[Any, Read]:
        batch, slots, per_frame = valid.shape
        count = self._count(context)
        middle = slice(self.sink, self.sink + count)
        own, at = self.positions(context, frame, size)
        assert at is not None  # keys are kept without rotation
        shape, bias = context.k.shape[3:], self.bias(context, size)
        turn = self.turn(own, grid, shape)
        at = jnp.broadcast_to(jnp.where(context.filled, at, 0), (batch, slots))
        place = jnp.broadcast_to(
            jnp.tile(jnp.arange(per_frame, dtype=jnp.int32), slots), (batch, slots * per_frame)
        )

        def read(past: Any, q: Array, k: Array, v: Array) -> tuple[Array, Any]:
            cached, memory = past
            present = memory["time"] >= 0
            earlier = present[:, None] & (memory["time"][:, None] < memory["time"][:, :, None])
            rank = self.sink + jnp.sum(earlier, axis=2, dtype=jnp.int32)
            may = valid.at[:, middle].set(valid[:, middle] & memory["kept"])
            times = jnp.repeat(at.at[:, middle].set(rank), per_frame, axis=1)
            turns = self.turn(times, grid, shape, place)
            past_k, past_v = cached.k.astype(k.dtype), cached.v.astype(v.dtype)
            keys = jnp.concatenate([rotate(past_k, turns), rotate(k, turn)], axis=1)
            values = jnp.concatenate([past_v, v], axis=1)
            mask = buffer.attention_mask(may, size * per_frame)
            out = attention(rotate(q, turn), keys, values, mask, bias=bias)
            return out, (KV(k, v), self._seen(cached, may, q, k))

        return (context.keys_values, context.memory), read

    def _seen(
        self, cached: KV, valid: Bool[Array, "b s p"], q: Array, k: Array
    ) -> dict[str, Array]:
        """What a layer's `accept` decides by: the queries' mean products with each frame's keys,
        and the statistics of sinks and memory, `[B, N, H]` each."""
        batch, _, per_frame = valid.shape
        query = jnp.mean(q.astype(jnp.float32), axis=1)

        def logits(keys: Array, there: Array) -> Array:
            keys = keys.astype(jnp.float32).reshape(batch, -1, per_frame, *keys.shape[2:])
            weight = there[..., None, None].astype(jnp.float32)
            mean = jnp.sum(keys * weight, axis=2) / jnp.maximum(jnp.sum(weight, axis=2), 1)
            product = jnp.einsum("bnh,bsnh->bsn", query, mean, precision="highest")
            return jnp.mean(product, axis=2) / keys.shape[-1] ** 0.5

        own = jnp.ones((batch, k.shape[1] // per_frame, per_frame), bool)
        end = valid.shape[1] - 1
        pool = valid[:, :end].reshape(batch, -1)
        stats = {}
        for name, x in (("k", cached.k), ("v", cached.v)):
            stats[name] = jnp.stack(_moments(x[:, : end * per_frame], pool))
        return {"past": logits(cached.k, valid), "own": logits(k, own), **stats}

    def accept(
        self,
        context: Context,
        own: Any,
        tokens: Float[Array, "b f p d"],
        frames: Int[Array, " f"],
    ) -> Context:
        kv, seen = own
        size, (slots, per_frame) = len(frames), context.valid.shape[1:]
        count, newest = self._count(context), slots - 1
        middle = slice(self.sink, self.sink + count)
        memory = context.memory
        kept = memory["kept"] & context.valid[None, :, middle]

        # The frames that come into question: the newest of before, and all but the newest of now.
        time = jnp.concatenate([context.frame[newest:], frames[:-1].astype(jnp.int32)])
        comes = time >= self.sink
        k, v = (
            jnp.concatenate([past[:, :, newest * per_frame :], new.astype(past.dtype)], axis=2)
            for past, new in zip((context.k, context.v), kv, strict=True)
        )
        there = jnp.ones((len(tokens), size - 1, per_frame), bool)
        there = jnp.concatenate([context.valid[:, newest:], there], axis=1)

        logits = jnp.concatenate([seen["past"][:, :, middle], seen["past"][:, :, newest:]], axis=2)
        logits = jnp.concatenate([logits, seen["own"][:, :, : size - 1]], axis=2)
        times = jnp.concatenate(
            [memory["time"], jnp.broadcast_to(time, (*memory["time"].shape[:2], size))], axis=2
        )
        some = jnp.concatenate(
            [jnp.any(kept, axis=3), jnp.broadcast_to(jnp.any(there, 2), (*kept.shape[:2], size))],
            axis=2,
        )
        score = self._score(logits, times, (times >= self.sink) & some)
        _, best = jax.lax.top_k(score, count)
        stays = jnp.any(jax.nn.one_hot(best, count + size, dtype=bool), axis=2)
        stays &= times >= self.sink
        free = jnp.argsort(stays[:, :, :count], axis=2, stable=True).astype(jnp.int32)
        present = memory["time"] >= 0
        crowded = jnp.sum(present, axis=2) + jnp.sum(comes) > count

        put = jax.vmap(
            jax.vmap(lambda x, new, at: jax.lax.dynamic_update_slice_in_dim(x, new, at, 0))
        )
        get = jax.vmap(jax.vmap(lambda x, at: jax.lax.dynamic_slice_in_dim(x, at, per_frame, 0)))
        values, now = {"k": context.k, "v": context.v}, memory["time"]
        admitted = stays[:, :, count:]
        for i in range(size):
            enters = admitted[:, :, i]
            nth = jnp.sum(admitted[:, :, :i], axis=2, keepdims=True)
            to = jnp.take_along_axis(free, nth, axis=2)[:, :, 0]
            rows, at = slice(i * per_frame, (i + 1) * per_frame), (self.sink + to) * per_frame
            for name, new in (("k", k[:, :, rows]), ("v", v[:, :, rows])):
                drawn = jax.vmap(lambda x, s, i=i: self._drawn(x, there[:, i], s))(new, seen[name])
                new = jnp.where(crowded[..., None, None, None], drawn, new.astype(jnp.float32))
                new = jnp.where(
                    enters[..., None, None, None], new.astype(k.dtype), get(values[name], at)
                )
                values[name] = put(values[name], new, at)
            here = jax.nn.one_hot(to, count, dtype=bool) & enters[..., None]
            now = jnp.where(here, time[i], now)
            kept = jnp.where(here[..., None], there[None, :, i, None], kept)

        # The shared arrays: in order, whatever each layer has; what was dropped is in `kept`.
        held = jnp.sum(context.filled[middle], dtype=jnp.int32) + jnp.sum(comes, dtype=jnp.int32)
        filled = jnp.arange(count, dtype=jnp.int32) < held
        frame = context.frame.at[middle].set(
            jnp.where(filled, self.sink + jnp.arange(count, dtype=jnp.int32), -1).astype(jnp.int32)
        )
        valid = context.valid.at[:, middle].set(filled[:, None])
        context = dataclasses.replace(
            context, **values, frame=frame, valid=valid, memory={"time": now, "kept": kept}
        )
        for i in range(size):
            # A sink, or the newest frame; another is in the memory already.
            slot = jnp.where(frames[i] < self.sink, frames[i], newest)[None]
            rows, one = slice(i * per_frame, (i + 1) * per_frame), slice(i, i + 1)
            new = KV(*(part[:, :, rows] for part in kv))
            context = buffer.write(context, new, tokens[:, one], frames[one], slot)
        return context

    def _score(
        self, logits: Float[Array, "l b c"], time: Int[Array, "l b c"], there: Bool[Array, "l b c"]
    ) -> Float[Array, "l b c"]:
        share = jax.nn.softmax(jnp.where(there, logits, -1e30), axis=-1)
        moment = time.astype(jnp.float32)
        last = jnp.max(jnp.where(there, moment, -jnp.inf), axis=-1, keepdims=True)
        first = jnp.min(jnp.where(there, moment, jnp.inf), axis=-1, keepdims=True)
        some = jnp.any(there, axis=-1, keepdims=True)
        span = jnp.where(some, jnp.maximum(1, 0.5 * (last - first + 1)), 1.0)[..., None]
        near = jnp.exp(-jnp.abs(moment[..., :, None] - moment[..., None, :]) / span)
        others = there[..., None, :] & ~jnp.eye(time.shape[-1], dtype=bool)[None, None]
        most = jnp.max(jnp.where(others, near * share[..., None, :], 0), axis=-1)
        score = share + self.diversity * jnp.maximum(1 - most, 0)
        return jnp.where(there, score, -jnp.inf)

    def _drawn(self, x: Array, there: Array, to: Array) -> Array:
        """A frame with `trust` of the mean and deviation `to` of each head and channel."""
        mean, deviation = (part[:, None] for part in _moments(x, there))
        x = x.astype(jnp.float32)
        moved = to[1][:, None] * (x - mean) / (deviation + 1e-6) + to[0][:, None]
        return (1 - self.trust) * x + self.trust * moved


def _moments(x: Array, there: Bool[Array, "b t"]) -> tuple[Array, Array]:
    """Mean and deviation over the tokens that are there, `[B, N, H]`."""
    weight = there[..., None, None].astype(jnp.float32)
    total = jnp.maximum(jnp.sum(weight, axis=1), 1)
    x = x.astype(jnp.float32)
    mean = jnp.sum(weight * x, axis=1) / total
    return mean, jnp.sqrt(jnp.sum(weight * (x - mean[:, None]) ** 2, axis=1) / total)
