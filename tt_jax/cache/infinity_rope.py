"""Infinity-RoPE: positions that never leave the window, a flush and a cut at prompt switches."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tt_jax.cache import buffer
from tt_jax.cache.buffer import Context
from tt_jax.cache.policy import Policy, check_window
from tt_jax.models.dit import Read


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class InfinityRope(Policy):
    """A short window with relative positions (Infinity-RoPE, arXiv 2511.20649).

    Between switches it is `Window(frames, sink, relative=True)`, at that cost: `frames - chunk`
    cached frames, nothing computed beside attention, videos without end.

    At a prompt switch, "flush" keeps the sinks and the newest `kept` frames as they are; with the
    published window that is what eviction keeps anyway, so that only the text changes. "cut"
    flushes, and moves the first chunk of the new scene to the frames from `cut` on.

    Where the original counts the slots of a buffer that isn't full yet (a flush in the first
    chunks, which reads zeros; one in a longer window, which leaves queries and keys at different
    positions), this keeps the frames there are, and a chunk's queries beside its keys.

    Attributes:
        frames: that attention spans, the chunk included.
        sink: first frames that always stay.
        kept: newest frames that stay at a flush.
        cut: where the first chunk of a new scene stands.
    """

    frames: int = 6
    sink: int = 1
    kept: int = 2
    cut: int = 45

    switches: ClassVar[tuple[str, ...]] = ("flush", "cut", "none")

    @property
    def sinks(self) -> int:
        return self.sink

    def check(self, chunk: int) -> None:
        check_window(self.frames, self.sink, chunk)

    def slots(self, chunk: int) -> int:
        return self.frames - chunk

    def start(self, context: Context, chunk: int) -> Context:
        # Whether the next chunk stands behind a cut.
        return dataclasses.replace(context, memory={"cut": jnp.zeros((), bool)})

    def positions(
        self, context: Context, frame: Int[Array, ""], size: int
    ) -> tuple[Int[Array, " f"], Int[Array, " s"] | None]:
        own, past = super().positions(context, frame, size)
        return jnp.where(
            context.memory["cut"], self.cut + jnp.arange(size, dtype=jnp.int32), own
        ), past

    def accept(
        self,
        context: Context,
        own: Any,
        tokens: Float[Array, "b f p d"],
        frames: Int[Array, " f"],
    ) -> Context:
        context = super().accept(context, own, tokens, frames)
        return dataclasses.replace(context, memory={"cut": jnp.zeros((), bool)})

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
        old = (context.frame >= self.sink) & (context.frame < frame - self.kept)
        context = buffer.drop(context, old)
        return dataclasses.replace(context, memory={"cut": jnp.asarray(how == "cut")})
