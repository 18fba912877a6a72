"""The invariants of the design for every cache policy, at a tiny model; as in test_invariants."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models import random_dit

from tt_jax import SelfForcing, TokenTrim, rollout
from tt_jax._rollout import _begin, _rollout, stream
from tt_jax.cache import (
    DeepForcing,
    EmaSink,
    FadeMem,
    InfinityRope,
    LongLive,
    MemRope,
    RelaxForcing,
    RollingSink,
    TetherCache,
    Window,
    buffer,
)
from tt_jax.models.dit import DiTConfig

GRID = (4, 4)
PLACES = 4
CONFIG = DiTConfig(dim=24, ffn_dim=32, layers=2, heads=2, channels=4, text_dim=8, text_len=4)
CHUNKS = 7  # by then every policy has evicted, chosen and averaged
# Far below any severity: every chunk from the fourth on triggers, and drops a place.
EAGER = TokenTrim(p=0.25, lam=-100.0)
OFF = TokenTrim.off()

POLICIES = [
    Window(9, 2),
    InfinityRope(),
    LongLive(9, 2),
    MemRope(10, 2),
    MemRope(10, 2, summary="adaptive"),
    EmaSink(9, 2),
    RollingSink(9),
    RelaxForcing(12),
    DeepForcing(frames=11, sink=3, budget=8, recent=4, reuse=2),
    TetherCache(9, 2),
    FadeMem(9, 5),
]
every_policy = pytest.mark.parametrize("policy", POLICIES, ids=lambda p: repr(p).replace(" ", ""))
# A window, averages and an archive; the others are slow.
QUICK = (Window, EmaSink, RelaxForcing)
some_quickly = pytest.mark.parametrize(
    "policy",
    [p if isinstance(p, QUICK) else pytest.param(p, marks=pytest.mark.slow) for p in POLICIES],
    ids=lambda p: repr(p).replace(" ", ""),
)


@functools.cache
def dit():
    return random_dit(CONFIG)


@functools.cache
def text():
    rows = jax.random.normal(jax.random.key(1), (2, CONFIG.text_len, CONFIG.text_dim))
    return rows.at[0, 3:].set(0).at[1, 2:].set(0)


def strategy(policy):
    return SelfForcing(cache=policy, steps=(1000, 500))


def arguments(policy, lam=EAGER.lam):
    trim = dataclasses.replace(EAGER, lam=lam)
    return {"grid": GRID, "strategy": strategy(policy), "trim": trim}


@functools.cache
def chunks(policy):
    """A stream's chunks, each with the state after it: a Python loop over one compiled step."""
    return list(stream(dit(), text(), jax.random.key(0), chunks=CHUNKS, **arguments(policy)))


def with_lam(trim, lam):
    return dataclasses.replace(trim, lam=jnp.float32(lam))


def begin(policy):
    graph, params = nnx.split(dit())
    return _begin(graph, params, text(), jax.random.key(0), GRID, strategy(policy), None)


@functools.cache
def program(policy, count, trim=EAGER):
    """The whole rollout of so many chunks, compiled."""
    graph, params = nnx.split(dit())
    args = (count, GRID, strategy(policy), with_lam(trim, trim.lam), None)
    return _rollout.lower(graph, params, text(), *args, begin(policy), False).compile()


def whole(policy, trim=EAGER, lam=EAGER.lam):
    """A rollout of `CHUNKS` chunks by `program`."""
    params = nnx.split(dit())[1]
    made = program(policy, CHUNKS, trim)
    return made(params, text(), with_lam(trim, lam), None, begin(policy))


def latents(parts):
    return np.concatenate([part.latents for part in parts], axis=1)


def equal(a, b):
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool(jnp.array_equal(x, y)), a, b)))


def next_chunk(policy, state, lam=EAGER.lam, prompts=None):
    prompts = text() if prompts is None else prompts
    return rollout(
        dit(), prompts, jax.random.key(0), chunks=1, state=state, **arguments(policy, lam)
    )


@pytest.mark.slow
@every_policy
def test_1_one_compilation_and_states_of_one_shape(policy):
    states = [part.state for part in chunks(policy)]
    shapes = {str(jax.tree.map(lambda x: (x.shape, x.dtype), state)) for state in states}
    assert len(shapes) == 1
    before = _rollout._cache_size()
    out = next_chunk(policy, states[2], lam=1e9)
    assert _rollout._cache_size() == before
    assert chunks(policy)[3].triggered.all() and not out.triggered.any()


