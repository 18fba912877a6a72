"""What every strategy carries and reports, and the noise it draws."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from tt_jax.cache import buffer
from tt_jax.cache.buffer import Context
from tt_jax.models.dit import DiT
from tt_jax.trim.drift import Statistics


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Flight:
    """The blocks of Rolling Forcing's window that aren't finished."""

    # The last prediction of each, the oldest block first; zeros where there is no block yet.
    x0: Float[Array, "b f h w c"]
    # No block from this one on enters the window.
    end: Int[Array, ""]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """What a rollout carries from step to step."""

    context: Context
    # Of the chunk accepted last: what the next one is compared with. Defined if `seen`.
    summary: Float[Array, "b p d"]
    seen: Bool[Array, ""]
    statistics: Statistics
    # Index in the video of the first frame that the next step finishes, and of the next chunk of
    # the rollout. (A window of Rolling Forcing that isn't full yet finishes none: negative.)
    frame: Int[Array, ""]
    chunk: Int[Array, ""]
    key: Key[Array, ""]
    # Rolling Forcing's alone.
    flight: Flight | None = None


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


def empty_state(
    dit: DiT, batch: int, grid: tuple[int, int], key: Key[Array, ""], *, slots: int, sink: int
) -> State:
    """The state before the first chunk, with a context of `slots` frames; `grid` in latents."""
    config = dit.config
    context = buffer.empty(
        layers=config.layers,
        batch=batch,
        slots=slots,
        tokens=(grid[0] // config.patch) * (grid[1] // config.patch),
        heads=config.heads,
        head_dim=config.head_dim,
        token_dim=config.patch**2 * config.channels,
        sink=sink,
        dtype=dit.head.kernel.dtype,
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


def sample_keys(key: Key[Array, ""], chunk: Int[Array, ""], batch: int) -> Key[Array, " b"]:
    """`fold_in(fold_in(key, b), chunk)` for every sample b."""

    def one(sample: Array) -> Key[Array, ""]:
        return jax.random.fold_in(jax.random.fold_in(key, sample), chunk)

    return jax.vmap(one)(jnp.arange(batch))


def draw_noise(
    key: Key[Array, ""],
    chunks: Int[Array, " steps"],
    steps: Int[Array, " steps"],
    shape: tuple[int, ...],
) -> Float[Array, "steps b f h w c"]:
    """Noise of the given steps of the given chunks, `[B, F, h, w, C]` = `shape` each.

    That of sample b, chunk t, step s comes from `fold_in(fold_in(fold_in(key, b), t), s)`.
    """
    batch, *sample = shape

    def one(keys: Key[Array, ""], step: Array) -> Array:
        return jax.random.normal(jax.random.fold_in(keys, step), sample)

    keys = jax.vmap(sample_keys, (None, 0, None))(key, chunks, batch)
    return jax.vmap(jax.vmap(one, (0, None)))(keys, steps)
