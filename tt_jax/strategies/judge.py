"""Algorithm 1 of TokenTrim around any strategy's attempt at a chunk."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from tt_jax.cache import buffer
from tt_jax.strategies.state import Record, State, sample_keys
from tt_jax.trim import drift as measure
from tt_jax.trim.tokentrim import TokenTrim

POLICY_STEP = 2**30  # the "step" whose random key the pruning policy gets; far from any noise's


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Attempt:
    """One try: its x0, summary, drift and severity of what is judged, and the mask it saw."""

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
    return jax.tree.map(lambda y, n: jnp.where(use.reshape(-1, *[1] * (y.ndim - 1)), y, n), yes, no)


def judge(
    trim: TokenTrim,
    state: State,
    denoise: Callable[[Array, Array], Array],
    noise: Float[Array, "steps b f h w c"],
    redraw: Callable[[int], Float[Array, "steps b f h w c"]],
    patch: int,
    size: int,
) -> tuple[Attempt, Record, State]:
    """Makes a chunk, again if its drift is abnormal; returns what was kept, and what was seen.

    denoise: from the context's mask `[B, S, P]` and noise to x0 `[B, F, h, w, C]`, of which the
        first `size` frames are the chunk that is judged.
    redraw: fresh noise for the given retry. patch: side of a token in latents.

    The returned state has the kept mask, summary and statistics; the chunk isn't remembered yet.
    """
    context, statistics = state.context, state.statistics
    barrier = jax.lax.optimization_barrier
    count = trim.count(context.valid.shape[2])

    def attempt(valid: Array, noise: Array) -> Attempt:
        # An attempt is computed the same way whatever comes before and after it; selection and
        # trigger have no gradient.
        x0 = barrier(denoise(valid, barrier(noise)))
        seen = jax.lax.stop_gradient(x0)[:, :size]
        tokens = measure.frame_tokens(seen, patch)
        grid = (x0.shape[2] // patch, x0.shape[3] // patch)
        drift = trim.measure(tokens, state.summary, context.tokens, context.filled, grid)
        severity = measure.severity(drift, count)
        return Attempt(x0, measure.summary(tokens), drift, severity, valid)

    first = kept = attempt(context.valid, noise)
    threshold = jnp.where(state.seen, statistics.threshold(trim.lam, trim.warmup), jnp.inf)
    triggered = first.severity > threshold

    last, active = first, triggered
    may_drop = buffer.prunable(context, trim.prune_sink)
    for retry in range(1, trim.retries + 1):
        fresh = redraw(retry) if trim.resample_noise else noise
        keys = jax.vmap(jax.random.fold_in, (0, None))(
            sample_keys(state.key, state.chunk, noise.shape[1]), POLICY_STEP + retry
        )

        def again(last: Attempt, active: Array, fresh: Array = fresh, keys: Array = keys):
            entry_drift = measure.token_drift(context.tokens, last.summary[:, None])
            drop = trim.drop(last.drift, entry_drift, keys) & may_drop[:, None]
            new = attempt(last.valid & ~drop, fresh)
            return choose(active, new, last)

        last = jax.lax.cond(jnp.any(active), again, lambda last, active: last, last, active)
        better = active if trim.accept == "always" else last.severity < kept.severity
        kept = choose(better, last, kept)
        active = active & (last.severity > threshold)

    dropped = context.valid & ~kept.valid & may_drop[:, None]
    nothing = jnp.full_like(first.severity, jnp.nan)
    pruned = dataclasses.replace(context, valid=kept.valid)
    record = Record(
        drift=jnp.where(state.seen, first.drift, jnp.nan),
        severity=jnp.where(state.seen, first.severity, nothing),
        accepted_severity=jnp.where(state.seen, kept.severity, nothing),
        threshold=threshold,
        triggered=triggered,
        kept_fraction=buffer.kept_fraction(pruned),
        pruned=share_of_frames(dropped, may_drop),
    )
    state = dataclasses.replace(
        state,
        context=pruned,
        summary=kept.summary,
        seen=jnp.ones((), bool),
        statistics=statistics.update(jax.lax.stop_gradient(kept.severity), state.seen),
    )
    return kept, record, state
