"""FadeMem: a bank of frames that grow coarser the further back they are."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tt_jax.cache import buffer
from tt_jax.cache.buffer import Context
from tt_jax.cache.policy import Policy
from tt_jax.models.dit import KV

NEWEST = 3  # frames that stand right before the chunk, at their true distances


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class FadeMem(Policy):
    """Frames merged with their neighbours as they age (FadeMem, arXiv 2606.10671).

    A bank of `bank` summaries, each a frame's keys (before rotation) and values with a centre in
    the video and a span of frames. A new frame that finds the bank full makes the two neighbours
    merge that are closest in age^`fade`, ages counted from that frame on: keys and values weighted
    by the root of the spans, centres by the spans. The video's first frame is an anchor: it keeps
    its keys, values and centre whatever is merged into it.

    Once the bank is full, positions are within `frames`: the chunk at its end, the newest three
    frames before it, the anchor at 0, every other at a distance of its own from 4 on, the nearest
    that is free, in distance^`fade`, to the true one, newer ones first. Videos have no end.

    Caches `bank` frames, and merges as many a chunk as it has frames. Averages are made in float32
    and kept in the cache's dtype. Merging passes over dropped tokens: one that was dropped in a
    frame is the other frame's, and one dropped in both stays dropped. The anchor is the only sink.

    Attributes:
        frames: that attention spans, the chunk included.
        bank: summaries.
        fade: exponent of ages and distances.
    """

    frames: int = 21
    bank: int = 12
    fade: float = 0.3

    @property
    def sinks(self) -> int:
        return 1

    def check(self, chunk: int) -> None:
        if not NEWEST + 1 < self.bank <= self.frames - chunk:
            raise ValueError(
                f"a bank has more than {NEWEST + 1} frames and no more than the window leaves, "
                f"{self.frames} - {chunk}, not {self.bank}."
            )

    def slots(self, chunk: int) -> int:
        return self.bank

    def start(self, context: Context, chunk: int) -> Context:
        zeros = jnp.zeros((self.bank,), jnp.float32)
        return dataclasses.replace(context, memory={"centre": zeros, "span": zeros})

    def positions(
        self, context: Context, frame: Int[Array, ""], size: int
    ) -> tuple[Int[Array, " f"], Int[Array, " s"] | None]:
        own, past = super().positions(context, frame, size)
        assert past is not None  # keys are kept without rotation
        start = self.frames - size
        gaps = jnp.arange(NEWEST + 1, start, dtype=jnp.int32)
        warped = gaps.astype(jnp.float32) ** self.fade
        order = jnp.argsort(-context.memory["centre"])  # the newest first
        true = frame.astype(jnp.float32) - context.memory["centre"][order]
        at: list[Any] = [start - 1 - i for i in range(NEWEST)]
        last = jnp.asarray(NEWEST)
        for i in range(NEWEST, self.bank - 1):
            # Room is left for the older ones.
            free = (gaps > last) & (gaps < start - (self.bank - 2 - i))
            apart = jnp.abs(warped - true[i] ** self.fade)
            last = gaps[jnp.argmin(jnp.where(free, apart, jnp.inf))]
            at.append(start - last)
        placed = jnp.zeros_like(past).at[order].set(jnp.stack([*map(jnp.asarray, at), 0 * last]))
        full, end = jnp.all(context.filled), start + jnp.arange(size, dtype=jnp.int32)
        return jnp.where(full, end, own), jnp.where(full, placed, past)

    def accept(
        self,
        context: Context,
        own: Any,
        tokens: Float[Array, "b f p d"],
        frames: Int[Array, " f"],
    ) -> Context:
        per_frame = tokens.shape[2]
        for i in range(len(frames)):
            full = jnp.all(context.filled)
            context, free = self._merged(context, frames[i], full)
            slot = jnp.where(full, free, jnp.sum(context.filled)).astype(jnp.int32)
            kv = KV(*(buffer.frames_at(x, jnp.int32(i), per_frame) for x in own))
            context = buffer.write(context, kv, tokens[:, i, None], frames[i, None], slot[None])
            now = {"centre": frames[i].astype(jnp.float32), "span": jnp.float32(1)}
            memory = {name: x.at[slot].set(now[name]) for name, x in context.memory.items()}
            context = dataclasses.replace(context, memory=memory)
        return context

    def _merged(
        self, context: Context, frame: Int[Array, ""], full: Array
    ) -> tuple[Context, Int[Array, ""]]:
        """With two neighbours in the older one's slot if the bank was full; the other's slot."""
        centre, span = context.memory["centre"], context.memory["span"]
        per_frame = context.valid.shape[2]
        order = jnp.argsort(centre).astype(jnp.int32)
        age = (frame.astype(jnp.float32) + 1 - centre[order]) ** self.fade
        pair = jnp.argmin(age[:-1] - age[1:])
        a, b = order[pair], order[pair + 1]
        anchor = pair == 0

        there = jnp.stack([context.valid[:, a], context.valid[:, b]])
        weight = jnp.stack([span[a], span[b]]) ** 0.5
        weight = jnp.where(anchor, jnp.array([1.0, 0.0]), weight)
        weight = weight[:, None, None] * there.astype(jnp.float32)
        weight = weight / jnp.maximum(jnp.sum(weight, axis=0, keepdims=True), 1e-12)
        some = there[0] | (there[1] & ~anchor)

        def mean(first: Array, second: Array, w: Array) -> Array:
            both = w[0] * first.astype(jnp.float32) + w[1] * second.astype(jnp.float32)
            return jnp.where(full, both.astype(first.dtype), first)

        def merge(layer: Array, values: KV) -> KV:
            merged = []
            for past in values:
                one, two = (buffer.frames_at(past, at, per_frame, layer=layer) for at in (a, b))
                new = mean(one, two, weight[:, None, :, :, None, None])
                merged.append(buffer.put_frames(past, new, a, per_frame, layer))
            return KV(*merged)

        k, v = buffer.each_layer(merge, context.keys_values)
        tokens = mean(context.tokens[:, a], context.tokens[:, b], weight[..., None])
        total = span[a] + span[b]
        middle = (span[a] * centre[a] + span[b] * centre[b]) / jnp.maximum(total, 1)
        middle = jnp.where(anchor, 0.0, middle)
        memory = {
            "centre": centre.at[a].set(jnp.where(full, middle, centre[a])),
            "span": span.at[a].set(jnp.where(full, total, span[a])),
        }
        return dataclasses.replace(
            context, k=k, v=v, memory=memory, tokens=context.tokens.at[:, a].set(tokens),
            valid=context.valid.at[:, a].set(jnp.where(full, some, context.valid[:, a])),
            frame=context.frame.at[a].set(context.frame[jnp.where(full & ~anchor, b, a)]),
        ), b  # fmt: skip
