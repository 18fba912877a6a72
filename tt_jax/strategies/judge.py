"""Algorithm 1 of TokenTrim around any strategy's attempt at a chunk."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from tt_jax.cache import buffer
from tt_jax.contracts import checked
from tt_jax.strategies.state import Record, State, sample_keys
from tt_jax.trim import drift as measure
from tt_jax.trim.tokentrim import TokenTrim

POLICY_STEP = 2**30  # the "step" whose random key the pruning policy gets; far from any noise's


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Attempt:
    """One try.

    Attributes:
        x0: what was made.
        summary: latent summary of those of its frames that are judged.
        drift: of their tokens.
        severity: of the most drifting of them.
        valid: the context entries that it saw.
        dropped: those that TokenTrim chose to drop for it, whether or not they were valid before.
    """

    x0: Float[Array, "b f h w c"]
    summary: Float[Array, "b p d"]
    drift: Float[Array, "b p"]
    severity: Float[Array, " b"]
    valid: Bool[Array, "b s p"]
    dropped: Bool[Array, "b s p"]


def share_of_frames(
    dropped: Bool[Array, "b s p"], may_drop: Bool[Array, " s"]
) -> Float[Array, "b p"]:
    """In what share of the slots that may lose entries each position was dropped.

    Args:
        dropped: entries that were.
        may_drop: the slots.

    Returns:
        Shares in [0, 1], float32; 0 where no slot may lose any.
    """
    lost = jnp.sum(dropped, axis=1).astype(jnp.float32)
    return lost / jnp.maximum(jnp.sum(may_drop), 1).astype(jnp.float32)


def choose(use: Bool[Array, " b"], yes: Any, no: Any) -> Any:
    """One of two trees, sample by sample.

    Args:
        use: the samples that take `yes`.
        yes: a pytree of arrays, the first axis of each the batch.
        no: another of the same shapes.

    Returns:
        The tree of what each sample takes.
    """
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
    """Makes a chunk, again if its drift is abnormal (Algorithm 1 of arXiv 2602.00268).

    Args:
        trim: when to intervene, and what to drop.
        state: before the chunk.
        denoise: from the context's mask `[B, S, P]` and noise to x0 `[B, F, h, w, C]`, of which
            the first `size` frames are the chunk that is judged.
        noise: of the first attempt.
        redraw: fresh noise for the given retry.
        patch: side of a token in latents.
        size: frames of the chunk.

    Returns:
        The attempt that was kept, the record of what was seen, and the state with the kept mask,
        summary and statistics; the chunk isn't remembered in it yet.

    Raises:
        ValueError: a policy of one's own doesn't return what it should.
    """
    context, statistics = state.context, state.statistics
    barrier = jax.lax.optimization_barrier
    count = trim.count(context.valid.shape[2])

    measured = state.seen
    if trim.when == "first_step":
        # Before its first chunk a rollout has finished frames at most, and what a step predicts
        # is compared with predictions.
        measured = measured & (state.chunk > 0)

    def attempt(valid: Array, dropped: Array, noise: Array) -> Attempt:
        # An attempt is computed the same way whatever comes before and after it; selection and
        # trigger have no gradient.
        x0 = barrier(denoise(valid, barrier(noise)))
        seen = jax.lax.stop_gradient(x0)[:, :size]
        tokens = measure.frame_tokens(seen, patch)
        grid = (x0.shape[2] // patch, x0.shape[3] // patch)
        drift = trim.measure(tokens, state.summary, context.tokens, context.valid, grid)
        severity = measure.severity(drift, count)
        return checked(Attempt(x0, measure.summary(tokens), drift, severity, valid, dropped))

    def fits_better(new: Attempt, old: Attempt) -> Array:
        # Both beside what the new one's context still holds: what was dropped needn't return.
        strange = [
            trim.strangeness(
                measure.frame_tokens(jax.lax.stop_gradient(one.x0)[:, :size], patch),
                context.tokens,
                new.valid,
            )
            for one in (new, old)
        ]
        return strange[0] < strange[1]

    def same(new: Attempt, old: Attempt) -> Array:
        return jnp.zeros(new.severity.shape, bool)

    first = kept = attempt(context.valid, jnp.zeros_like(context.valid), noise)
    threshold, tested = statistics.threshold(
        trim.lam, trim.warmup, robust=trim.statistics == "robust"
    )
    tested = tested & measured
    threshold = jnp.where(tested, threshold, 0)
    triggered = tested & (first.severity > threshold)

    last, active = first, triggered
    may_drop = buffer.prunable(context, trim.prune_sink)
    may_drop = trim.may_drop(may_drop, context.frame, size)
    for retry in range(1, trim.retries + 1):
        fresh = redraw(retry) if trim.resample_noise else noise
        keys = jax.vmap(jax.random.fold_in, (0, None))(
            sample_keys(state.key, state.chunk, noise.shape[1]), POLICY_STEP + retry
        )

        def again(last: Attempt, active: Array, fresh: Array = fresh, keys: Array = keys):
            entry_drift = measure.token_drift(context.tokens, last.summary[:, None])
            drop = trim.drop(last.drift, entry_drift, keys) & may_drop[None, :, None]
            new = attempt(last.valid & ~drop, last.dropped | drop, fresh)
            return choose(active, new, last)

        last = jax.lax.cond(jnp.any(active), again, lambda last, active: last, last, active)
        better = active
        if trim.accept == "better":
            better = last.severity < kept.severity
        elif trim.accept == "consistent":
            better = jax.lax.cond(jnp.any(active), fits_better, same, last, kept)
        kept = choose(better, last, kept)
        active = active & (last.severity > threshold)

    pruned = dataclasses.replace(context, valid=kept.valid)
    record = Record(
        drift=jnp.where(measured, first.drift, 0),
        severity=jnp.where(measured, first.severity, 0),
        accepted_severity=jnp.where(measured, kept.severity, 0),
        threshold=threshold,
        measured=jnp.broadcast_to(measured, tested.shape),
        tested=tested,
        triggered=triggered,
        kept_fraction=buffer.kept_fraction(pruned),
        pruned=share_of_frames(kept.dropped, may_drop),
    )
    state = dataclasses.replace(
        state,
        context=pruned,
        summary=kept.summary,
        seen=jnp.ones((), bool),
        statistics=statistics.update(jax.lax.stop_gradient(kept.severity), measured),
    )
    return kept, checked(record), checked(state)
