"""Which context entries to drop: the pruning policies.

A policy is one small function `(drift [B, N], entry_drift [B, S, N], key [B]) -> drop [B, S, N]`:
drift is the new chunk's token drift against the summary before it, entry_drift each cached frame's
token distance to the new summary, key one random key per sample. A new policy is one more entry in
`POLICIES`; one that comes with a drift of its own, which severity and trigger then use too, also
one in `MEASURES`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from tt_jax.trim import drift as measures

Policy = Callable[
    [Float[Array, "b n"], Float[Array, "b s n"], Key[Array, " b"]], Bool[Array, "b s n"]
]


def _everywhere(positions: Bool[Array, "b n"], like: Float[Array, "b s n"]) -> Bool[Array, "b s n"]:
    return jnp.broadcast_to(positions[:, None], like.shape)


def _top(drift, entry_drift, key, *, count):
    """The paper's rule: the most drifting positions, in every cached frame."""
    return _everywhere(measures.top(drift, count), entry_drift)


def _bottom(drift, entry_drift, key, *, count):
    """Control: the least drifting positions."""
    return _everywhere(measures.top(-drift, count), entry_drift)


def _random(drift, entry_drift, key, *, count):
    """Control: as many positions, drawn at random."""
    score = jax.vmap(lambda k: jax.random.uniform(k, drift.shape[1:], drift.dtype))(key)
    return _everywhere(measures.top(score, count), entry_drift)


def _none(drift, entry_drift, key, *, count):
    """Control: drop nothing, only draw again."""
    return jnp.zeros(entry_drift.shape, bool)


def _adaptive(drift, entry_drift, key, *, count):
    """Of the paper's positions, those whose robust z-score exceeds 3: p is a budget, no quota."""
    median = jnp.median(drift, axis=-1, keepdims=True)
    spread = 1.4826 * jnp.median(jnp.abs(drift - median), axis=-1, keepdims=True)
    return _everywhere(measures.top(drift, count) & (drift > median + 3 * spread), entry_drift)


def _per_frame(drift, entry_drift, key, *, count):
    """The paper's positions, but only in the frames as far off as the least drifting of them."""
    chosen = measures.top(drift, count)
    least = jnp.min(drift, axis=-1, where=chosen, initial=jnp.finfo(drift.dtype).max)
    return chosen[:, None] & (entry_drift >= least[:, None, None])


POLICIES: dict[str, Callable[..., Bool[Array, "b s n"]]] = {
    "top": _top,
    "random": _random,
    "bottom": _bottom,
    "none": _none,
    "adaptive": _adaptive,
    "per_frame": _per_frame,
    "motion": _top,
    "novelty": _top,
    "newest": _top,
}

# Those that drop entries of the chunk before the new one alone, not of the whole context.
NEWEST = ("newest",)


def paper_drift(tokens, before, context, valid, grid):
    """Equation 2: against the same place in the summary before.

    Args:
        tokens: of the new chunk's frames, `[B, F, N, D]`.
        before: summary of the chunk before it, `[B, N, D]`.
        context: not used, as are the others: every measure takes the same.
        valid: not used.
        grid: not used.

    Returns:
        Distances in latent values, `[B, N]`.
    """
    return measures.token_drift(measures.summary(tokens), before)


def _motion(tokens, before, context, valid, grid):
    """Against the nearest of the 3x3 places in the summary before, so that motion costs less."""
    return measures.neighbour_drift(measures.summary(tokens), before, grid)


def _novelty(tokens, before, context, valid, grid):
    """Frame by frame against the nearest valid token of the context: averages blur what moves."""
    return measures.novelty(tokens, context, valid)


# By the name of the policy; all others, a user's own included, go with the paper's.
MEASURES: dict[str, Callable[..., Float[Array, "b n"]]] = {
    "motion": _motion,
    "novelty": _novelty,
    "newest": _novelty,
}