@some_quickly
def test_2_what_may_not_be_read_has_no_influence(policy):
    """Large values in dropped and empty entries, of buffer and archive, change nothing: neither the
    chunk, nor what is averaged or stored when it is accepted."""
    for part in chunks(policy)[2:CHUNKS:2]:
        context = part.state.context
        may = buffer.prunable(context, False)[:, None] & (jnp.arange(PLACES) == 1)[None]
        context = dataclasses.replace(context, valid=context.valid & ~may[None])
        assert bool(may.any()) and not bool(context.valid.all())
        got = [
            next_chunk(policy, dataclasses.replace(part.state, context=one), lam=1e9)
            for one in (context, poisoned(policy, context, may))
        ]
        got += [next_chunk(policy, one.state, lam=1e9) for one in got]
        for clean, poison in (got[:2], got[2:]):
            np.testing.assert_array_equal(poison.latents, clean.latents)


def poisoned(policy, context, may):
    """With 100 in everything that may not be read, `may` among it."""
    memory = context.memory
    hidden = (~context.valid).reshape(1, len(context.valid), -1)
    if isinstance(policy, RollingSink):
        here = context.frame == jnp.arange(len(context.frame))  # frames that are themselves
        lost = ~memory["valid"] | (here[:, None] & may)[None]
        memory = memory | filled(memory["k"], memory["v"], lost.reshape(1, len(lost), -1))
    elif isinstance(policy, RelaxForcing):
        archive = memory["archive"]
        newest = archive.frame == jnp.max(archive.frame)
        lost = ~archive.valid | (newest[:, None] & (jnp.arange(PLACES) == 1)[None])[None]
        lost = lost.reshape(1, len(lost), -1)
        archive = dataclasses.replace(archive, **filled(archive.k, archive.v, lost))
        memory = memory | {"archive": archive}
    elif isinstance(policy, TetherCache | DeepForcing):
        # Each layer's own; Deep Forcing's by the places that its tokens come from.
        start, kept = policy.sink * PLACES, memory["kept"]
        if isinstance(policy, DeepForcing):
            chosen = slice(start, (policy.budget - policy.recent) * PLACES)
            lost = ~kept[:, :, chosen] | (memory["place"][:, :, chosen] == 1)
        else:
            kept = kept.reshape(*kept.shape[:2], -1)
            chosen = slice(start, start + kept.shape[2])
            lost = ~kept | hidden[:, :, chosen]
        hidden = jnp.broadcast_to(hidden, (len(kept), *hidden.shape[1:]))
        hidden = hidden.at[:, :, chosen].set(lost)
    return dataclasses.replace(context, **filled(context.k, context.v, hidden), memory=memory)


def filled(k, v, hidden):
    rows = hidden[..., None, None]
    return {"k": jnp.where(rows, 100.0, k), "v": jnp.where(rows, 100.0, v)}


@pytest.mark.slow
@every_policy
def test_3_off_is_a_trigger_that_never_fires(policy):
    never = whole(policy, lam=1e9)
    off = whole(policy, OFF)
    np.testing.assert_array_equal(never.latents, off.latents)
    assert np.isfinite(never.latents).all()


@pytest.mark.slow
@every_policy
def test_4_5_the_scan_equals_a_loop_that_goes_on_from_each_state(policy):
    out = whole(policy)
    want = latents(chunks(policy))
    assert np.linalg.norm(out.latents - want) <= 1e-6 * np.linalg.norm(want)
    for name in ("triggered", "pruned"):
        want = np.concatenate([getattr(part, name) for part in chunks(policy)], axis=1)
        np.testing.assert_array_equal(getattr(out, name), want)
    # The same chunk twice from one state, and the state stays the caller's.
    state = chunks(policy)[3].state
    again = next_chunk(policy, state)
    assert equal(again.latents, chunks(policy)[4].latents)
    assert equal(again.state, chunks(policy)[4].state)


@some_quickly
def test_6_neighbours_do_not_matter(policy):
    other = text().at[1].set(-3.0)
    state = None
    for part in chunks(policy):
        if state is None:
            out = rollout(dit(), other, jax.random.key(0), chunks=1, **arguments(policy))
        else:
            out = next_chunk(policy, state, prompts=other)
        state = out.state
        np.testing.assert_array_equal(out.latents[0], part.latents[0])
    assert not equal(out.latents[1], chunks(policy)[-1].latents[1])


@pytest.mark.slow
@every_policy
def test_1_memory_does_not_grow_with_chunks(policy):
    def temporary(count):
        analysis = program(policy, count, OFF).memory_analysis()
        return analysis.temp_size_in_bytes, analysis.output_size_in_bytes

    (short, short_out), (long, long_out) = temporary(CHUNKS), temporary(200)
    assert long - short <= (long_out - short_out) + 0.01 * short
