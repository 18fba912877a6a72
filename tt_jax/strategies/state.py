"""What every strategy carries and reports, and the noise it draws."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float, Int, Key

from tt_jax.cache import buffer
from tt_jax.cache.buffer import Context
from tt_jax.contracts import checked
from tt_jax.models.dit import DiT, DiTConfig
from tt_jax.nn.layers import wide_dtype
from tt_jax.settings import whole
from tt_jax.sharding import first_sample
from tt_jax.trim.drift import Statistics
from tt_jax.trim.tokentrim import TokenTrim


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Flight:
    """The blocks of Rolling Forcing's window that aren't finished.

    Attributes:
        x0: the last prediction of each, the oldest block first; zeros where there is none yet.
        end: no block from this one on enters the window.
    """

    x0: Float[Array, "b f h w c"]
    end: Int[Array, ""]


@dataclasses.dataclass(frozen=True)
class Origin:
    """What a state was made with, all of it static: it goes on with nothing else.

    Attributes:
        strategy: with all its settings.
        model: sizes of the transformer.
        dtype: of its weights, which are not part of this.
        grid: height and width of the latents.
        batch: number of samples.
        trim: with `lam` as 0, since that may change; None as long as there is no chunk.
    """

    strategy: Any
    model: DiTConfig
    dtype: str
    grid: tuple[int, int]
    batch: int
    trim: TokenTrim | None = None

    def after(self, trim: TokenTrim) -> "Origin":
        """The same, once a chunk has been judged.

        Args:
            trim: what judged it.

        Returns:
            The origin with these settings, but for `lam`.
        """
        return dataclasses.replace(self, trim=dataclasses.replace(trim, lam=0.0))

    def check(self, other: "Origin") -> None:
        """Compares with what a state is to be continued with.

        Args:
            other: of the rollout to come.

        Raises:
            ValueError: a setting differs; one sentence has both values.
        """
        mine, its = self._settings(), other._settings()
        differ = [name for name in mine if name in its and mine[name] != its[name]]
        if differ:
            was, now = (
                ", ".join(f"{name} {settings[name]!r}" for name in differ)
                for settings in (mine, its)
            )
            raise ValueError(f"the state was made with {was} and can't be continued with {now}.")

    def _settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = {"strategy": type(self.strategy).__name__}
        for part in (self.strategy, self.trim, self.model):
            if part is not None:
                fields = dataclasses.fields(part)
                settings |= {field.name: getattr(part, field.name) for field in fields}
        if (policy := getattr(self.strategy, "policy", None)) is not None:
            # Whichever way it was given, as itself or in short.
            settings["cache"] = policy
            for short in ("window", "sink", "relative"):
                settings.pop(short, None)
        return settings | {"grid": self.grid, "batch": self.batch, "weights of": self.dtype}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """What a rollout carries from step to step: a pytree of arrays, with its `origin` as metadata.

    Attributes:
        context: keys and values of the past.
        summary: of the chunk accepted last: what the next one is compared with. Zeros unless
            `seen`.
        seen: whether there is one.
        statistics: of the severities accepted so far.
        frame: index in the video of the first frame that the next step finishes. (A window of
            Rolling Forcing that isn't full yet finishes none: negative.)
        chunk: number of the next chunk of the rollout.
        key: source of all noise still to come; one, or one for each sample.
        flight: Rolling Forcing's blocks that aren't finished.
        origin: what made the state, and alone can go on from it.
    """

    context: Context
    summary: Float[Array, "b p d"]
    seen: Bool[Array, ""]
    statistics: Statistics
    frame: Int[Array, ""]
    chunk: Int[Array, ""]
    key: Key[Array, "*keys"]
    flight: Flight | None = None
    origin: Origin | None = dataclasses.field(default=None, metadata={"static": True})

    def __repr__(self) -> str:
        by = self.origin
        made = "" if by is None else f", {by.strategy}, batch {by.batch}, grid {by.grid}"
        return f"State(before chunk {self.chunk}{made})"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Record:
    """What TokenTrim saw and did in one chunk.

    Attributes:
        drift: token drift of the first attempt; 0 unless `measured`.
        severity: of the first attempt; 0 unless `measured`.
        accepted_severity: of the attempt that was kept, which the statistics learn from.
        threshold: what the severity was compared with; 0 unless `tested`.
        measured: whether there was anything to compare the chunk with.
        tested: whether there was a threshold.
        triggered: whether the first attempt was abnormal.
        kept_fraction: valid context entries over written ones, when the kept attempt was made.
        pruned: share of the prunable frames in which this chunk's intervention dropped the
            position, whether or not an earlier one had dropped it there already.
    """

    drift: Float[Array, "b p"]
    severity: Float[Array, " b"]
    accepted_severity: Float[Array, " b"]
    threshold: Float[Array, " b"]
    measured: Bool[Array, " b"]
    tested: Bool[Array, " b"]
    triggered: Bool[Array, " b"]
    kept_fraction: Float[Array, " b"]
    pruned: Float[Array, "b p"]


def empty_state(
    dit: DiT,
    batch: int,
    grid: tuple[int, int],
    key: Key[Array, "*keys"],
    *,
    slots: int,
    sink: int,
    strategy: Any = None,
) -> State:
    """The state before the first chunk.

    Args:
        dit: the transformer.
        batch: number of samples.
        grid: height and width of the latents.
        key: source of all noise.
        slots: frames of the context.
        sink: those of them that are never evicted.
        strategy: which alone can go on from the state.

    Returns:
        A state without any frame.
    """
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
    state = State(
        context=context,
        summary=jnp.zeros((batch, *context.tokens.shape[2:]), context.tokens.dtype),
        seen=jnp.zeros((), bool),
        statistics=Statistics.start(batch, context.tokens.dtype),
        frame=jnp.zeros((), jnp.int32),
        chunk=jnp.zeros((), jnp.int32),
        key=key,
        origin=origin(dit, strategy, batch, grid),
    )
    return checked(state)


def origin(dit: DiT, strategy: Any, batch: int, grid: tuple[int, int]) -> Origin:
    """What the states of a strategy and a model are made with.

    Args:
        dit: the transformer.
        strategy: with all its settings.
        batch: number of samples.
        grid: height and width of the latents.

    Returns:
        Their origin, before any chunk.
    """
    return Origin(strategy, dit.config, str(dit.head.kernel.dtype), grid, batch)


def latents_dtype(dit: DiT) -> jnp.dtype:
    """The dtype in which latents are kept and noise is drawn.

    Args:
        dit: the transformer.

    Returns:
        float32; float64 for weights of float64.
    """
    return wide_dtype(dit.head.kernel.dtype)


def random_key(seed: int) -> Key[Array, ""]:
    """The key of a seed, any whole number of 64 bits.

    Args:
        seed: 0 to 2**64 - 1. Up to 2**32 - 1 it is `jax.random.key(seed)`; beyond, the upper 32
            bits are folded in (JAX itself leaves them out unless x64 is on).

    Returns:
        A typed key.

    Raises:
        ValueError: it isn't such a number.
    """
    seed = whole("seed", seed, 0, 2**64 - 1)
    key = jax.random.key(seed % 2**32)
    return jax.random.fold_in(key, seed >> 32) if seed >> 32 else key


def random_keys(seeds: int | Sequence[int]) -> Key[Array, "*keys"]:
    """The key of a seed, or those of several.

    Args:
        seeds: one for all samples, or one for each.

    Returns:
        `random_key` of the seed or, stacked, of each.

    Raises:
        ValueError: one isn't a whole number of 64 bits.
    """
    if isinstance(seeds, Sequence):
        return jnp.stack([random_key(seed) for seed in seeds])
    return random_key(seeds)


def sample_keys(key: Key[Array, "*keys"], chunk: Int[Array, ""], batch: int) -> Key[Array, " b"]:
    """A key for every sample of a chunk, `fold_in(fold_in(key, b), chunk)`.

    Args:
        key: the rollout's. Of one for each sample, b counts as 0: whatever else is in its batch, a
            sample is what it would be alone.
        chunk: its number.
        batch: samples that are here; b is their index in the whole batch (`first_sample`).

    Returns:
        One key for each of them.
    """

    def one(key: Key[Array, ""], sample: Array | int) -> Key[Array, ""]:
        return jax.random.fold_in(jax.random.fold_in(key, sample), chunk)

    if key.ndim:
        return jax.vmap(one, (0, None))(key, 0)
    return jax.vmap(one, (None, 0))(key, first_sample(batch) + jnp.arange(batch, dtype=jnp.int32))


def draw_noise(
    key: Key[Array, "*keys"],
    chunks: Int[Array, " steps"],
    steps: Int[Array, " steps"],
    shape: tuple[int, ...],
    dtype: DTypeLike = jnp.float32,
) -> Float[Array, "steps b f h w c"]:
    """Noise of the given steps of the given chunks.

    That of sample b, chunk t, step s comes from `fold_in(fold_in(fold_in(key, b), t), s)`
    (`sample_keys`).

    Args:
        key: the rollout's.
        chunks: number of each step's chunk.
        steps: number of each step in its chunk.
        shape: `[B, F, h, w, C]` of one step.
        dtype: of the noise.

    Returns:
        Standard normal noise.
    """
    batch, *sample = shape

    def one(keys: Key[Array, ""], step: Array) -> Array:
        return jax.random.normal(jax.random.fold_in(keys, step), sample, dtype)

    keys = jax.vmap(sample_keys, (None, 0, None))(key, chunks, batch)
    return jax.vmap(jax.vmap(one, (0, None)))(keys, steps)
