"""A window of the most recent frames, with the video's first ones as sinks."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from tt_jax.cache.buffer import Context
from tt_jax.cache.policy import Policy, check_window


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Window(Policy):
    """The most recent frames, and the video's first ones for good (Self Forcing, arXiv 2506.08009;
    with sinks LongLive, arXiv 2509.22622).

    The cache holds `frames - chunk` frames; nothing is computed beside attention, and neither
    memory nor time grow with the video. Positions have no end.

    Attributes:
        frames: that attention spans, the chunk itself included, so `frames - chunk` past frames
            stay, the first `sink` of the video always among them.
        sink: frames at the start of the video that are never evicted.
        relative: count rotary positions from the first frame of the window instead of the video's.
            Attention only knows differences of positions, so this matters with a sink: its frames
            then stand right before the recent ones, as in a video that is no longer than the
            window, where absolute positions move away from them without end. Keys are cached
            without rotation.
    """

    frames: int = 21
    sink: int = 0
    relative: bool = False

    @property
    def sinks(self) -> int:
        return self.sink

    @property
    def rotated(self) -> bool:
        return not self.relative

    def check(self, chunk: int) -> None:
        check_window(self.frames, self.sink, chunk)

    def slots(self, chunk: int) -> int:
        return self.frames - chunk

    def positions(
        self, context: Context, frame: Int[Array, ""], size: int
    ) -> tuple[Int[Array, " f"], Int[Array, " s"] | None]:
        if self.relative:
            return super().positions(context, frame, size)
        return frame + jnp.arange(size, dtype=jnp.int32), None
