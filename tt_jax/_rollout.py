"""The rollout: one jitted `lax.scan` over chunks, and the state it carries."""

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Key

from tt_jax.models.dit import DiT
from tt_jax.sharding import abstractly, constrain
from tt_jax.strategies.rolling_forcing import RollingForcing
from tt_jax.strategies.self_forcing import SelfForcing
from tt_jax.strategies.state import Record, State
from tt_jax.trim.tokentrim import TokenTrim

Strategy = SelfForcing | RollingForcing


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rollout:
    """What `rollout` returns. Sample, then time (latent frame or chunk), then the rest.

    All float32 but `triggered`. Drift is Euclidean distance in latent values. What has no value
    yet: drift and severities NaN, threshold +inf.

    latents: the generated latent frames, without `initial`.
    drift: token drift of each chunk's first attempt, on the transformer's token grid.
    pruned: share of the prunable frames in which the position was dropped (0 or 1 under "top").
    severity, accepted_severity: mean drift of the most drifting tokens, of the first attempt and
        of the one that was kept. threshold: what the first was compared with.
    triggered: whether the first attempt was abnormal.
    kept_fraction: valid context entries over written ones, when the chunk was made.
    state: continue from here, `rollout(..., state=out.state)`.
    """

    latents: Float[Array, "b frames h w c"]
    drift: Float[Array, "b chunks h w"]
    pruned: Float[Array, "b chunks h w"]
    severity: Float[Array, "b chunks"]
    accepted_severity: Float[Array, "b chunks"]
    threshold: Float[Array, "b chunks"]
    triggered: Bool[Array, "b chunks"]
    kept_fraction: Float[Array, "b chunks"]
    state: State


def check_request(
    dit: DiT,
    text: Any,
    grid: tuple[int, int],
    strategy: Strategy,
    trim: TokenTrim,
    chunks: int,
    initial: Any,
    noise: Any,
    state: State | None,
) -> None:
    """Raises ValueError, in one sentence, for a rollout that can't be."""
    config = dit.config
    # Those that a continued rollout makes again, since they were still in flight, included.
    made = chunks + (0 if state is None else strategy.lag)
    strategy.check(made, trim, 0 if initial is None else initial.shape[1])
    if text.shape[1:] != (config.text_len, config.text_dim):
        raise ValueError(
            f"text must be [batch, {config.text_len}, {config.text_dim}], zero-padded, "
            f"not {list(text.shape)}."
        )
    if grid[0] % config.patch or grid[1] % config.patch:
        raise ValueError(
            f"grid {grid[0]}x{grid[1]} must be a multiple of the patch, {config.patch}."
        )
    frame = (*grid, config.channels)
    if initial is not None:
        if state is not None:
            raise ValueError("initial frames start a rollout, a state continues one: give one.")
        if initial.shape[1] < 1 or (initial.shape[0], *initial.shape[2:]) != (len(text), *frame):
            raise ValueError(
                f"initial must be [{len(text)}, frames, {', '.join(map(str, frame))}], "
                f"not {list(initial.shape)}."
            )
    if noise is not None:
        if trim.resample_noise:
            raise ValueError("recorded noise and resample_noise=True exclude each other.")
        wanted = (made, len(strategy.steps), len(text), strategy.chunk, *frame)
        if noise.shape != wanted:
            raise ValueError(
                f"noise must be [chunks, steps, batch, frames, height, width, channels] = "
                f"{list(wanted)}, not {list(noise.shape)}."
            )


