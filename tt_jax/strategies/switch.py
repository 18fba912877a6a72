"""A new prompt within a video: what becomes of the cache at the border between two chunks."""

from functools import partial
from typing import NamedTuple, cast

import jax
from flax import nnx
from jaxtyping import Array, Float

from tt_jax.models.dit import DiT
from tt_jax.sharding import constrain
from tt_jax.strategies.rolling_forcing import RollingForcing
from tt_jax.strategies.self_forcing import SelfForcing
from tt_jax.strategies.state import State


class Switch(NamedTuple):
    """Another prompt from a chunk on.

    Attributes:
        text: its embeddings, `[B, text_len, text_dim]`.
        how: what becomes of the cache, one of `switches(strategy)`; the first if None.
    """

    text: Float[Array, "b l e"]
    how: str | None = None


def switches(strategy: SelfForcing | RollingForcing) -> tuple[str, ...]:
    """What `switch` can do to the cache of a strategy.

    Args:
        strategy: whose.

    Returns:
        Names, the default first. "none": only the text changes. "flush": all but the sinks and the
        newest frames leave. "cut": the same, and the new scene's first chunk stands far from them
        in time. "recache": keys and values of the latest frames are made anew under the new prompt.
    """
    return strategy.policy.switches if isinstance(strategy, SelfForcing) else ("none",)


def way(strategy: SelfForcing | RollingForcing, how: str | None) -> str:
    """What a switch of the cache will be.

    Args:
        strategy: whose cache.
        how: what is asked for; None for the first of `switches(strategy)`.

    Returns:
        One of `switches(strategy)`.

    Raises:
        ValueError: for a `how` that the strategy's cache policy doesn't have.
    """
    known = switches(strategy)
    how = known[0] if how is None else how
    if how not in known:
        of = strategy.policy if isinstance(strategy, SelfForcing) else strategy
        raise ValueError(f"{of} has no switch {how!r}: give one of {', '.join(known)}.")
    return how


def switch(
    dit: DiT,
    text: Float[Array, "b l e"],
    state: State,
    *,
    grid: tuple[int, int],
    strategy: SelfForcing | RollingForcing | None = None,
    how: str | None = None,
) -> State:
    """The state with which a rollout goes on under another prompt.

    Give `text` to the `rollout` or `stream` that continues from it. Compiled once for each `how`,
    whatever the prompts and the time; the rollout's own program stays the same.

    Args:
        dit: the transformer.
        text: the new prompt's embeddings, `[B, text_len, text_dim]`.
        state: after the last chunk of the old prompt; it stays the caller's.
        grid: height and width of the latents.
        strategy: `SelfForcing()` if not given.
        how: one of `switches(strategy)`, the first if not given.

    Returns:
        The state before the first chunk of the new prompt.

    Raises:
        ValueError: for a `how` that the strategy's cache policy doesn't have.
    """
    strategy = SelfForcing() if strategy is None else strategy
    how = way(strategy, how)
    if how == "none":
        return state
    graph, params = nnx.split(dit)
    return cast(State, _switch(graph, params, text, state, tuple(grid), strategy, how))


@partial(jax.jit, static_argnums=(0, 4, 5, 6))
def _switch(graph: nnx.GraphDef, params: nnx.State, text, state, grid, strategy, how) -> State:
    dit = nnx.merge(graph, params)
    return constrain(strategy.switch(dit, dit.encode_text(text), state, grid, how))
