"""The rollout: one jitted `lax.scan` over chunks, and the state it carries."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Key

from tt_jax.contracts import checked
from tt_jax.models.dit import DiT
from tt_jax.settings import whole
from tt_jax.sharding import abstractly, automatic, constrain, everywhere, per_device, shared
from tt_jax.strategies.rolling_forcing import RollingForcing
from tt_jax.strategies.self_forcing import SelfForcing
from tt_jax.strategies.state import Record, State, latents_dtype, origin
from tt_jax.strategies.switch import Switch, switch
from tt_jax.trim.tokentrim import TokenTrim

Strategy = SelfForcing | RollingForcing


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rollout:
    """What `rollout` returns. Sample, then time (latent frame or chunk), then the rest.

    Truth values are bool, all other arrays float32 (float64 for weights of float64). Drift is
    Euclidean distance in latent values. What has no value yet is 0, never NaN or infinite, and
    `measured` or `tested` is False; see `numbers`.

    Attributes:
        latents: the generated latent frames, without `initial`.
        drift: token drift of each chunk's first attempt, on the transformer's token grid (equation
            2 of arXiv 2602.00268).
        pruned: share of the prunable frames in which an intervention dropped the position (0 or 1
            under "top").
        severity: mean drift of the first attempt's most drifting tokens (equation 4).
        accepted_severity: likewise of the attempt that was kept.
        threshold: what the first attempt was compared with (equation 5).
        measured: whether there was anything to compare the chunk with: else drift and severities
            have no value.
        tested: whether there was a threshold: else it has no value, and nothing triggers.
        triggered: whether the first attempt was abnormal.
        kept_fraction: valid context entries over written ones, when the chunk was made.
        state: continue from here, `rollout(..., state=out.state)`.
    """

    latents: Float[Array, "b frames h w c"]
    drift: Float[Array, "b chunks rows columns"]
    pruned: Float[Array, "b chunks rows columns"]
    severity: Float[Array, "b chunks"]
    accepted_severity: Float[Array, "b chunks"]
    threshold: Float[Array, "b chunks"]
    measured: Bool[Array, "b chunks"]
    tested: Bool[Array, "b chunks"]
    triggered: Bool[Array, "b chunks"]
    kept_fraction: Float[Array, "b chunks"]
    state: State

    def numbers(self) -> dict[str, np.ndarray]:
        """What TokenTrim saw and did, on the host.

        Returns:
            All fields but latents and state, by name, as arrays of numpy; NaN for what has no value
            yet.
        """
        names = [f.name for f in dataclasses.fields(self) if f.name not in ("latents", "state")]
        found = {name: np.asarray(getattr(self, name)) for name in names}
        for name in ("severity", "accepted_severity"):
            found[name] = np.where(found["measured"], found[name], np.nan)
        found["threshold"] = np.where(found["tested"], found["threshold"], np.nan)
        found["drift"] = np.where(found["measured"][..., None, None], found["drift"], np.nan)
        return found

    def __repr__(self) -> str:
        return f"Rollout(latents {list(np.shape(self.latents))})"


def check_request(
    dit: DiT,
    text: Any,
    key: Any,
    grid: tuple[int, int],
    strategy: Strategy,
    trim: TokenTrim,
    chunks: int,
    initial: Any,
    noise: Any,
    state: State | None,
) -> None:
    """Refuses a rollout that can't be, before anything is compiled.

    Args:
        dit: as in `rollout`, and so are the others.
        text: prompt embeddings.
        key: source of all noise.
        grid: height and width of the latents.
        strategy: how chunks are made.
        trim: TokenTrim's settings.
        chunks: how many.
        initial: latent frames to start from.
        noise: recorded noise.
        state: to continue from.

    Raises:
        ValueError: shapes, dtypes or settings don't fit together; one sentence says which.
    """
    config = dit.config
    # Those that a continued rollout makes again, since they were still in flight, included.
    made = chunks + (0 if state is None else strategy.lag)
    strategy.check(made, trim, 0 if initial is None else initial.shape[1])
    sizes = {"chunks": chunks, "height of grid": grid[0], "width of grid": grid[1]}
    for name, number in sizes.items():
        whole(name, number, 1)
    for name, given in (("text", text), ("initial", initial), ("noise", noise)):
        if given is not None and not jnp.issubdtype(given.dtype, jnp.floating):
            raise ValueError(f"{name} must be of floating-point numbers, not {given.dtype}.")
    if np.shape(trim.lam) or not jnp.issubdtype(jnp.result_type(trim.lam), jnp.number):
        raise ValueError(f"lam must be one number, not {trim.lam!r}: use jax.vmap for several.")
    if key is None and state is None:
        raise ValueError("a rollout starts from a key: give one, jax.random.key(0) say.")
    typed = isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if key is not None and (not typed or key.shape not in ((), text.shape[:1])):
        raise ValueError(
            "key must be one typed key, as jax.random.key(0) makes it, or one for each sample."
        )
    if not len(text) or text.shape[1:] != (config.text_len, config.text_dim):
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
    if state is not None and state.origin is not None:
        state.origin.check(origin(dit, strategy, len(text), (grid[0], grid[1])).after(trim))


def rollout(
    dit: DiT,
    text: Float[Array | np.ndarray, "b l e"],
    key: Key[Array, "*keys"] | None = None,
    *,
    chunks: int,
    grid: tuple[int, int],
    strategy: Strategy | None = None,
    trim: TokenTrim | None = None,
    initial: Float[Array | np.ndarray, "b given h w c"] | None = None,
    noise: Float[Array | np.ndarray, "chunks steps b f h w c"] | None = None,
    state: State | None = None,
    remat: bool = False,
) -> Rollout:
    """Generates `chunks` chunks of latent frames, each conditioned on the context of those before.

    Compiled once per configuration; `trim.lam` is data. A batch in which no sample is abnormal
    pays for no second generation; under `jax.vmap` that branch becomes a select and every chunk
    pays, so batch through B. Differentiable with respect to text, initial frames, noise and
    parameters (through `nnx.merge`), but for TokenTrim's choices: severity, trigger and selection
    have no gradient, and neither does where they would have fallen.

    Args:
        dit: a causal transformer; its weights decide the compute dtype, latents are float32.
        text: prompt embeddings, padded with zero rows, `[B, text_len, text_dim]`.
        key: source of all noise, a typed key (`jax.random.key`), or one for each sample, which is
            then what it would be alone. With a state: None goes on with the state's own, as if the
            rollout hadn't stopped, and a key branches off from there.
        chunks: how many, at least 1.
        grid: height and width of the latents (60, 104 for 832x480).
        strategy: `SelfForcing()` if not given.
        trim: `TokenTrim()` if not given.
        initial: latent frames to start from, at least one; not repeated in the result. Of any
            floating-point dtype, brought to that of the latents.
        noise: recorded noise to replay instead of drawing it: step 0 is the initial noise, step s
            the one that leads to level s. Of any floating-point dtype.
        state: `Rollout.state` of an earlier call with the same strategy, trim (but for `lam`),
            grid, batch and sizes of the model. Under Rolling Forcing the last 4 chunks of that
            call come again, now with what follows them, so that 4 more than `chunks` are returned
            (and are to be given as `noise`).
        remat: recompute activations in the backward pass, for gradients in little memory.

    Returns:
        The latents, the record of each chunk, and the state to continue from.

    Raises:
        ValueError: shapes or dtypes don't fit together, or the state was made with something else.
    """
    strategy = SelfForcing() if strategy is None else strategy
    trim = TokenTrim() if trim is None else trim
    check_request(dit, text, key, grid, strategy, trim, chunks, initial, noise, state)
    graph, params = nnx.split(dit)
    fresh, dtype = state is None, latents_dtype(dit)
    text, trim = jnp.asarray(shared(text)), _as_data(trim, dtype)
    key, state = shared((key, state))
    noise, given = shared((_cast(noise, dtype), _cast(initial, dtype)))
    state = _start(graph, params, text, key, grid, strategy, trim, given, state, remat)

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


def _cast(given: Any, dtype: jnp.dtype) -> Array | None:
    return None if given is None else jnp.asarray(given).astype(dtype)


def _as_data(trim: TokenTrim, dtype: jnp.dtype) -> TokenTrim:
    """`lam` as an array, so that every kind of number is the same program."""
    if isinstance(trim.lam, jax.Array):
        return dataclasses.replace(trim, lam=trim.lam.astype(dtype))
    return dataclasses.replace(trim, lam=shared(jax.device_put(np.asarray(trim.lam, dtype))))


def _start(
    graph: nnx.GraphDef, params: nnx.State, text, key, grid, strategy, trim, initial, state, remat
) -> State:  # fmt: skip
    """The state that the next chunk is made from, in memory that may be given away."""
    if state is None:  # `cast`, since what `jax.jit` returns has lost its types
        args = (graph, params, text, key, tuple(grid), strategy, initial, remat)
        state = cast(State, _begin(*args))
        assert state.origin is not None  # a strategy's `start` says what it is
        return dataclasses.replace(state, origin=state.origin.after(trim))
    if key is not None:
        state = dataclasses.replace(state, key=key)
    return cast(State, _copy(state))


def join(parts: Sequence[Rollout], state: State, first: int = 0) -> Rollout:
    """Rollouts one after the other.

    Args:
        parts: of the same samples.
        state: that of the whole.
        first: the chunk to begin with.

    Returns:
        Their chunks from `first` on as one rollout.
    """
    fields = {}
    for field in dataclasses.fields(Rollout):
        if field.name != "state":
            values = [getattr(part, field.name) for part in parts]
            skip = first * parts[0].latents.shape[1] // parts[0].severity.shape[1]
            whole = jnp.concatenate(values, axis=1)
            fields[field.name] = whole[:, skip if field.name == "latents" else first :]
    return checked(Rollout(**fields, state=state))


def stream(
    dit: DiT,
    text: Float[Array | np.ndarray, "b l e"],
    key: Key[Array, "*keys"] | None = None,
    *,
    chunks: int,
    grid: tuple[int, int],
    strategy: Strategy | None = None,
    trim: TokenTrim | None = None,
    initial: Float[Array | np.ndarray, "b given h w c"] | None = None,
    state: State | None = None,
    script: Mapping[int, Switch] | Callable[[int], Switch | None] | None = None,
) -> Iterator[Rollout]:
    """The chunks of a `rollout`, each as soon as it is finished.

    Compiled once, whatever the number of chunks. `state` of what is yielded is where to continue
    from; that of the chunks which Rolling Forcing finishes last is from before they were. It stays
    whole, so that memory for a second state is needed while the next chunk is made.

    Args:
        dit: as in `rollout`, and so are the others.
        text: prompt embeddings.
        key: source of all noise; with a state, None goes on with the state's own.
        chunks: how many.
        grid: height and width of the latents.
        strategy: `SelfForcing()` if not given.
        trim: `TokenTrim()` if not given.
        initial: latent frames to start from.
        state: to continue from.
        script: where the prompt changes: for the number of a chunk of this stream, from 0, another
            prompt. A function is asked right before a chunk is made.

    Yields:
        A `Rollout` of one chunk.

    Raises:
        ValueError: like `rollout`, when the first chunk is asked for; for a prompt of another
            shape, or a switch that the strategy doesn't have, at its chunk.
    """
    strategy = SelfForcing() if strategy is None else strategy
    trim = TokenTrim() if trim is None else trim
    check_request(dit, text, key, grid, strategy, trim, chunks, initial, None, state)
    graph, params = nnx.split(dit)
    fresh, dtype = state is None, latents_dtype(dit)
    ready = strategy.lag if fresh else 0
    text, trim = jnp.asarray(shared(text)), _as_data(trim, dtype)
    key, state, given = shared((key, state, _cast(initial, dtype)))
    state = _start(graph, params, text, key, grid, strategy, trim, given, state, False)
    resume = state
    for index in range(chunks + strategy.lag):
        change = None
        if script is not None and index < chunks:
            change = script(index) if callable(script) else script.get(index)
        if change is not None:
            if change.text.shape != text.shape:
                was, now = list(text.shape), list(change.text.shape)
                raise ValueError(f"chunk {index}'s prompt must be {was} like the first, not {now}.")
            text = jnp.asarray(shared(change.text))
            state = switch(dit, text, state, grid=grid, strategy=strategy, how=change.how)
        if index == chunks:
            assert not isinstance(strategy, SelfForcing)
            state = strategy.close(state)
        if 0 < index <= chunks:  # else nobody else has it
            state = cast(State, _copy(state))
        out = _advance(graph, params, text, 1, tuple(grid), strategy, trim, None, state, False)
        state = out.state
        if index < chunks:
            resume = state
        if index >= ready:
            yield dataclasses.replace(out, state=resume)


@partial(jax.jit, static_argnums=(0, 4, 5, 7), keep_unused=True)
def _begin(
    graph: nnx.GraphDef, params: nnx.State, text, key, grid, strategy, initial, remat=False
) -> State:  # fmt: skip
    """The state before the first chunk. A program of its own, so that a rollout that starts and
    one that goes on are the same compiled program; which takes arrays committed to the same
    devices too, hence `keep_unused`: the state lands where the parameters are."""

    def begin(params: nnx.State, text: Array, key: Array, initial: Array | None) -> State:
        dit = nnx.merge(graph, params)
        # A copy of the key: the state is given away, and the key is the caller's.
        state = per_device(strategy.start(dit, text.shape[0], grid, jnp.copy(key)))
        if initial is not None:
            state = strategy.condition(dit, dit.encode_text(text), state, initial, remat)
        return constrain(per_device(state))

    return automatic(begin, params, text, key, initial)


@jax.jit
def _copy(state: State) -> State:
    """The same in memory of its own, which `_rollout` may have: the caller keeps the state."""
    return automatic(lambda state: constrain(jax.tree.map(jnp.copy, state)), state)


def _rollout_scan(
    graph: nnx.GraphDef, params: nnx.State, text, chunks, grid, strategy, trim, noise, state, remat
) -> Rollout:
    def scan(*arrays: Any) -> Rollout:
        params, text, trim, noise, state = arrays
        return _scan(graph, params, text, chunks, grid, strategy, trim, noise, state, remat)

    return automatic(scan, params, text, trim, noise, state)


def _scan(graph, params, text, chunks, grid, strategy, trim, noise, state, remat) -> Rollout:
    dit = nnx.merge(graph, params)
    batch = text.shape[0]
    cross = dit.encode_text(text)
    shape = (batch, strategy.chunk, *grid, dit.config.channels)

    def body(state: State, recorded: Array | None) -> tuple[State, tuple[Array, Record]]:
        drawn = strategy.noise(state, shape) if recorded is None else recorded
        state, x0, record = strategy.step(dit, cross, state, drawn, trim, remat)
        return per_device(state), (x0, record)

    state, (x0, record) = jax.lax.scan(body, state, noise, length=chunks)
    side = (grid[0] // dit.config.patch, grid[1] // dit.config.patch)
    latents = jnp.moveaxis(x0, 0, 1).reshape(batch, -1, *shape[2:])
    records = {
        field.name: jnp.moveaxis(getattr(record, field.name), 0, 1)
        for field in dataclasses.fields(record)
    }
    for name in ("drift", "pruned"):
        records[name] = records[name].reshape(batch, chunks, *side)
    latents, records = everywhere((latents, records))
    return checked(Rollout(latents=latents, state=constrain(state), **records))


# Takes the memory of the state it is given, which is lost: the K/V buffer is updated in place.
_rollout = jax.jit(_rollout_scan, static_argnums=(0, 3, 4, 5, 9), donate_argnums=(8,))
_rollout_traced = jax.jit(_rollout_scan, static_argnums=(0, 3, 4, 5, 9))


def _advance(*args: Any) -> Rollout:
    """`_rollout`; where no memory can be given away, without that: inside a transformation, or
    when JAX runs a program again to find where a NaN came from."""
    config: Any = jax.config  # whose options become attributes when JAX is imported
    keep = config.jax_debug_nans or config.jax_debug_infs
    keep = keep or any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(args))
    return (_rollout_traced if keep else _rollout)(*args)


def lower(
    dit: DiT,
    text: Float[Array | np.ndarray | jax.ShapeDtypeStruct, "b l e"],
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
    trim = dataclasses.replace(trim, lam=jax.ShapeDtypeStruct((), latents_dtype(dit)))
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
