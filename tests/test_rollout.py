"""Behaviour of `rollout()` beyond the invariants: gradients, records, initial frames, bad input."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models import random_dit

from tt_jax import SelfForcing, TokenTrim, rollout
from tt_jax.models.dit import DiTConfig

GRID = (4, 4)
CONFIG = DiTConfig(dim=24, ffn_dim=32, layers=2, heads=2, channels=2, text_dim=8, text_len=3)
STRATEGY = SelfForcing(window=6, steps=(1000, 500))


@pytest.fixture(scope="module")
def dit():
    return random_dit(CONFIG)


@pytest.fixture(scope="module")
def text():
    return jax.random.normal(jax.random.key(1), (1, CONFIG.text_len, CONFIG.text_dim))


def run(dit, text, chunks=2, trim=None, **more):
    trim = TokenTrim.off() if trim is None else trim
    more.setdefault("strategy", STRATEGY)
    return rollout(dit, text, jax.random.key(0), chunks=chunks, grid=GRID, trim=trim, **more)


# --- gradients ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("chunks", "trim"), [(1, TokenTrim.off()), (3, TokenTrim(lam=-100.0, warmup=1))]
)
def test_gradients_equal_finite_differences(dit, text, chunks, trim):
    graph, params = nnx.split(dit)
    initial = jax.random.normal(jax.random.key(2), (1, 3, *GRID, CONFIG.channels))
    weights = jax.random.normal(jax.random.key(3), (1, 3, *GRID, CONFIG.channels))

    def scalar(inputs, remat=False):
        params, text, initial = inputs
        out = run(nnx.merge(graph, params), text, chunks, trim, initial=initial, remat=remat)
        return jnp.sum(out.latents[:, -3:] * weights)

    inputs = (params, text, initial)
    gradient = jax.jit(jax.grad(scalar))(inputs)
    for part in gradient:
        norm = np.sqrt(sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(part)))
        assert np.isfinite(norm) and norm > 0
    leaves, structure = jax.tree.flatten(inputs)
    keys = jax.random.split(jax.random.key(4), len(leaves))
    direction = jax.tree.unflatten(
        structure,
        [jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)],
    )

    def moved(size):
        return jax.tree.map(lambda x, d: x + size * d, inputs, direction)

    step = 1e-3
    value = jax.jit(scalar)
    measured = float(value(moved(step)) - value(moved(-step))) / (2 * step)
    pairs = zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True)
    predicted = sum(float(jnp.sum(g * d)) for g, d in pairs)
    assert abs(measured - predicted) <= 2e-2 * abs(predicted) + 1e-2
    if chunks == 1:
        return  # remat over all chunks includes the first's
    again = jax.jit(jax.grad(lambda x: scalar(x, remat=True)))(inputs)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_severity_has_no_gradient(dit, text):
    gradient = jax.grad(lambda text: jnp.sum(run(dit, text).severity[:, 1:]))(text)
    assert not gradient.any()


# --- records ------------------------------------------------------------------------------------


def test_records_before_there_is_anything_to_compare(dit, text):
    out = run(dit, text, 4, TokenTrim(lam=-100.0))
    np.testing.assert_array_equal(out.measured[0], [False, True, True, True])
    np.testing.assert_array_equal(out.tested[0], [False, False, False, True])
    assert out.severity[0, 0] == out.accepted_severity[0, 0] == 0 and not out.drift[0, 0].any()
    assert (out.severity[0, 1:] > 0).all() and not out.threshold[0, :3].any()
    assert all(
        np.isfinite(leaf).all() for leaf in jax.tree.leaves(dataclasses.replace(out, state=0))
    )
    # Outside, NaN says that there is no value.
    outside = out.numbers()
    assert set(outside) == set(vars(out)) - {"latents", "state"}
    for name, known in (("severity", out.measured), ("threshold", out.tested)):
        np.testing.assert_array_equal(np.isnan(outside[name]), ~known)
        np.testing.assert_array_equal(outside[name][known], getattr(out, name)[known])
    assert np.isnan(outside["drift"][0, 0]).all() and np.isfinite(outside["drift"][0, 1:]).all()
    np.testing.assert_array_equal(out.triggered[0], [False, False, False, True])
    np.testing.assert_array_equal(out.pruned[0].reshape(4, -1).sum(1), [0, 0, 0, 1])
    assert out.kept_fraction[0, 3] == 0.75  # one of four tokens, in every cached frame
    assert out.drift.shape == (1, 4, 2, 2) and out.latents.shape == (1, 12, *GRID, 2)


def test_warmup_of_one_tests_the_third_chunk(dit, text):
    out = run(dit, text, 4, TokenTrim(lam=-100.0, warmup=1))
    np.testing.assert_array_equal(out.tested[0], [False, False, True, True])


@pytest.mark.slow
def test_retries_drop_what_the_attempt_before_found(dit, text):
    trim = TokenTrim(p=0.25, lam=-100.0, retries=3, select="random", resample_noise=True)
    out = run(dit, text, 4, trim)
    once = run(dit, text, 4, dataclasses.replace(trim, retries=1))
    assert once.pruned[0, 3].sum() == 1
    assert out.pruned[0, 3].sum() > 1
    assert (out.pruned[0, 3] >= once.pruned[0, 3]).all()


@pytest.mark.slow
def test_better_keeps_the_attempt_that_drifts_less(dit, text):
    trim = TokenTrim(p=0.25, lam=-100.0, warmup=1, accept="better", resample_noise=True)
    texts = jax.random.normal(jax.random.key(9), (8, CONFIG.text_len, CONFIG.text_dim))
    out = run(dit, texts, 6, trim)
    tested = np.asarray(out.tested)
    assert (out.accepted_severity[tested] <= out.severity[tested]).all()
    kept_first = np.asarray(out.accepted_severity == out.severity) & tested
    assert kept_first.any() and (~kept_first & tested).any()
    assert not np.asarray(out.pruned)[kept_first].any()


@pytest.mark.slow
def test_a_policy_of_ones_own(dit, text):
    def corner(drift, entry_drift, key):
        return jnp.zeros(entry_drift.shape, bool).at[:, :, 3].set(True)

    out = run(dit, text, 4, TokenTrim(lam=-100.0, select=corner))
    np.testing.assert_array_equal(out.pruned[0, 3], [[0, 0], [0, 1]])


@pytest.mark.slow
def test_sinks_are_exempt_unless_asked_for(dit, text):
    strategy = SelfForcing(window=12, sink=3, steps=(1000, 500))
    kept = run(dit, text, 5, TokenTrim(p=0.25, lam=-100.0), strategy=strategy).state.context
    assert kept.valid[0, :3].all() and not kept.valid[0, 3:].all()
    trim = TokenTrim(p=0.25, lam=-100.0, prune_sink=True)
    pruned = run(dit, text, 5, trim, strategy=strategy).state.context
    assert not pruned.valid[0, :3].all()
    np.testing.assert_array_equal(kept.frame[:3], [0, 1, 2])


# --- initial frames -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "count",
    [pytest.param(1, marks=pytest.mark.slow), 3, 4, pytest.param(8, marks=pytest.mark.slow)],
)
def test_initial_frames_fill_the_context(dit, text, count):
    initial = jax.random.normal(jax.random.key(5), (1, count, *GRID, CONFIG.channels))
    strategy = SelfForcing(window=9, steps=(1000, 500))
    out = run(dit, text, 1, initial=initial, strategy=strategy)
    assert out.latents.shape[1] == 3
    assert int(out.state.frame) == count + 3
    frames = np.sort(np.asarray(out.state.context.frame))
    want = np.arange(count + 3)[-6:]
    np.testing.assert_array_equal(frames[frames >= 0], want)
    assert out.measured[0, 0] and out.severity[0, 0] > 0  # compared with the initial frames


def test_generated_frames_as_initial_equal_going_on(dit, text):
    """Without TokenTrim, a rollout's own latents given as `initial` rebuild its context."""
    noise = jax.random.normal(jax.random.key(6), (4, 2, 1, 3, *GRID, CONFIG.channels))
    whole = run(dit, text, 4, noise=noise)
    rest = run(dit, text, 2, noise=noise[2:], initial=whole.latents[:, :6])
    want = whole.latents[:, 6:]
    assert np.linalg.norm(rest.latents - want) <= 1e-6 * np.linalg.norm(want)