def rollout(
    dit: DiT,
    text: Float[Array, "b l e"],
    key: Key[Array, ""],
    *,
    chunks: int,
    grid: tuple[int, int],
    strategy: Strategy | None = None,
    trim: TokenTrim | None = None,
    initial: Float[Array, "b f h w c"] | None = None,
    noise: Float[Array, "chunks steps b f h w c"] | None = None,
    state: State | None = None,
    remat: bool = False,
) -> Rollout:
    """Generates `chunks` chunks of latent frames, each conditioned on the context of those before.

    dit: a causal transformer; its weights decide the compute dtype, latents are float32.
    text: prompt embeddings, padded with zero rows, `[B, text_len, text_dim]`.
    key: source of all noise, a typed key (`jax.random.key`).
    grid: height and width of the latents (60, 104 for 832x480).
    strategy: `SelfForcing()` if not given. trim: `TokenTrim()` if not given.
    initial: latent frames to start from, at least one; not repeated in the result.
    noise: recorded noise to replay instead of drawing it: step 0 is the initial noise, step s the
        one that leads to level s.
    state: `Rollout.state` of an earlier call, with the same text, grid, strategy and trim. Under
        Rolling Forcing the last 4 chunks of that call come again, now with what follows them, so
        that 4 more than `chunks` are returned (and are to be given as `noise`).
    remat: recompute activations in the backward pass, for gradients in little memory.

    Compiled once per configuration; `trim.lam` is data. A batch in which no sample is abnormal
    pays for no second generation; under `jax.vmap` that branch becomes a select and every chunk
    pays, so batch through B. Differentiable with respect to text, initial frames, noise and
    parameters (through `nnx.merge`), but for TokenTrim's choices: severity, trigger and selection
    have no gradient, and neither does where they would have fallen.

    Raises ValueError for shapes that don't fit together.
    """
    strategy = SelfForcing() if strategy is None else strategy
    trim = TokenTrim() if trim is None else trim
    check_request(dit, text, grid, strategy, trim, chunks, initial, noise, state)
    graph, params = nnx.split(dit)
    fresh = state is None
    if state is None:  # `cast`, since what `jax.jit` returns has lost its types
        state = cast(State, _begin(graph, params, text, key, tuple(grid), strategy, initial))
    else:
        state = cast(State, _copy(state))

    def run(chunks: int, noise: Array | None, state: State) -> Rollout:
        return _advance(
            graph, params, text, chunks, tuple(grid), strategy, trim, noise, state, remat
        )

    if not strategy.lag:
        return run(chunks, noise, state)
    assert not isinstance(strategy, SelfForcing)  # which finishes what it begins
    before = after = None
    if noise is not None:
        noise = strategy.replay(noise, fresh)
        before, after = noise[:chunks], noise[chunks:]
    main = run(chunks, before, state)
    drain = run(strategy.lag, after, _copy(strategy.close(main.state)))
    return join([main, drain], first=strategy.lag if fresh else 0, state=main.state)


def join(parts: Sequence[Rollout], state: State, first: int = 0) -> Rollout:
    """Rollouts one after the other, from chunk `first` on; `state` is that of the whole."""
    fields = {}
    for field in dataclasses.fields(Rollout):
        if field.name != "state":
            values = [getattr(part, field.name) for part in parts]
            skip = first * parts[0].latents.shape[1] // parts[0].severity.shape[1]
            whole = jnp.concatenate(values, axis=1)
            fields[field.name] = whole[:, skip if field.name == "latents" else first :]
    return Rollout(**fields, state=state)


def stream(
    dit: DiT,
    text: Float[Array, "b l e"],
    key: Key[Array, ""],
    *,
    chunks: int,
    grid: tuple[int, int],
    strategy: Strategy | None = None,
    trim: TokenTrim | None = None,
    initial: Float[Array, "b f h w c"] | None = None,
    state: State | None = None,
) -> Iterator[Rollout]:
    """The chunks of a `rollout` with these arguments, each as soon as it is finished.

    Compiled once, whatever the number of chunks. `state` of what is yielded is where to continue
    from; that of the chunks which Rolling Forcing finishes last is from before they were. It stays
    whole, so that memory for a second state is needed while the next chunk is made.

    Raises ValueError like `rollout`, at the first chunk.
    """
    strategy = SelfForcing() if strategy is None else strategy
    trim = TokenTrim() if trim is None else trim
    check_request(dit, text, grid, strategy, trim, chunks, initial, None, state)
    graph, params = nnx.split(dit)
    fresh = state is None
    ready = strategy.lag if fresh else 0
    if state is None:
        state = cast(State, _begin(graph, params, text, key, tuple(grid), strategy, initial))
    resume = state
    for index in range(chunks + strategy.lag):
        if index == chunks:
            assert not isinstance(strategy, SelfForcing)
            state = strategy.close(state)
        if index <= chunks and (index > 0 or not fresh):  # else nobody else has it
            state = cast(State, _copy(state))
        out = _advance(graph, params, text, 1, tuple(grid), strategy, trim, None, state, False)
        state = out.state
        if index < chunks:
            resume = state
        if index >= ready:
            yield dataclasses.replace(out, state=resume)


