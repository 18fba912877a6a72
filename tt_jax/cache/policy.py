"""What a cache policy is: what a model is shown of its past, apart from what TokenTrim drops.

A policy is a frozen dataclass of static settings; all that changes stands in the `Context` it is
given, its own arrays in `Context.memory`. Shapes never change. Each published one is a file here.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tt_jax.cache import buffer
from tt_jax.cache.buffer import Context
from tt_jax.models.dit import KV, Read, reader
from tt_jax.nn.rope import rotation


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Policy:
    """The interface; a policy overrides what is its own. All frames are latent frames."""

    # What can be done at a prompt switch, the default first.
    switches: ClassVar[tuple[str, ...]] = ("none",)

    @property
    def sinks(self) -> int:
        """Frames at the start of the video that are never evicted, nor pruned by TokenTrim."""
        return 0

    @property
    def rotated(self) -> bool:
        """Whether keys are cached rotated, at their frames' absolute positions."""
        return False

    @property
    def repeats_noise(self) -> bool:
        """Whether every chunk begins from the same noise."""
        return False

    def check(self, chunk: int) -> None:
        """Raises ValueError if chunks of so many frames don't go with the settings."""

    def slots(self, chunk: int) -> int:
        """Frames of the buffer, beside a chunk of so many."""
        raise NotImplementedError

    def start(self, context: Context, chunk: int) -> Context:
        """An empty buffer with the policy's own arrays."""
        return context

    def begin(
        self,
        context: Context,
        frame: Int[Array, ""],
        size: int,
        grid: tuple[int, int],
        first: Callable[[Any, Read], Any],
    ) -> Context:
        """The context that a chunk is made with, before any of its attempts: the same whenever the
        chunk is made again.

        first: makes the chunk's first denoising pass with a past and a `Read`, and returns what the
            latter returns of each layer. Other arguments as in `read`.
        """
        return context

    def positions(
        self, context: Context, frame: Int[Array, ""], size: int
    ) -> tuple[Int[Array, " f"], Int[Array, " s"] | None]:
        """Rotary positions of the next `size` frames, the first of which is `frame` of the video,
        and of the slots (None: their keys are rotated already)."""
        # The present ones are counted in the order of the video, from 0.
        return jnp.sum(context.filled) + jnp.arange(size), buffer.ranks(context)

    def read(
        self,
        context: Context,
        valid: Bool[Array, "b s p"],
        frame: Int[Array, ""],
        size: int,
        grid: tuple[int, int],
    ) -> tuple[Any, Read]:
        """The past, its arrays with a leading axis of layers, and how a layer reads it.

        valid: which entries may be attended. grid: rows and columns of a frame's tokens. The read
        returns of each layer what `accept` takes; other arguments as in `positions`.
        """
        own, past = self.positions(context, frame, size)
        width = context.k.shape[-1]
        return context.keys_values, reader(
            rotation(own, *grid, width),
            buffer.attention_mask(valid, size * valid.shape[2]),
            None if past is None else rotation(past, *grid, width),
            self.rotated,
        )

    def accept(
        self,
        context: Context,
        own: Any,
        tokens: Float[Array, "b f p d"],
        frames: Int[Array, " f"],
    ) -> Context:
        """The context with a finished chunk; evicts and summarises what it replaces.

        own: what the pass at noise level 0 returned of the layers; keys and values unless the
            policy reads in its own way. tokens: the chunk's latent tokens. frames: their numbers in
            the video.
        """
        return buffer.append(context, KV(*own), tokens, frames)

    def switch(
        self,
        context: Context,
        frame: Int[Array, ""],
        how: str,
        encode: Callable[[Float[Array, "b f p d"], Any, Read], Any],
        grid: tuple[int, int],
    ) -> Context:
        """The context as the next chunk, of another prompt, shall find it.

        how: one of `switches`; "none" leaves all as it is. encode: a pass at noise level 0 over
            latent tokens under the new prompt, by a past and a `Read`; returns what that returns.
        """
        return context


def check_window(frames: int, sink: int, chunk: int) -> None:
    """Raises ValueError unless a window of `frames` has room for sinks, past and a chunk."""
    if sink < 0:
        raise ValueError(f"sink must be at least 0, not {sink}.")
    if frames <= sink + chunk:
        raise ValueError(
            f"a window of {frames} frames must be longer than sink plus chunk, {sink} + {chunk}."
        )
