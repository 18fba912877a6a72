"""Rolling Sink: the video's beginning, forwards and backwards, stands for its past."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tt_jax.cache import buffer
from tt_jax.cache.buffer import Context
from tt_jax.cache.policy import Policy, check_window
from tt_jax.models.dit import KV


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class RollingSink(Policy):
    """A full window, all but its newest chunk replayed from the first (Rolling Sink, 2602.07775).

    A chunk sees itself, the chunk before it, and for everything older the first W = `frames -
    chunk` frames of the video, run through forwards and backwards as a triangle wave: at frame f
    stands frame r of the archive, or W - 1 - r on every second run, r = f mod W, at the position f.
    Until frame W the wave is the video itself.

    Caches `frames - chunk` frames and as many in the archive; copies `chunk` frames a chunk.
    Positions are the video's own and have no end. TokenTrim drops entries of the newest chunk and,
    before the wave, of any frame; what is dropped from a frame of the archive stays so, and the
    replayed ones are sinks: exempt.

    Attributes:
        frames: that attention spans, the chunk included.
        same_noise: every chunk begins from the first one's noise (re-noising draws stay fresh), as
            published; recorded noise isn't touched.
    """

    frames: int = 21
    same_noise: bool = True

    @property
    def repeats_noise(self) -> bool:
        return self.same_noise

    def check(self, chunk: int) -> None:
        check_window(self.frames, 0, chunk)

    def slots(self, chunk: int) -> int:
        return self.frames - chunk

    def start(self, context: Context, chunk: int) -> Context:
        memory = {name: getattr(context, name) for name in ("k", "v", "tokens", "valid")}
        slots = context.frame.shape[0]
        return dataclasses.replace(context, memory=memory, exempt=jnp.zeros((slots,), bool))

    def positions(
        self, context: Context, frame: Int[Array, ""], size: int
    ) -> tuple[Int[Array, " f"], Int[Array, " s"] | None]:
        return frame + jnp.arange(size, dtype=jnp.int32), context.frame

    def accept(
        self,
        context: Context,
        own: Any,
        tokens: Float[Array, "b f p d"],
        frames: Int[Array, " f"],
    ) -> Context:
        size, (slots, per_frame) = len(frames), context.valid.shape[1:]
        archive = dict(context.memory)
        # Frames that are still themselves: what was dropped from them is never replayed.
        first = (context.frame == jnp.arange(slots, dtype=jnp.int32))[None, :, None]
        archive["valid"] = jnp.where(first, context.valid, archive["valid"])

        context = buffer.append(context, KV(*own), tokens, frames)
        exempt = context.exempt
        put_row, put = (
            jax.lax.dynamic_update_slice_in_dim,
            jax.lax.dynamic_update_index_in_dim,
        )
        for i in range(size):
            begins, at = frames[i] < slots, frames[i] % slots
            for name in ("k", "v"):
                old = buffer.frames_at(archive[name], at, per_frame)
                new = buffer.frames_at(getattr(context, name), at, per_frame)
                new = jnp.where(begins, new, old)
                archive[name] = put_row(archive[name], new, at * per_frame, 2)
            for name in ("tokens", "valid"):
                new, old = getattr(context, name)[:, at], archive[name][:, at]
                archive[name] = put(archive[name], jnp.where(begins, new, old), at, 1)
            exempt = put(exempt, jnp.zeros((), bool), at, 0)

        assert exempt is not None  # `start` made it
        for i in range(size):
            frame = frames[i] - size
            replays, at = frame >= slots, frame % slots
            run, step = jnp.divmod(frame, slots)
            source = jnp.where(run % 2 == 0, step, slots - 1 - step)
            values = {}
            for name in ("k", "v"):
                past = getattr(context, name)
                new = buffer.frames_at(archive[name], source, per_frame)
                new = jnp.where(replays, new, buffer.frames_at(past, at, per_frame))
                values[name] = put_row(past, new, at * per_frame, 2)
            for name in ("tokens", "valid"):
                past = getattr(context, name)
                new = jnp.where(replays, archive[name][:, source], past[:, at])
                values[name] = put(past, new, at, 1)
            exempt = put(exempt, exempt[at] | replays, at, 0)
            context = dataclasses.replace(context, **values)
        return dataclasses.replace(context, memory=archive, exempt=exempt)
