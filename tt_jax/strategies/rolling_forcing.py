"""Rolling Forcing (arXiv 2509.25161): a window of blocks at staggered noise levels rolls over the
video, and each pass takes all of them one level down.

Where transformer, context and TokenTrim meet. Axes as in `context` and `drift`.
"""

import dataclasses
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from tt_jax.cache import buffer
from tt_jax.cache.buffer import Context
from tt_jax.models.dit import KV, DiT
from tt_jax.nn.layers import wide
from tt_jax.strategies.flowmo import FlowMo
from tt_jax.strategies.judge import judge
from tt_jax.strategies.schedule import SHIFT, check_shift, check_steps, time_sinusoid, warp
from tt_jax.strategies.state import Flight, Record, State, draw_noise, empty_state
from tt_jax.trim import drift as measure
from tt_jax.trim.tokentrim import TokenTrim

SPAN = 21  # frames that one pass attends to at most, its own included
NEVER = np.iinfo(np.int32).max


@dataclasses.dataclass(frozen=True)
class RollingForcing:
    """A window of blocks at staggered noise levels (Rolling Forcing, arXiv 2509.25161).

    A pass attends to the window, to the first block of the video (the anchor, moved to the frames
    right before what is attended next to it) and to the latest finished blocks, 21 frames in all.

    TokenTrim judges the block that leaves the window: its drift is measured against the block that
    left before it, and where that is abnormal, the window's pass is made again, all its blocks,
    with the pruned context. Only the recent context is pruned, never the anchor.

    Args:
        steps: 2 to 6 nominal denoising steps of 1000, descending. Window w holds the blocks w - 4
            (about to be finished) to w (pure noise), as far as the video has them.
        shift: what warps the steps into noise levels, a number of the model (Wan's is 5); None
            takes them as they stand.
        guidance: FlowMo's, of all blocks of the window while they are denoised.

    Raises:
        ValueError: steps out of their range, or guidance of a fraction of them.
    """

    steps: tuple[int, ...] = (1000, 800, 600, 400, 200)
    guidance: FlowMo | None = None
    shift: float | None = SHIFT

    chunk: ClassVar[int] = 3  # frames of a block
    # Frames of the context: the anchor, and the 18 that precede a finished block in its span.
    slots: ClassVar[int] = SPAN

    def __post_init__(self) -> None:
        check_shift(self.shift)
        most = SPAN // self.chunk - 1
        object.__setattr__(self, "steps", check_steps(self.steps))
        if not 2 <= len(self.steps) <= most:
            raise ValueError(f"Rolling Forcing has 2 to {most} steps, not {len(self.steps)}.")
        if self.guidance is not None and not isinstance(self.guidance, FlowMo):
            raise ValueError(f"guidance must be a FlowMo, not {self.guidance!r}.")
        if self.guidance is not None and self.guidance.fraction != FlowMo.fraction:
            raise ValueError(
                "Rolling Forcing has all levels in one window and guides all of it: leave FlowMo's "
                "fraction out."
            )

    @property
    def lag(self) -> int:
        """Steps from a block's first to the one that finishes it."""
        return len(self.steps) - 1

    @property
    def pass_frames(self) -> int:
        """Frames that one pass denoises."""
        return len(self.steps) * self.chunk

    def start(self, dit: DiT, batch: int, grid: tuple[int, int], key: Key[Array, "*keys"]) -> State:
        """The state before the first window.

        Args:
            dit: the transformer.
            batch: number of samples.
            grid: height and width of the latents.
            key: source of all noise.

        Returns:
            A state without any frame and with nothing in its window.
        """
        # Keys are cached without rotation: where the anchor stands changes from window to window.
        slots, sink = self.slots, self.chunk
        state = empty_state(dit, batch, grid, key, slots=slots, sink=sink, strategy=self)
        frames = self.lag * self.chunk
        x0 = jnp.zeros((batch, frames, *grid, dit.config.channels), state.summary.dtype)
        flight = Flight(x0, jnp.asarray(NEVER, jnp.int32))
        return dataclasses.replace(state, frame=state.frame - frames, flight=flight)

    def condition(
        self,
        dit: DiT,
        text: KV,
        state: State,
        initial: Float[Array, "b f h w c"],
        remat: bool = False,
    ) -> State:
        """Takes given frames as the finished first block.

        Args:
            dit: the transformer.
            text: from its `encode_text`.
            state: from `start`.
            initial: the block's frames.
            remat: as in `step`.

        Returns:
            The state before the first window, after that block.
        """
        context = self._remember(
            dit, text, dataclasses.replace(state, frame=jnp.zeros_like(state.frame)), initial, remat
        )
        return dataclasses.replace(
            state,
            context=context,
            summary=measure.summary(measure.frame_tokens(initial, dit.config.patch)),
            seen=jnp.ones((), bool),
            frame=state.frame + self.chunk,
        )

    def close(self, state: State) -> State:
        """Lets no new block enter the window from here on.

        Args:
            state: before the next window.

        Returns:
            The state whose further windows only finish what they hold.
        """
        return dataclasses.replace(state, flight=Flight(_flight(state).x0, state.chunk))

    def check(self, chunks: int, trim: TokenTrim, given: int) -> None:
        """Refuses a rollout that can't be.

        Args:
            chunks: blocks, those in flight of a rollout that is continued included.
            trim: TokenTrim's settings.
            given: latent frames to start from.

        Raises:
            ValueError: there are fewer blocks than steps, the given frames aren't one block, or
                TokenTrim is to measure a first step or to prune the anchor.
        """
        if chunks < len(self.steps):
            raise ValueError(
                f"Rolling Forcing makes at least {len(self.steps)} blocks of {self.chunk} latent "
                f"frames, not {chunks}."
            )
        if given not in (0, self.chunk):
            raise ValueError(
                f"Rolling Forcing starts from nothing or from {self.chunk} latent frames, "
                f"not {given}."
            )
        if trim.when != "final":
            raise ValueError(
                'Rolling Forcing finishes a block in one pass: leave TokenTrim\'s when "final".'
            )
        if trim.prune_sink:
            raise ValueError("Rolling Forcing never prunes its anchor: leave prune_sink out.")

    def noise(
        self, state: State, shape: tuple[int, ...], attempt: int = 0
    ) -> Float[Array, "steps b f h w c"]:
        """Noise of the next window: step s is that of block w - s.

        As in Self Forcing, noise is the block's.

        Args:
            state: before the window.
            shape: `[B, F, h, w, C]` of one block.
            attempt: number of the attempt, from 0; a further one goes on counting steps.

        Returns:
            Standard normal noise in the latents' dtype.
        """
        steps = jnp.arange(len(self.steps), dtype=jnp.int32)
        first = attempt * len(self.steps)
        dtype = state.summary.dtype
        return draw_noise(state.key, state.chunk - steps, first + steps, shape, dtype)

    def replay(
        self, noise: Float[Array, "blocks steps b f h w c"], fresh: bool
    ) -> Float[Array, "windows steps b f h w c"]:
        """Recorded noise as `noise` gives it to the windows.

        Args:
            noise: block by block; the first blocks are those in flight unless `fresh`.
            fresh: whether the rollout starts, and doesn't continue one.

        Returns:
            The noise of each window.
        """
        blocks, steps = noise.shape[:2]
        windows = blocks + (self.lag if fresh else 0)
        first = 0 if fresh else self.lag
        block = first + np.arange(windows)[:, None] - np.arange(steps)
        # Blocks that the video doesn't have are masked out, whatever their noise.
        return noise[np.clip(block, 0, blocks - 1), np.arange(steps)]

    def step(
        self,
        dit: DiT,
        text: KV,
        state: State,
        noise: Float[Array, "steps b f h w c"],
        trim: TokenTrim,
        remat: bool = False,
    ) -> tuple[State, Float[Array, "b f h w c"], Record]:
        """Denoises one window by one level; judges and remembers the block that leaves it.

        Args:
            dit: the transformer.
            text: from its `encode_text`.
            state: before the window.
            noise: from `noise`.
            trim: TokenTrim's settings.
            remat: recompute activations in the backward pass.

        Returns:
            The state after the window, the block that left it and its record; the latter two have
            no meaning for a window that isn't full yet (the first four).
        """
        size, flight, patch = self.chunk, _flight(state), dit.config.patch
        leaves = state.chunk >= self.lag
        window = self._denoise(dit, text, state, remat)

        def denoise(valid: Array, noise: Array) -> Array:
            # Always true, which XLA can't know: an attempt is a program of its own, the same bit
            # for bit whatever surrounds it (in Self Forcing the scan over the steps is).
            shape = (noise.shape[1], self.pass_frames, *noise.shape[3:])
            nothing = jnp.zeros_like(noise, shape=shape)
            return jax.lax.cond(state.chunk >= 0, window, lambda *_: nothing, valid, noise)

        redraw = partial(self.noise, state, noise.shape[1:])
        seen = state.seen & leaves
        kept, record, judged = judge(
            trim, dataclasses.replace(state, seen=seen), denoise, noise, redraw, patch, size
        )
        x0 = kept.x0[:, :size]
        context = jax.lax.cond(
            leaves,
            lambda: self._remember(dit, text, judged, x0, remat),
            lambda: judged.context,
        )
        state = dataclasses.replace(
            judged,
            context=context,
            summary=jnp.where(leaves, judged.summary, state.summary),
            seen=state.seen | leaves,
            frame=state.frame + size,
            chunk=state.chunk + 1,
            flight=Flight(kept.x0[:, size:], flight.end),
        )
        return state, x0, record

    def _denoise(self, dit: DiT, text: KV, state: State, remat: bool):
        """The window's pass: from the context's mask and noise to every block's x0."""
        size, context, flight = self.chunk, state.context, _flight(state)
        block = state.chunk - self.lag + jnp.arange(len(self.steps), dtype=jnp.int32)
        present = (block >= 0) & (block < flight.end)
        own = jnp.repeat(present, size * context.valid.shape[2])
        frames = state.frame + jnp.arange(len(block) * size, dtype=jnp.int32)

        # The window's first frame; recent frames that are attended; where the anchor then stands.
        start = state.frame + size * jnp.sum(block < 0, dtype=jnp.int32)
        held = jnp.sum(present, dtype=jnp.int32)
        working = jnp.minimum(SPAN - size * (held + 1), start - size)
        anchor = context.frame < size
        attended = anchor | (context.frame >= start - working)
        positions = context.frame + jnp.where(anchor, start - working - size, 0)

        # One level for each block of the window, the newest the noisiest.
        levels = np.repeat(np.array(warp(self.steps, self.shift))[::-1], size)
        sinusoid = jnp.asarray(time_sinusoid(levels[None], dit.config.freq_dim))
        newest = jnp.zeros_like(flight.x0[:, :size])
        x0 = jnp.concatenate([flight.x0, newest], axis=1)
        sigma = jnp.asarray(levels, x0.dtype)[None, :, None, None, None]

        def denoise(valid: Bool[Array, "b s p"], noise: Array) -> Float[Array, "b f h w c"]:
            mask = buffer.attention_mask(valid & attended[None, :, None], len(own))
            mask = mask.at[..., -len(own) :].set(own)
            # Step s is the noise of the block that comes s-th from the end.
            noise = jnp.moveaxis(noise[::-1], 0, 1).reshape(x0.shape)

            def predict(noisy: Array) -> Array:
                recompute = remat or self.guidance is not None
                return dit(
                    noisy, sinusoid, text, frames, context.keys_values, mask,
                    positions=positions, remat=recompute,
                )[0]  # fmt: skip

            noisy = (1 - sigma) * x0 + sigma * noise
            if self.guidance is None:
                flow = predict(noisy)
            else:
                everywhere = self.guidance.chunks == "all"
                active = jnp.asarray(everywhere) | (state.chunk <= self.lag)
                inside = jnp.repeat(present, size)
                noisy, flow = self.guidance.guide(predict, noisy, active, inside)
            return noisy - sigma * wide(flow)

        return denoise

    def _remember(
        self, dit: DiT, text: KV, state: State, x0: Float[Array, "b f h w c"], remat: bool
    ) -> Context:
        """The context with a finished block, by one pass at noise level 0 over the last 21 frames;
        the anchor is attended only where it is among them, at its own frames."""
        context = state.context
        frames = state.frame + jnp.arange(self.chunk, dtype=jnp.int32)
        attended = context.frame >= state.frame + self.chunk - SPAN
        own = self.chunk * context.valid.shape[2]
        mask = buffer.attention_mask(context.valid & attended[None, :, None], own)
        sinusoid = jnp.asarray(time_sinusoid(np.zeros((1, self.chunk)), dit.config.freq_dim))
        _, kv = dit(
            x0, sinusoid, text, frames, context.keys_values, mask,
            positions=context.frame, remat=remat,
        )  # fmt: skip
        return buffer.append(context, kv, measure.frame_tokens(x0, dit.config.patch), frames)


def _flight(state: State) -> Flight:
    if state.flight is None:
        raise ValueError("Rolling Forcing can't continue what another strategy began.")
    return state.flight
