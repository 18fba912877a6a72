"""The invariants of the design, by their numbers. Tiny random models, float32, CPU."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models import random_dit
from parity import converted, distance
from safetensors.numpy import load_file

from convert.dit import native
from tt_jax import RollingForcing, SelfForcing, TokenTrim, rollout
from tt_jax._rollout import _begin, _rollout, join, stream
from tt_jax.cache.buffer import attention_mask
from tt_jax.checkpoint import abstract
from tt_jax.files import atomic
from tt_jax.models.dit import KV, DiTConfig
from tt_jax.nn.rope import rotation
from tt_jax.strategies.schedule import time_sinusoid

GRID = (8, 8)
CONFIG = DiTConfig(
    dim=48, ffn_dim=64, layers=2, heads=2, channels=4, text_dim=16, text_len=6, freq_dim=256
)
# 16 tokens, lambda far below any severity: every chunk from the fourth on triggers.
EAGER = TokenTrim(p=0.2, lam=-100.0)
STRATEGY = SelfForcing(window=9)


@pytest.fixture(scope="module")
def dit():
    return random_dit(CONFIG)


@pytest.fixture(scope="module")
def text() -> jax.Array:
    """Two prompts, zero-padded."""
    rows = jax.random.normal(jax.random.key(1), (2, CONFIG.text_len, CONFIG.text_dim))
    return rows.at[0, 4:].set(0).at[1, 2:].set(0)


def run(dit, text, chunks=7, key=0, trim=EAGER, strategy=STRATEGY, **more):
    return rollout(
        dit, text, jax.random.key(key), chunks=chunks, grid=GRID, strategy=strategy, trim=trim,
        **more,
    )  # fmt: skip


def equal(a, b):
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool(jnp.array_equal(x, y)), a, b)))


def records(out):
    return {
        field.name: getattr(out, field.name)
        for field in dataclasses.fields(out)
        if field.name != "state"
    }


def assert_same(a, b, rows=slice(None), chunks=slice(None), frames=slice(None)):
    """Latents within 1e-6, equal triggers and drops, over the given samples, chunks and frames."""
    left, right = np.asarray(a.latents)[rows, frames], np.asarray(b.latents)[rows, frames]
    assert np.linalg.norm(left - right) <= 1e-6 * np.linalg.norm(right)
    for name in ("triggered", "pruned"):
        left, right = (np.asarray(getattr(x, name))[rows, chunks] for x in (a, b))
        np.testing.assert_array_equal(left, right)


# --- 1: static shapes ---------------------------------------------------------------------------


def test_1_one_compilation_whatever_is_pruned(dit, text):
    run(dit, text, trim=TokenTrim(lam=1.0))
    before = _rollout._cache_size()
    outs = [run(dit, text, key=k, trim=TokenTrim(lam=lam)) for k, lam in ((0, -3.0), (1, 1e9))]
    assert _rollout._cache_size() == before
    assert outs[0].triggered.any() and not outs[1].triggered.any()


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 2])
def test_1_memory_does_not_grow_with_chunks(dit, text, batch):
    graph, params = nnx.split(dit)
    state = _begin(graph, params, text[:batch], jax.random.key(0), GRID, STRATEGY, None)

    def temporary(chunks):
        lowered = _rollout.lower(
            graph, params, text[:batch], chunks, GRID, STRATEGY, EAGER, None, state, False
        )
        analysis = lowered.compile().memory_analysis()
        return analysis.temp_size_in_bytes, analysis.output_size_in_bytes

    (short, short_out), (long, long_out) = temporary(10), temporary(200)
    # The outputs are once more in the temporaries, where the scan stacks them.
    assert long - short <= (long_out - short_out) + 0.01 * short


STRATEGIES = [SelfForcing(), SelfForcing(sink=3, relative=True), RollingForcing()]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES, ids=["absolute", "relative", "rolling"])
def test_1_the_kv_buffer_is_updated_in_place(strategy):
    """What a layer adds beside its part of the buffer: its keys and values of the new frames."""
    grid = (16, 16)

    def memory(layers):
        config = dataclasses.replace(CONFIG, dim=96, heads=3, layers=layers)
        graph, params = nnx.split(abstract("dit", config, jnp.float32))
        text = jax.ShapeDtypeStruct((1, config.text_len, config.text_dim), jnp.float32)
        state = jax.eval_shape(
            lambda params, text: _begin(
                graph, params, text, jax.random.key(0), grid, strategy, None
            ),
            params, text,
        )  # fmt: skip
        lowered = _rollout.lower(
            graph, params, text, 8, grid, strategy, TokenTrim(), None, state, False
        )
        used = lowered.compile().memory_analysis()
        new = used.output_size_in_bytes - used.alias_size_in_bytes
        return used.temp_size_in_bytes + new, 2 * 4 * state.context.k.size

    # Not one: a loop over a single layer is none.
    (few, part), (many, whole) = memory(2), memory(10)
    assert many - few <= 0.25 * (whole - part)


@pytest.mark.parametrize("frame", [0, 4095, 4096, 5000, 100_000, 16_000_000])
def test_1_frame_positions_have_no_end(frame):
    cos, sin = jax.jit(lambda f: rotation(f, 2, 3, 128))(jnp.array([frame], jnp.int32))
    frequency = 10000.0 ** (-np.arange(22) / 22)
    angle = frame * frequency
    for got, want in ((cos, np.cos(angle)), (sin, np.sin(angle))):
        np.testing.assert_allclose(np.asarray(got)[0, :22], want, atol=1e-6)


# --- 2: a pruned entry has no influence ---------------------------------------------------------


@pytest.mark.slow
def test_2_poisoned_entries_change_nothing(dit, text):
    state = run(dit, text).state
    context = state.context
    assert not context.valid.all(), "nothing was pruned, so nothing is tested"
    hole = ~context.valid.reshape(1, len(context.valid), -1, 1, 1)
    poisoned = dataclasses.replace(
        context, k=jnp.where(hole, 1e4, context.k), v=jnp.where(hole, -1e4, context.v)
    )
    never = dataclasses.replace(EAGER, lam=np.inf)
    poisoned = dataclasses.replace(state, context=poisoned)
    clean, dirty = (run(dit, text, chunks=1, state=s, trim=never) for s in (state, poisoned))
    assert equal(clean.latents, dirty.latents)


@pytest.mark.slow
def test_2_masking_equals_removing(dit, text):
    cross = dit.encode_text(text[:1])
    shape = (CONFIG.layers, 1, 40, CONFIG.heads, CONFIG.head_dim)
    k, v = (jax.random.normal(jax.random.key(i), shape) for i in (2, 3))
    keep = np.random.default_rng(0).random(40) < 0.6
    x = jax.random.normal(jax.random.key(4), (1, 3, *GRID, CONFIG.channels))
    time = jnp.asarray(time_sinusoid(np.full((1, 3), 0.8), CONFIG.freq_dim))
    frames = jnp.arange(3)
    mask = jnp.asarray(np.concatenate([keep, np.ones(48, bool)]))[None, None]
    masked, _ = dit(x, time, cross, frames, KV(k, v), mask)
    removed, _ = dit(x, time, cross, frames, KV(k[:, :, keep], v[:, :, keep]))
    unmasked, _ = dit(x, time, cross, frames, KV(k, v))
    assert np.linalg.norm(masked - removed) <= 1e-6 * np.linalg.norm(removed)
    assert np.linalg.norm(masked - unmasked) > 1e-3 * np.linalg.norm(removed)


# --- 3: off is the plain strategy ---------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("when", ["final", "first_step"])
@pytest.mark.parametrize("accept", ["always", "better"])
def test_3_off_and_never_triggering_are_plain(dit, text, when, accept):
    plain = run(dit, text, trim=TokenTrim.off())
    never = run(dit, text, trim=TokenTrim(lam=1e9, when=when, accept=accept))
    assert equal(plain.latents, never.latents)
    eager = run(dit, text, trim=dataclasses.replace(EAGER, when=when))
    assert not equal(plain.latents, eager.latents)


# --- 4: the scan is a loop ----------------------------------------------------------------------


@pytest.mark.slow
def test_4_scan_equals_python_loop(dit, text):
    out = run(dit, text)
    state = STRATEGY.start(dit, 2, GRID, jax.random.key(0))
    cross = dit.encode_text(text)
    step = jax.jit(lambda state, noise: STRATEGY.step(dit, cross, state, noise, EAGER))
    for chunk in range(7):
        noise = STRATEGY.noise(state, (2, 3, *GRID, CONFIG.channels))
        state, x0, record = step(state, noise)
        want = out.latents[:, 3 * chunk : 3 * chunk + 3]
        assert np.linalg.norm(x0 - want) <= 1e-6 * np.linalg.norm(want)
        np.testing.assert_array_equal(record.triggered, out.triggered[:, chunk])
        np.testing.assert_array_equal(record.pruned, out.pruned[:, chunk].reshape(2, -1))


# --- 5: prefix and continuation -----------------------------------------------------------------


@pytest.mark.slow
def test_5_prefix(dit, text):
    long, short = run(dit, text, chunks=9), run(dit, text, chunks=5)
    assert_same(long, short, chunks=slice(5), frames=slice(15))


@pytest.mark.slow
@pytest.mark.parametrize("when", ["final", "first_step"])
def test_5_continuing_equals_not_stopping(dit, text, when):
    trim = dataclasses.replace(EAGER, when=when, resample_noise=True)
    whole = run(dit, text, chunks=8, trim=trim)
    first = run(dit, text, chunks=3, trim=trim)
    second = run(dit, text, chunks=5, trim=trim, state=first.state)
    joined = jax.tree.map(
        lambda a, b: jnp.concatenate([a, b], axis=1), records(first), records(second)
    )
    assert_same(whole, type("Joined", (), joined))
    assert second.triggered.any()


def test_5_streaming_equals_the_scan(dit, text):
    out = run(dit, text, chunks=5)
    parts = list(
        stream(
            dit, text, jax.random.key(0), chunks=5, grid=GRID, strategy=STRATEGY, trim=EAGER
        )
    )  # fmt: skip
    assert len(parts) == 5
    assert_same(out, join(parts, state=parts[-1].state))
    assert equal(out.state, parts[-1].state)


def test_5_key_and_state_stay_the_callers(dit, text):
    """A rollout gives the memory of its own states away, not that of what it got or returned."""
    settings = {"grid": GRID, "strategy": STRATEGY, "trim": EAGER}
    key = jax.random.key(0)
    first = rollout(dit, text, key, chunks=5, **settings)
    one, two = (rollout(dit, text, key, chunks=5, state=first.state, **settings) for _ in range(2))
    assert equal(one.latents, two.latents)
    parts = list(stream(dit, text, key, chunks=2, state=first.state, **settings))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((key, first, one, parts)))


@pytest.mark.slow
def test_5_vmap_equals_a_rollout_each(dit, text):
    """Inside a transformation, where no memory can be given away."""
    keys = jax.random.split(jax.random.key(0), 2)

    def latents(key):
        return rollout(
            dit, text, key, chunks=2, grid=GRID, strategy=STRATEGY, trim=TokenTrim.off()
        ).latents

    both = jax.vmap(latents)(keys)
    for i in range(2):
        one = latents(keys[i])
        assert np.linalg.norm(both[i] - one) <= 1e-6 * np.linalg.norm(one)


# --- 6: samples are independent -----------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("select", "accept"),
    [("top", "always"), ("top", "better"), ("random", "always"), ("none", "always")],
)
def test_6_neighbours_do_not_matter(dit, text, select, accept):
    trim = TokenTrim(p=0.2, lam=-0.5, select=select, accept=accept, resample_noise=True)
    one = run(dit, text, chunks=9, trim=trim)
    assert one.triggered[0].any()
    assert (one.triggered[1] & ~one.triggered[0]).any()
    # The same first sample beside another neighbour, at equal batch size.
    other = run(dit, text.at[1].set(-3.0), chunks=9, trim=trim)
    assert not equal(one.triggered[1], other.triggered[1])
    assert equal(
        {k: v[0] for k, v in records(one).items()},
        {k: v[0] for k, v in records(other).items()},
    )


# --- 7: the buffer equals one block-causal pass -------------------------------------------------


@pytest.mark.slow
def test_7_chunks_with_context_equal_one_block_causal_pass(dit, text):
    cross = dit.encode_text(text)
    frames, size, tokens = STRATEGY.window, STRATEGY.chunk, 16
    x = jax.random.normal(jax.random.key(5), (2, frames, *GRID, CONFIG.channels))
    clean = jnp.asarray(time_sinusoid(np.zeros((1, frames)), CONFIG.freq_dim))
    block = np.repeat(np.arange(frames // size), size * tokens)
    mask = jnp.asarray(block[:, None] >= block)[None]
    want, _ = dit(x, clean, cross, jnp.arange(frames), None, mask)
    state = STRATEGY.start(dit, 2, GRID, jax.random.key(0))
    for start in range(0, frames, size):
        part = slice(start, start + size)
        index = jnp.arange(start, start + size)
        mask = attention_mask(state.context.valid, size * tokens)
        past = state.context.keys_values
        got, _ = dit(x[:, part], clean[:, part], cross, index, past, mask)
        assert np.linalg.norm(got - want[:, part]) <= 1e-6 * np.linalg.norm(want[:, part])
        state = STRATEGY.remember(dit, cross, state, x[:, part])


# --- 8: parity ----------------------------------------------------------------------------------
# One whole recorded rollout; the models one by one are in the test_parity files.


@pytest.mark.parity
def test_8_a_recorded_rollout(golden, parity_record):
    config = DiTConfig(dim=192, ffn_dim=384, layers=4, heads=4, text_dim=64, text_len=32)
    weights = load_file(golden / "dit_small_weights.safetensors")
    arrays = load_file(golden / "tokentrim_main.safetensors")
    later = arrays["noise_inter"]
    first = arrays["noise_init"].reshape(8, 1, *later.shape[2:])
    noise = np.moveaxis(np.concatenate([first, later], axis=1), 3, -1)[:, :, None]
    out = rollout(
        converted("dit", native, weights, config), jnp.asarray(arrays["prompt_embeds"]),
        jax.random.key(0), chunks=8, grid=(8, 12), strategy=STRATEGY, trim=TokenTrim(lam=-0.5),
        noise=jnp.asarray(noise),
    )  # fmt: skip
    np.testing.assert_array_equal(out.triggered[0], arrays["main.triggered"])
    value = distance(out.latents, np.moveaxis(arrays["main.latents"], 2, -1))
    parity_record("TokenTrim, 8 chunks", "recorded", "4 layers, width 192", value, 1e-5)


# --- 9: nothing half-written --------------------------------------------------------------------


@pytest.mark.parametrize("before", [None, "old"])
def test_9_files_appear_whole_or_not_at_all(tmp_path, before):
    path = tmp_path / "file.txt"
    if before is not None:
        path.write_text(before)
    with pytest.raises(KeyboardInterrupt), atomic(path) as aside:
        aside.write_text("half")
        assert not path.exists() if before is None else path.read_text() == before
        raise KeyboardInterrupt
    assert [p.read_text() for p in tmp_path.iterdir()] == ([] if before is None else [before])
    with atomic(path) as aside:
        aside.write_text("new")
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"] and path.read_text() == "new"