# --- noise --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("exact")
def test_noise_comes_from_the_documented_keys(dit, text):
    key, shape = jax.random.key(0), (3, *GRID, CONFIG.channels)
    fold = jax.random.fold_in

    def draw(chunk, step):
        return jax.random.normal(fold(fold(fold(key, 0), chunk), step), shape)[None]

    noise = jnp.stack([jnp.stack([draw(t, s) for s in range(2)]) for t in range(3)])
    drawn, replayed = run(dit, text, 3), run(dit, text, 3, noise=noise)
    np.testing.assert_allclose(drawn.latents, replayed.latents, rtol=0, atol=1e-6)


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chunks": 0}, "chunks must be at least 1"),
        ({"initial": np.zeros((1, 0, 4, 4, 2))}, "initial must be"),
        ({"initial": np.zeros((1, 3, 4, 4, 3))}, "initial must be"),
        ({"noise": np.zeros((2, 2, 1, 3, 4, 4, 1))}, "noise must be"),
        ({"text": np.zeros((1, 4, 8))}, "text must be"),
    ],
)
def test_bad_requests_are_named(dit, text, change, message):
    change = {name: jnp.asarray(x) if hasattr(x, "shape") else x for name, x in change.items()}
    with pytest.raises(ValueError, match=message):
        run(dit, change.pop("text", text), **change)


def test_recorded_noise_excludes_resampling(dit, text):
    noise = jnp.zeros((2, 2, 1, 3, *GRID, CONFIG.channels))
    with pytest.raises(ValueError, match="exclude each other"):
        run(dit, text, trim=TokenTrim(resample_noise=True), noise=noise)


def test_odd_grids_are_refused(dit, text):
    with pytest.raises(ValueError, match="multiple of the patch"):
        rollout(dit, text, jax.random.key(0), chunks=1, grid=(3, 4))


@pytest.mark.parametrize("window, sink", [(3, 0), (6, 3), (21, -1)])
def test_windows_without_room_are_refused(window, sink):
    with pytest.raises(ValueError):
        SelfForcing(window=window, sink=sink)