@partial(jax.jit, static_argnums=(0, 4, 5), keep_unused=True)
def _begin(
    graph: nnx.GraphDef, params: nnx.State, text, key, grid, strategy, initial
) -> State:  # fmt: skip
    """The state before the first chunk. A program of its own, so that a rollout that starts and
    one that goes on are the same compiled program; which takes arrays committed to the same
    devices too, hence `keep_unused`: the state lands where the parameters are."""
    dit = nnx.merge(graph, params)
    # A copy of the key: the state is given away, and the key is the caller's.
    state = strategy.start(dit, text.shape[0], grid, jnp.copy(key))
    if initial is not None:
        state = strategy.condition(dit, dit.encode_text(text), state, initial)
    return constrain(state)


@jax.jit
def _copy(state: State) -> State:
    """The same in memory of its own, which `_rollout` may have: the caller keeps the state."""
    return constrain(jax.tree.map(jnp.copy, state))


def _rollout_scan(
    graph: nnx.GraphDef, params: nnx.State, text, chunks, grid, strategy, trim, noise, state, remat
) -> Rollout:
    dit = nnx.merge(graph, params)
    batch = text.shape[0]
    cross = dit.encode_text(text)
    shape = (batch, strategy.chunk, *grid, dit.config.channels)

    def body(state: State, recorded: Array | None) -> tuple[State, tuple[Array, Record]]:
        drawn = strategy.noise(state, shape) if recorded is None else recorded
        state, x0, record = strategy.step(dit, cross, state, drawn, trim, remat)
        return state, (x0, record)

    state, (x0, record) = jax.lax.scan(body, state, noise, length=chunks)
    side = (grid[0] // dit.config.patch, grid[1] // dit.config.patch)
    latents = jnp.moveaxis(x0, 0, 1).reshape(batch, -1, *shape[2:])
    records = {
        field.name: jnp.moveaxis(getattr(record, field.name), 0, 1)
        for field in dataclasses.fields(record)
    }
    for name in ("drift", "pruned"):
        records[name] = records[name].reshape(batch, chunks, *side)
    return Rollout(latents=latents, state=constrain(state), **records)


# Takes the memory of the state it is given, which is lost: the K/V buffer is updated in place.
_rollout = jax.jit(_rollout_scan, static_argnums=(0, 3, 4, 5, 9), donate_argnums=(8,))
_rollout_traced = jax.jit(_rollout_scan, static_argnums=(0, 3, 4, 5, 9))


def _advance(*args: Any) -> Rollout:
    """`_rollout`; inside a transformation, where no memory can be given away, without that."""
    traced = any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(args))
    return (_rollout_traced if traced else _rollout)(*args)


def lower(
    dit: DiT,
    text: Float[Array | jax.ShapeDtypeStruct, "b l e"],
    *,
    chunks: int,
    grid: tuple[int, int],
    strategy: Strategy | None = None,
    trim: TokenTrim | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> jax.stages.Lowered:
    """The program of a `rollout`, traced and lowered for devices that needn't be here.

    Args:
        dit: a transformer; its arrays may be abstract (`checkpoint.abstract`).
        text: prompt embeddings `[B, text_len, text_dim]`, which may be abstract.
        chunks: number of chunks.
        grid: height and width of the latents.
        strategy: `SelfForcing()` if not given.
        trim: `TokenTrim()` if not given.
        mesh: the devices, JAX's default one if not given.

    Returns:
        The lowered program; `.compile()` asks the devices' compiler.
    """
    strategy = SelfForcing() if strategy is None else strategy
    trim = TokenTrim() if trim is None else trim
    graph, params = nnx.split(dit)
    key = jax.eval_shape(lambda: jax.random.key(0))
    begin = partial(_begin, graph)
    state = jax.eval_shape(
        lambda params, text, key: begin(params, text, key, grid, strategy, None), params, text, key
    )
    args = (chunks, grid, strategy, trim, None)
    if mesh is None:
        return _rollout.lower(graph, params, text, *args, state, False)
    nnx.replace_by_pure_dict(params, abstractly(nnx.to_pure_dict(params), mesh))
    replicated = NamedSharding(mesh, PartitionSpec())
    text = jax.ShapeDtypeStruct(text.shape, text.dtype, sharding=replicated)
    with jax.set_mesh(mesh):
        return _rollout.lower(graph, params, text, *args, abstractly(state, mesh), False)
