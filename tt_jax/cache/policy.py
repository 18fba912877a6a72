"""What a cache policy is: what a model is shown of its past, apart from what TokenTrim drops.

A policy is a frozen dataclass of static settings; all that changes stands in the `Context` it is
given, its own arrays in `Context.memory`. Shapes never change. Each published one is a file here.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from tt_jax.cache import buffer
from tt_jax.cache.buffer import Context
from tt_jax.models.dit import KV, Read, in_place, reader
from tt_jax.nn.rope import rotation, rotation_at


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Policy:
    """The interface; a policy overrides what is its own. All frames are latent frames.

    Attributes:
        past_weight: how much a key of the past weighs in the softmax beside one of the chunk's own
            or of the first cached frame, ln(past_weight) added to its logit (Krea Realtime, whose
            demo has 0.3; 1 is off). Attention is XLA's then, on every device.
        base_spread: every head's base of rotary time is 10000 (1 + base_spread eps), eps uniform
            in -1 to 1, one draw for all layers (LoL, arXiv 2601.16914, which has 0.8; 0 is off).
    """

    past_weight: float = dataclasses.field(default=1.0, kw_only=True)
    base_spread: float = dataclasses.field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        if not self.past_weight > 0:
            raise ValueError(f"past_weight must be above 0, not {self.past_weight}.")
        if not 0 <= self.base_spread < 1:
            raise ValueError(f"base_spread must be from 0 to below 1, not {self.base_spread}.")

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
        """A buffer with the policy's own arrays.

        Args:
            context: an empty buffer.
            chunk: frames of a chunk.
        """
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

        Args:
            context: what the chunks before left.
            frame: the chunk's first frame of the video.
            size: its frames.
            grid: rows and columns of a frame's tokens.
            first: makes the chunk's first denoising pass with a past and a `Read`, and returns what
                the latter returns of each layer.
        """
        return context

    def positions(
        self, context: Context, frame: Int[Array, ""], size: int
    ) -> tuple[Int[Array, " f"], Int[Array, " s"] | None]:
        """Rotary positions, counted in latent frames.

        Args:
            context: the cache.
            frame: the next chunk's first frame of the video.
            size: its frames.

        Returns:
            Those of the chunk's frames, and those of the slots (None: their keys are rotated).
        """
        # The present ones are counted in the order of the video, from 0.
        count = jnp.sum(context.filled, dtype=jnp.int32)
        return count + jnp.arange(size, dtype=jnp.int32), buffer.ranks(context)

    def read(
        self,
        context: Context,
        valid: Bool[Array, "b s p"],
        frame: Int[Array, ""],
        size: int,
        grid: tuple[int, int],
    ) -> tuple[Any, Read]:
        """How a pass reads the cache.

        Args:
            context: the cache.
            valid: which of its entries may be attended.
            frame: the chunk's first frame of the video.
            size: its frames.
            grid: rows and columns of a frame's tokens.

        Returns:
            The past, its arrays with a leading axis of layers, and how a layer reads it: a `Read`,
            which returns of each layer what `accept` takes.
        """
        own, past = self.positions(context, frame, size)
        shape, tokens, held = context.k.shape[3:], size * valid.shape[2], context.keys_values
        mask, bias = buffer.attention_mask(valid, tokens), self.bias(context, size)
        turn = None if past is None else self.turn(past, grid, shape)
        here = in_place(held, tokens, mask, turn is None, bias)
        read = reader(
            self.turn(own, grid, shape), mask, turn, self.rotated, bias, held if here else None
        )
        return jnp.arange(len(held.k), dtype=jnp.int32) if here else held, read

    def turn(
        self,
        frames: Int[Array, "..."],
        grid: tuple[int, int],
        shape: tuple[int, ...],
        places: Int[Array, "..."] | None = None,
    ) -> tuple[Array, Array]:
        """Rotary embedding with the policy's bases of time.

        Args:
            frames: positions in time, of frames or of tokens.
            grid: rows and columns of a frame's tokens.
            shape: the heads' number and width.
            places: the tokens' places in their frame, row by row; all places of each frame if not
                given.

        Returns:
            Cosines and sines, as `rotate` takes them.
        """
        heads, width = shape
        bases = None
        if self.base_spread:
            eps = np.random.default_rng(0).uniform(-1, 1, heads)
            bases = tuple(10000.0 * (1 + self.base_spread * eps))
        if places is None:
            return rotation(frames, *grid, width, bases)
        return rotation_at(frames, places, *grid, width, bases)

    def bias(self, context: Context, size: int) -> Float[Array, " keys"] | None:
        """What `past_weight` adds to the logits.

        Args:
            context: the cache.
            size: frames of the chunk.

        Returns:
            One number for each key, the buffer's and then the chunk's own; None for nothing.
        """
        if self.past_weight == 1:
            return None
        first = context.filled & (buffer.ranks(context) == 0)
        past = jnp.where(first, 0.0, math.log(self.past_weight))
        whole = jnp.concatenate([past, jnp.zeros((size,))])
        return jnp.repeat(whole, context.valid.shape[2])

    def accept(
        self,
        context: Context,
        own: Any,
        tokens: Float[Array, "b f p d"],
        frames: Int[Array, " f"],
    ) -> Context:
        """The context with a finished chunk; evicts and summarises what it replaces.

        Args:
            context: the cache.
            own: what the pass at noise level 0 returned of the layers; keys and values unless the
                policy reads in its own way.
            tokens: the chunk's latent tokens.
            frames: their numbers in the video.
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

        Args:
            context: the cache.
            frame: the next chunk's first frame of the video.
            how: one of `switches`; "none" leaves all as it is.
            encode: a pass at noise level 0 over latent tokens under the new prompt, by a past and a
                `Read`; returns what that returns.
            grid: rows and columns of a frame's tokens.
        """
        return context


def check_window(frames: int, sink: int, chunk: int) -> None:
    """Refuses a window without room for sinks, past and a chunk.

    Args:
        frames: that attention spans, the chunk included.
        sink: how many of them are sinks.
        chunk: frames of a chunk.

    Raises:
        ValueError: if there is no room, or `sink` is negative.
    """
    if sink < 0:
        raise ValueError(f"sink must be at least 0, not {sink}.")
    if frames <= sink + chunk:
        raise ValueError(
            f"a window of {frames} frames must be longer than sink plus chunk, {sink} + {chunk}."
        )
