"""Self Forcing (arXiv 2506.08009): one chunk at a time, each from noise in a few steps.

Where transformer, context and TokenTrim meet. Axes as in `context` and `drift`.
"""

import dataclasses
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from tt_jax.cache.policy import Policy
from tt_jax.cache.window import Window
from tt_jax.models.dit import KV, DiT, Read
from tt_jax.nn.layers import unpatchify, wide
from tt_jax.settings import truth, whole
from tt_jax.strategies.flowmo import FlowMo
from tt_jax.strategies.judge import judge
from tt_jax.strategies.schedule import SHIFT, check_shift, check_steps, time_sinusoid, warp
from tt_jax.strategies.state import Record, State, draw_noise, empty_state
from tt_jax.trim import drift as measure
from tt_jax.trim.tokentrim import TokenTrim


@dataclasses.dataclass(frozen=True)
class SelfForcing:
    """Rollout chunk by chunk with a rolling context (Self Forcing, arXiv 2506.08009).

    All frames are latent frames, each four frames of Wan's videos.

    Args:
        window: frames that attention spans, the chunk included. With `sink` and `relative` short
            for `cache=Window(window, sink, relative)`, see there.
        sink: frames at the start of the video that are never evicted.
        steps: nominal denoising steps of 1000, descending.
        chunk: frames of a chunk.
        guidance: FlowMo's, of the latent while it is denoised.
        relative: count rotary positions from the window's first frame instead of the video's.
        cache: what is kept of the past and how it is read, a policy of `tt_jax.cache`.
        shift: what warps the steps into noise levels, a number of the model (Wan's is 5); None
            takes them as they stand.

    Raises:
        ValueError: a setting is of another type or out of its range, the window has no room for the
            past, or chunks are too short for FlowMo.
    """

    window: int = 21
    sink: int = 0
    steps: tuple[int, ...] = (1000, 750, 500, 250)
    chunk: int = 3
    guidance: FlowMo | None = None
    relative: bool = False
    cache: Policy | None = None
    shift: float | None = SHIFT

    lag: ClassVar[int] = 0  # a step finishes the chunk that it begins

    def __post_init__(self) -> None:
        check_shift(self.shift)
        checked = {
            "window": whole("window", self.window, 1),
            "sink": whole("sink", self.sink, 0),
            "steps": check_steps(self.steps),
            "chunk": whole("chunk", self.chunk, 1),
            "relative": truth("relative", self.relative),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        if self.guidance is not None and not isinstance(self.guidance, FlowMo):
            raise ValueError(f"guidance must be a FlowMo, not {self.guidance!r}.")
        if self.cache is not None and not isinstance(self.cache, Policy):
            raise ValueError(f"cache must be a policy of tt_jax.cache, not {self.cache!r}.")
        short = Window(self.window, self.sink, self.relative)
        if self.cache is not None and short not in (Window(), self.cache):
            raise ValueError(
                "window, sink and relative are short for cache=Window(...): give either them or "
                "a cache."
            )
        self.policy.check(self.chunk)
        if self.guidance is not None and self.chunk < 3:
            raise ValueError(
                "FlowMo compares changes from frame to frame, so it would never fire in chunks of "
                f"fewer than 3 frames, and this is {self.chunk}."
            )

    @property
    def policy(self) -> Policy:
        """What is kept of the past and how it is read."""
        return self.cache or Window(self.window, self.sink, self.relative)

    @property
    def slots(self) -> int:
        """Frames of the context."""
        return self.policy.slots(self.chunk)

    @property
    def pass_frames(self) -> int:
        """Frames that one pass denoises."""
        return self.chunk

    def start(self, dit: DiT, batch: int, grid: tuple[int, int], key: Key[Array, "*keys"]) -> State:
        """The state before the first chunk.

        Args:
            dit: the transformer.
            batch: number of samples.
            grid: height and width of the latents.
            key: all noise comes from it.

        Returns:
            A state without any frame.
        """
        sink = self.policy.sinks
        state = empty_state(dit, batch, grid, key, slots=self.slots, sink=sink, strategy=self)
        return dataclasses.replace(state, context=self.policy.start(state.context, self.chunk))

    def check(self, chunks: int, trim: TokenTrim, given: int) -> None:
        """Refuses a rollout that can't be.

        Args:
            chunks: how many.
            trim: TokenTrim's settings, all of which go with it.
            given: latent frames to start from, any number.

        Raises:
            ValueError: there is no chunk.
        """
        if chunks < 1:
            raise ValueError(f"chunks must be at least 1, not {chunks}.")

    def noise(
        self, state: State, shape: tuple[int, ...], attempt: int = 0
    ) -> Float[Array, "steps b f h w c"]:
        """Noise of every step of the next chunk.

        Args:
            state: before the chunk.
            shape: `[B, F, h, w, C]` of the chunk.
            attempt: number of the attempt, from 0; a further one goes on counting steps.

        Returns:
            Standard normal noise in the latents' dtype. Where the cache policy repeats noise, step
            0 of every chunk has that of the first chunk.
        """
        count = len(self.steps)
        chunks = jnp.full((count,), state.chunk)
        if self.policy.repeats_noise:
            chunks = chunks.at[0].set(0)
        steps = attempt * count + jnp.arange(count, dtype=jnp.int32)
        return draw_noise(state.key, chunks, steps, shape, state.summary.dtype)

    def _denoise(
        self,
        dit: DiT,
        text: KV,
        state: State,
        valid: Bool[Array, "b s p"],
        x0: Float[Array, "b f h w c"],
        noise: Float[Array, "steps b f h w c"],
        first: int,
        stop: int,
        remat: bool,
    ) -> Float[Array, "b f h w c"]:
        """Steps `first .. stop - 1` of the schedule; returns x0."""
        size = x0.shape[1]
        levels = np.array(warp(self.steps, self.shift))
        sinusoids = time_sinusoid(
            np.repeat(levels[:, None, None], size, axis=2), dit.config.freq_dim
        )

        def denoise(x0: Array, sigma: Array, sinusoid: Array, noise: Array, active: Array) -> Array:
            def predict(noisy: Array) -> Array:
                recompute = remat or self.guidance is not None
                return self._pass(dit, text, state, valid, noisy, sinusoid, recompute)[0]

            noisy = (1 - sigma) * x0 + sigma * noise
            if self.guidance is None:
                flow = predict(noisy)
            else:
                noisy, flow = self.guidance.guide(predict, noisy, active)
            return noisy - sigma * wide(flow)

        def step(x0: Array, inputs: tuple) -> tuple[Array, None]:
            # The loop is always over all steps, so that XLA makes one and the same program of it:
            # where it is split in two, the results are those of the whole, bit for bit.
            index, *rest = inputs
            due = (index >= first) & (index < stop)
            return jax.lax.cond(due, denoise, lambda x0, *_: x0, x0, *rest), None

        guided = jnp.zeros(len(levels), bool)
        if self.guidance is not None:
            now = jnp.asarray(self.guidance.chunks == "all") | (state.chunk == 0)
            guided = now & jnp.asarray(self.guidance.steps(len(levels)))
        inputs = (jnp.asarray(levels, x0.dtype), jnp.asarray(sinusoids), noise, guided)
        return jax.lax.scan(step, x0, (jnp.arange(len(levels)), *inputs))[0]

    def remember(
        self, dit: DiT, text: KV, state: State, x0: Float[Array, "b f h w c"], remat: bool = False
    ) -> State:
        """Appends accepted frames to the context, by one pass at noise level 0.

        Args:
            dit: the transformer.
            text: from its `encode_text`.
            state: before the frames.
            x0: the frames, without noise.
            remat: recompute activations in the backward pass.

        Returns:
            The state after the frames.
        """
        size = x0.shape[1]
        tokens = measure.frame_tokens(x0, dit.config.patch)
        sinusoid = jnp.asarray(time_sinusoid(np.zeros((1, size)), dit.config.freq_dim))
        _, own = self._pass(dit, text, state, state.context.valid, x0, sinusoid, remat)
        frames = state.frame + jnp.arange(size, dtype=jnp.int32)
        context = self.policy.accept(state.context, own, tokens, frames)
        return dataclasses.replace(state, context=context, frame=state.frame + size)

    def _pass(
        self,
        dit: DiT,
        text: KV,
        state: State,
        valid: Bool[Array, "b s p"],
        latents: Float[Array, "b f h w c"],
        sinusoid: Float[Array, "1 f e"],
        remat: bool,
    ) -> tuple[Float[Array, "b f h w c"], Any]:
        """One pass over the next frames, by what the policy shows of the past."""
        size, patch = latents.shape[1], dit.config.patch
        grid = (latents.shape[2] // patch, latents.shape[3] // patch)
        past, read = self.policy.read(state.context, valid, state.frame, size, grid)
        return dit(latents, sinusoid, text, None, past, read=read, remat=remat)

    def switch(self, dit: DiT, text: KV, state: State, grid: tuple[int, int], how: str) -> State:
        """The state as the next chunk finds it under another prompt.

        Args:
            dit: the transformer.
            text: the new prompt's, from `encode_text`.
            state: after the last chunk of the old prompt.
            grid: height and width of the latents.
            how: one of the cache policy's `switches`.

        Returns:
            The state, which differs in its context alone.
        """
        patch = dit.config.patch

        def encode(tokens: Float[Array, "b f p d"], past: Any, read: Read) -> Any:
            latents = unpatchify(tokens, patch, *grid)
            sinusoid = jnp.asarray(
                time_sinusoid(np.zeros((1, tokens.shape[1])), dit.config.freq_dim)
            )
            return dit(latents, sinusoid, text, None, past, read=read)[1]

        side = (grid[0] // patch, grid[1] // patch)
        context = self.policy.switch(state.context, state.frame, how, encode, side)
        return dataclasses.replace(state, context=context)

    def condition(
        self,
        dit: DiT,
        text: KV,
        state: State,
        initial: Float[Array, "b f h w c"],
        remat: bool = False,
    ) -> State:
        """Fills the context with given frames, the remainder of a chunk first.

        Args:
            dit: the transformer.
            text: from its `encode_text`.
            state: from `start`.
            initial: the frames, at least one.
            remat: as in `step`.

        Returns:
            The state after the frames; the next chunk's drift is measured against the latest of
            them, at most a chunk's.
        """
        odd = initial.shape[1] % self.chunk
        if odd:
            state = self.remember(dit, text, state, initial[:, :odd], remat)
        whole = initial[:, odd:]
        if whole.shape[1]:
            batch, frames, *rest = whole.shape
            chunks = whole.reshape(batch, frames // self.chunk, self.chunk, *rest)
            state, _ = jax.lax.scan(
                lambda state, x0: (self.remember(dit, text, state, x0, remat), None),
                state,
                jnp.moveaxis(chunks, 1, 0),
            )
        last = measure.frame_tokens(initial[:, -self.chunk :], dit.config.patch)
        return dataclasses.replace(state, summary=measure.summary(last), seen=jnp.ones((), bool))

    def step(
        self,
        dit: DiT,
        text: KV,
        state: State,
        noise: Float[Array, "steps b f h w c"],
        trim: TokenTrim,
        remat: bool = False,
    ) -> tuple[State, Float[Array, "b f h w c"], Record]:
        """Generates, judges and remembers one chunk (Algorithm 1 of arXiv 2602.00268).

        Args:
            dit: the transformer.
            text: from its `encode_text`.
            state: before the chunk.
            noise: from `noise`.
            trim: TokenTrim's settings.
            remat: recompute activations in the backward pass.

        Returns:
            The state after the chunk, the chunk's latents and its record.
        """
        measured = 1 if trim.when == "first_step" else len(self.steps)
        shape = noise.shape[1:]
        level = warp(self.steps, self.shift)[0]
        sinusoid = jnp.asarray(time_sinusoid(np.full((1, self.chunk), level), dit.config.freq_dim))

        def first(past: Any, read: Read) -> Any:
            return dit(level * noise[0], sinusoid, text, None, past, read=read)[1]

        grid = (shape[2] // dit.config.patch, shape[3] // dit.config.patch)
        context = self.policy.begin(state.context, state.frame, self.chunk, grid, first)
        state = dataclasses.replace(state, context=context)

        def denoise(valid: Array, noise: Array) -> Array:
            x0 = jnp.zeros_like(noise[0])
            return self._denoise(dit, text, state, valid, x0, noise, 0, measured, remat)

        redraw = partial(self.noise, state, shape)
        patch = dit.config.patch
        kept, record, judged = judge(trim, state, denoise, noise, redraw, patch, self.chunk)
        x0 = kept.x0
        if measured < len(self.steps):
            stop = len(self.steps)
            x0 = self._denoise(dit, text, state, kept.valid, x0, noise, measured, stop, remat)
        judged = dataclasses.replace(judged, chunk=state.chunk + 1)
        return self.remember(dit, text, judged, x0, remat), x0, record
