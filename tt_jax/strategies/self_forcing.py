"""Self Forcing (arXiv 2506.08009): one chunk at a time, each from noise in a few steps.

Where transformer, context and TokenTrim meet. Axes as in `context` and `drift`.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from tt_jax import context as ctx
from tt_jax import drift as measure
from tt_jax.attention import rotate, rotation
from tt_jax.context import Context
from tt_jax.drift import Statistics
from tt_jax.layers import wide
from tt_jax.models.dit import KV, DiT
from tt_jax.schedule import time_sinusoid, warp
from tt_jax.trim import TokenTrim

POLICY_STEP = 2**30  # the "step" whose random key the pruning policy gets; far from any noise's


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """What a rollout carries from chunk to chunk."""

    context: Context
    # Of the chunk accepted last: what the next one is compared with. Defined if `seen`.
    summary: Float[Array, "b p d"]
    seen: Bool[Array, ""]
    statistics: Statistics
    # Index of the next frame in the video, and of the next chunk of the rollout.
    frame: Int[Array, ""]
    chunk: Int[Array, ""]
    key: Key[Array, ""]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Record:
    """What TokenTrim saw and did in one chunk. Severity and drift are the first attempt's.

    Without a value yet: drift and severities NaN, threshold +inf.
    """

    drift: Float[Array, "b p"]
    severity: Float[Array, " b"]
    # Of the attempt that was kept: what the statistics learn from.
    accepted_severity: Float[Array, " b"]
    threshold: Float[Array, " b"]
    triggered: Bool[Array, " b"]
    # Valid context entries over written ones, when the kept attempt was made.
    kept_fraction: Float[Array, " b"]
    # Share of the prunable frames in which this chunk's intervention dropped the position.
    pruned: Float[Array, "b p"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Attempt:
    """One try at a chunk: its x0, the summary, drift and severity of that, and the mask it saw."""

    x0: Float[Array, "b f h w c"]
    summary: Float[Array, "b p d"]
    drift: Float[Array, "b p"]
    severity: Float[Array, " b"]
    valid: Bool[Array, "b s p"]


def share_of_frames(
    dropped: Bool[Array, "b s p"], may_drop: Bool[Array, " s"]
) -> Float[Array, "b p"]:
    """In what share of the slots that may lose entries each position lost its own."""
    lost = jnp.sum(dropped, axis=1).astype(jnp.float32)
    return lost / jnp.maximum(jnp.sum(may_drop), 1).astype(jnp.float32)


def choose(use: Bool[Array, " b"], yes: Any, no: Any) -> Any:
    """Per sample, the leaves of `yes` or of `no`."""
    return jax.tree.map(
        lambda y, n: jnp.where(use.reshape(-1, *[1] * (y.ndim - 1)), y, n), yes, no
    )


@dataclasses.dataclass(frozen=True)
class SelfForcing:
    """Chunk-wise rollout with a rolling context.

    window: frames that attention spans, the chunk itself included, so `window - chunk` past frames
        stay, the first `sink` of the video always among them.
    sink: frames at the start of the video that are never evicted.
    steps: nominal denoising steps of 1000, warped by the schedule's shift.
    chunk: latent frames per chunk.
    """

    window: int = 21
    sink: int = 0
    steps: tuple[int, ...] = (1000, 750, 500, 250)
    chunk: int = 3

    def __post_init__(self) -> None:
        if self.sink < 0:
            raise ValueError(f"sink must be at least 0, not {self.sink}.")
        if self.window <= self.sink + self.chunk:
            raise ValueError(
                f"a window of {self.window} frames must be longer than sink plus chunk, "
                f"{self.sink} + {self.chunk}."
            )

    def start(
        self, dit: DiT, batch: int, grid: tuple[int, int], key: Key[Array, ""]
    ) -> State:
        """The state before the first chunk; `grid` is the latents' height and width."""
        config = dit.config
        tokens = (grid[0] // config.patch) * (grid[1] // config.patch)
        dtype = dit.head.kernel.dtype
        context = ctx.empty(
            layers=config.layers,
            batch=batch,
            slots=self.window - self.chunk,
            tokens=tokens,
            heads=config.heads,
            head_dim=config.head_dim,
            token_dim=config.patch**2 * config.channels,
            sink=self.sink,
            dtype=dtype,
        )
        return State(
            context=context,
            summary=jnp.zeros((batch, *context.tokens.shape[2:]), context.tokens.dtype),
            seen=jnp.zeros((), bool),
            statistics=Statistics.start(batch),
            frame=jnp.zeros((), jnp.int32),
            chunk=jnp.zeros((), jnp.int32),
            key=key,
        )

    def noise(
        self, state: State, shape: tuple[int, ...], attempt: int = 0
    ) -> Float[Array, "steps b f h w c"]:
        """Noise of every step of the next chunk; step s of sample b of chunk t comes from
        `fold_in(fold_in(fold_in(key, b), t), s)`; a fresh attempt goes on counting steps."""
        batch, *sample = shape
        first = attempt * len(self.steps)

        def one(step: Array, keys: Key[Array, ""]) -> Array:
            return jax.random.normal(jax.random.fold_in(keys, step), sample)

        steps = jnp.arange(first, first + len(self.steps))
        return jax.vmap(jax.vmap(one, (None, 0)), (0, None))(steps, self._keys(state, batch))

    def _keys(self, state: State, batch: int) -> Key[Array, " b"]:
        def one(sample: Array) -> Key[Array, ""]:
            return jax.random.fold_in(jax.random.fold_in(state.key, sample), state.chunk)

        return jax.vmap(one)(jnp.arange(batch))

    def _denoise(
        self,
        dit: DiT,
        text: KV,
        state: State,
        valid: Bool[Array, "b s p"],
        x0: Float[Array, "b f h w c"],
        noise: Float[Array, "steps b f h w c"],
        first: int,
        remat: bool,
    ) -> Float[Array, "b f h w c"]:
        """Steps `first ..` of the schedule, as many as there is noise for; returns x0."""
        size = x0.shape[1]
        frames = state.frame + jnp.arange(size)
        past = state.context.keys_values
        mask = ctx.attention_mask(valid, size * valid.shape[2])
        levels = np.array(warp(self.steps))[first : first + len(noise)]
        sinusoids = time_sinusoid(np.repeat(levels[:, None, None], size, axis=2))

        def step(x0: Array, inputs: tuple) -> tuple[Array, None]:
            sigma, sinusoid, noise = inputs
            noisy = (1 - sigma) * x0 + sigma * noise
            flow, _ = dit(noisy, sinusoid, text, frames, past, mask, remat=remat)
            return noisy - sigma * wide(flow), None

        inputs = (jnp.asarray(levels, x0.dtype), jnp.asarray(sinusoids), noise)
        return jax.lax.scan(step, x0, inputs)[0]

    def remember(
        self, dit: DiT, text: KV, state: State, x0: Float[Array, "b f h w c"], remat: bool = False
    ) -> State:
        """Appends accepted frames to the context, by one pass at noise level 0."""
        size = x0.shape[1]
        frames = state.frame + jnp.arange(size)
        tokens = measure.frame_tokens(x0, dit.config.patch)
        valid = state.context.valid
        mask = ctx.attention_mask(valid, size * valid.shape[2])
        sinusoid = jnp.asarray(time_sinusoid(np.zeros((1, size))))
        _, kv = dit(x0, sinusoid, text, frames, state.context.keys_values, mask, remat=remat)
        grid = (x0.shape[2] // dit.config.patch, x0.shape[3] // dit.config.patch)
        turned = rotate(kv.k, rotation(frames, *grid, dit.config.head_dim))
        context = ctx.append(state.context, KV(turned, kv.v), tokens, frames)
        return dataclasses.replace(state, context=context, frame=state.frame + size)

    def condition(
        self, dit: DiT, text: KV, state: State, initial: Float[Array, "b f h w c"]
    ) -> State:
        """Fills the context with given frames, the remainder of a chunk first."""
        odd = initial.shape[1] % self.chunk
        if odd:
            state = self.remember(dit, text, state, initial[:, :odd])
        whole = initial[:, odd:]
        if whole.shape[1]:
            batch, frames, *rest = whole.shape
            chunks = whole.reshape(batch, frames // self.chunk, self.chunk, *rest)
            state, _ = jax.lax.scan(
                lambda state, x0: (self.remember(dit, text, state, x0), None),
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
        """Generates, judges and remembers one chunk (Algorithm 1)."""
        context, statistics = state.context, state.statistics
        count = trim.count(context.valid.shape[2])
        grid = (noise.shape[-3] // dit.config.patch, noise.shape[-2] // dit.config.patch)
        measured = 1 if trim.when == "first_step" else len(self.steps)

        def attempt(valid: Array, noise: Array) -> Attempt:
            x0 = jnp.zeros(noise.shape[1:], noise.dtype)
            x0 = self._denoise(dit, text, state, valid, x0, noise[:measured], 0, remat)
            # Selection and trigger have no gradient; and an attempt is computed the same way
            # whatever is done with it afterwards.
            seen = jax.lax.stop_gradient(jax.lax.optimization_barrier(x0))
            tokens = measure.frame_tokens(seen, dit.config.patch)
            drift = trim.measure(tokens, state.summary, context.tokens, context.filled, grid)
            severity = measure.severity(drift, count)
            return Attempt(x0, measure.summary(tokens), drift, severity, valid)

        first = kept = attempt(context.valid, noise)
        threshold = jnp.where(state.seen, statistics.threshold(trim.lam, trim.warmup), jnp.inf)
        triggered = first.severity > threshold

        last, active = first, triggered
        may_drop = ctx.prunable(context, trim.prune_sink)
        for retry in range(1, trim.retries + 1):
            fresh = self.noise(state, noise.shape[1:], retry) if trim.resample_noise else noise
            keys = jax.vmap(jax.random.fold_in, (0, None))(
                self._keys(state, noise.shape[1]), POLICY_STEP + retry
            )

            def again(last: Attempt, active: Array, fresh: Array = fresh, keys: Array = keys):
                entry_drift = measure.token_drift(context.tokens, last.summary[:, None])
                drop = trim.drop(last.drift, entry_drift, keys) & may_drop[:, None]
                new = attempt(last.valid & ~drop, fresh)
                return choose(active, new, last)

            last = jax.lax.cond(
                jnp.any(active), again, lambda last, active: last, last, active
            )
            better = active if trim.accept == "always" else last.severity < kept.severity
            kept = choose(better, last, kept)
            active = active & (last.severity > threshold)

        dropped = context.valid & ~kept.valid & may_drop[:, None]
        nothing = jnp.full_like(first.severity, jnp.nan)
        record = Record(
            drift=jnp.where(state.seen, first.drift, jnp.nan),
            severity=jnp.where(state.seen, first.severity, nothing),
            accepted_severity=jnp.where(state.seen, kept.severity, nothing),
            threshold=threshold,
            triggered=triggered,
            kept_fraction=ctx.kept_fraction(dataclasses.replace(context, valid=kept.valid)),
            pruned=share_of_frames(dropped, may_drop),
        )
        state = dataclasses.replace(
            state,
            context=dataclasses.replace(context, valid=kept.valid),
            summary=kept.summary,
            seen=jnp.ones((), bool),
            statistics=statistics.update(jax.lax.stop_gradient(kept.severity), state.seen),
            chunk=state.chunk + 1,
        )
        x0 = kept.x0
        if measured < len(self.steps):
            x0 = self._denoise(
                dit, text, state, kept.valid, x0, noise[measured:], measured, remat
            )
        return self.remember(dit, text, state, x0, remat), x0, record
