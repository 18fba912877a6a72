"""LongLive: a window with sinks, whose cache is made anew when the prompt changes."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tt_jax.cache.buffer import Context, frames_at
from tt_jax.cache.policy import check_window
from tt_jax.cache.window import Window
from tt_jax.models.dit import KV, Read, reader


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class LongLive(Window):
    """`Window` with sinks, and "recache" at a prompt switch (LongLive 1.0, arXiv 2509.22622).

    A re-cache is one pass at noise level 0 over the latest `frames` latent frames under the new
    prompt, each of them seeing all (the published code has a mask and ignores it). Its keys and
    values take the places of the old ones; the sinks stay as the old prompt made them if
    `keep_sink`, and if the video is longer than the window, else they are made anew too: from then
    on they are the first of the frames that were encoded.

    Costs a `Window`'s, the latest latents (small), and one pass over `frames` at a switch. What
    TokenTrim dropped stays dropped. Positions have no end; with `relative` it is the original's
    "infinite attention".

    Attributes:
        frames: that attention spans, the chunk included.
        sink: first frames that always stay.
        relative: as `Window`'s.
        keep_sink: a re-cache leaves the sinks of a long video as they are.
    """

    frames: int = 12
    sink: int = 3
    relative: bool = False
    keep_sink: bool = True

    switches: ClassVar[tuple[str, ...]] = ("recache", "none")

    def check(self, chunk: int) -> None:
        check_window(self.frames, self.sink, chunk)

    def start(self, context: Context, chunk: int) -> Context:
        batch, slots, per_frame, width = context.tokens.shape
        recent = (batch, self.frames, per_frame)
        memory = {
            # Of the latest frames, each in slot `frame % frames`.
            "tokens": jnp.zeros((*recent, width), context.tokens.dtype),
            "valid": jnp.zeros(recent, bool),
        }
        sinks = jnp.arange(slots, dtype=jnp.int32) < self.sink
        return dataclasses.replace(context, exempt=sinks, memory=memory)

    def accept(
        self,
        context: Context,
        own: Any,
        tokens: Float[Array, "b f p d"],
        frames: Int[Array, " f"],
    ) -> Context:
        memory = self._pruned(context)
        at = frames % self.frames
        memory = {
            "tokens": memory["tokens"].at[:, at].set(tokens.astype(memory["tokens"].dtype)),
            "valid": memory["valid"].at[:, at].set(True),
        }
        return dataclasses.replace(super().accept(context, own, tokens, frames), memory=memory)

    def _pruned(self, context: Context) -> dict[str, Array]:
        """What is kept of the latest frames, less what was dropped from the slots."""
        memory = context.memory
        dropped = context.filled[None, :, None] & ~context.valid
        at = jnp.where(context.filled & (context.frame >= self.sink), context.frame, 0)
        hidden = (
            jnp.zeros_like(memory["valid"])
            .at[:, at % self.frames]
            .max(dropped & (context.frame >= self.sink)[None, :, None])
        )
        return memory | {"valid": memory["valid"] & ~hidden}

    def switch(
        self,
        context: Context,
        frame: Int[Array, ""],
        how: str,
        encode: Callable[[Float[Array, "b f p d"], Any, Read], Any],
        grid: tuple[int, int],
    ) -> Context:
        if how == "none":
            return context
        slots, per_frame = context.valid.shape[1:]
        shape, count = context.k.shape[3:], self.frames
        memory = self._pruned(context)
        # Frames of the pass; negative ones aren't there yet.
        number = frame - count + jnp.arange(count, dtype=jnp.int32)
        tokens = memory["tokens"][:, number % count]
        there = memory["valid"][:, number % count]
        sink_stays = jnp.asarray(self.keep_sink) & (frame > count)
        there &= ~sink_stays | (jnp.arange(count, dtype=jnp.int32) >= self.sink)[None, :, None]
        sinks = context.valid[:, : self.sink] & sink_stays
        batch = len(sinks)
        mask = jnp.concatenate([sinks.reshape(batch, -1), there.reshape(batch, -1)], 1)[:, None]
        end = self.sink * per_frame
        past = KV(context.k[:, :, :end], context.v[:, :, :end])
        shift = jnp.maximum(frame - count, 0) if self.relative else 0
        own, old = jnp.maximum(number - shift, 0), jnp.arange(self.sink, dtype=jnp.int32)
        turn_old = self.turn(old, grid, shape) if self.relative else None
        read = reader(self.turn(own, grid, shape), mask, turn_old, self.rotated)
        k, v = encode(tokens, past, read)

        values, frames = {"k": context.k, "v": context.v}, context.frame
        now = {"tokens": context.tokens, "valid": context.valid}
        for slot in range(slots):
            first = frame - count + slot  # what becomes a sink in the video's further course
            wanted = jnp.where(frame > count, first, slot) if slot < self.sink else frames[slot]
            keep = ~context.filled[slot] | (sink_stays if slot < self.sink else False)
            index, part = wanted - number[0], slice(slot * per_frame, (slot + 1) * per_frame)
            for name, new in (("k", k), ("v", v)):
                new = frames_at(new, index, per_frame).astype(values[name].dtype)
                new = jnp.where(keep, values[name][:, :, part], new)
                values[name] = values[name].at[:, :, part].set(new)
            for name, new in (("tokens", tokens), ("valid", there)):
                new = jnp.where(keep, now[name][:, slot], new[:, index])
                now[name] = now[name].at[:, slot].set(new)
            frames = frames.at[slot].set(jnp.where(keep, frames[slot], wanted))
        return dataclasses.replace(context, **values, **now, frame=frames, memory=memory)
