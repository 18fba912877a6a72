"""Other people's JAX: their switches, their transformations, their threads.

A switch is set by a context where JAX allows it, so that one process does; tiny models.
"""

import contextlib
import threading
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models import PROMPT, random_dit, write_tiny_model

import tt_jax
from tt_jax import FlowMo, RollingForcing, SelfForcing, TokenTrim, rollout, stream
from tt_jax.models.dit import DiTConfig
from tt_jax.trim import drift
from tt_jax.trim.tokentrim import TokenTrim as Trim

GRID = (4, 4)
CONFIG = DiTConfig(dim=24, ffn_dim=32, layers=1, heads=2, channels=2, text_dim=8, text_len=3)
SHAPE = (3, *GRID, CONFIG.channels)
SELF = SelfForcing(window=6, steps=(1000, 500))
ROLLING = RollingForcing(steps=(1000, 500))
STRATEGIES = {"self": SELF, "rolling": ROLLING}
# From the third chunk on, every one is made again.
EAGER = TokenTrim(p=0.25, lam=-100.0, warmup=1)


@pytest.fixture(scope="module")
def dit():
    return random_dit(CONFIG)


@pytest.fixture(scope="module")
def text():
    return jax.random.normal(jax.random.key(1), (1, CONFIG.text_len, CONFIG.text_dim))


def run(dit, text, key=0, strategy=SELF, trim=EAGER, chunks=4, **more):
    key = jax.random.key(key) if isinstance(key, int) else key
    return rollout(
        dit, text, key, chunks=chunks, grid=GRID, strategy=strategy, trim=trim, **more
    )  # fmt: skip


@pytest.fixture(scope="module")
def plain(dit, text):
    """What nobody's switches changed."""
    return {name: run(dit, text, strategy=strategy) for name, strategy in STRATEGIES.items()}


def assert_close(out, want, tolerance=2e-5):
    assert out.latents.dtype == want.latents.dtype
    np.testing.assert_allclose(out.latents, want.latents, rtol=0, atol=tolerance)
    np.testing.assert_array_equal(out.triggered, want.triggered)
    np.testing.assert_array_equal(out.pruned, want.pruned)


# --- switches -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", STRATEGIES)
def test_x64(dit, text, plain, name):
    """Nothing of it enters a float32 rollout, whose noise is the same."""
    with jax.enable_x64(True):
        out = run(dit, text, strategy=STRATEGIES[name])
        more = run(dit, text, None, strategy=STRATEGIES[name], state=out.state)
        given = {"initial": np.ones((1, *SHAPE)), "noise": np.zeros((4, 2, 1, *SHAPE))}
        from_given = run(dit, text, strategy=STRATEGIES[name], **given)
    assert_close(out, plain[name])
    dtypes = {str(leaf.dtype) for leaf in jax.tree.leaves((out, more))}
    assert dtypes <= {"float32", "bool", "int32", "key<fry>"}
    assert from_given.latents.dtype == np.float32


@pytest.mark.slow
@pytest.mark.parametrize("name", STRATEGIES)
def test_x64_with_weights_of_float64(dit, text, plain, name):
    graph, params = nnx.split(dit)
    with jax.enable_x64(True):
        double = nnx.merge(graph, jax.tree.map(lambda x: x.astype(jnp.float64), params))
        noise = [jax.random.normal(jax.random.key(2), (4, 2, 1, *SHAPE), "float32")] * 2
        out = run(double, text, strategy=STRATEGIES[name], noise=noise[0])
        more = run(double, text, None, strategy=STRATEGIES[name], state=out.state)
        drawn = run(double, text, strategy=STRATEGIES[name])
    assert {out.latents.dtype, out.severity.dtype, more.latents.dtype} == {np.dtype("float64")}
    assert drawn.latents.dtype == np.float64
    want = run(dit, text, strategy=STRATEGIES[name], noise=noise[1])
    np.testing.assert_allclose(out.latents, want.latents, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("switch", ["jax_debug_nans", "jax_debug_infs"])
@pytest.mark.parametrize("name", STRATEGIES)
def test_debug(dit, text, plain, switch, name):
    """No NaN and no infinity leaves a program, whatever has no value yet."""
    strategy = STRATEGIES[name]
    with switched(switch, True):
        assert_close(run(dit, text, strategy=strategy), plain[name], 0)
        off = run(dit, text, strategy=strategy, trim=TokenTrim(lam=np.inf))
        parts = list(stream(dit, text, jax.random.key(0), chunks=4, grid=GRID, strategy=strategy))
        run(dit, text, None, strategy=strategy, trim=TokenTrim(), state=parts[-1].state)
    assert not off.tested.any() and len(parts) == 4


@pytest.mark.parametrize("switch", ["jax_debug_nans", "jax_debug_infs"])
def test_debug_outside_of_a_program(switch):
    """The pieces as a researcher calls them, one operation at a time."""
    tokens, rows = jnp.ones((1, 3, 4, 2)), jnp.zeros((1, 2, 4))
    keys = jax.random.split(jax.random.key(0), 1)
    with switched(switch, True):
        statistics = drift.Statistics.start(1)
        for value in (1.0, 2.0):
            statistics.threshold(2.0, 1)
            statistics = statistics.update(jnp.array([value]), jnp.array(True))
        for select in ("top", "motion", "novelty", "adaptive", "per_frame"):
            trim = Trim(select=select)
            valid = jnp.zeros((1, 2, 4), bool)
            found = trim.measure(tokens, tokens[:, 0], tokens[:, :2], valid, (2, 2))
            assert trim.drop(found, rows, keys).shape == rows.shape


def test_debug_nans_finds_one_that_is_there(dit, text):
    """JAX runs the program again to find it, which must still have its arguments."""
    graph, params = nnx.split(dit)
    broken = nnx.merge(graph, jax.tree.map(lambda x: x * jnp.nan, params))
    with jax.debug_nans(True), pytest.raises(FloatingPointError):
        run(broken, text)


@pytest.mark.slow
@pytest.mark.parametrize("name", STRATEGIES)
def test_rank_promotion(dit, text, name):
    """With a guided chunk, given frames and every policy's arithmetic."""
    with jax.numpy_rank_promotion("raise"):
        run(dit, text, strategy=STRATEGIES[name], initial=jnp.ones((1, *SHAPE)))
        guided = type(STRATEGIES[name])(steps=(1000, 500), guidance=FlowMo())
        jax.eval_shape(partial(run, dit, strategy=guided), text)
        for select in ("random", "adaptive", "per_frame", "motion", "novelty"):
            trim = TokenTrim(select=select, accept="better")
            jax.eval_shape(partial(run, dit, strategy=STRATEGIES[name], trim=trim), text)


@pytest.mark.parametrize("name", ["self"])  # not in Rolling Forcing, between programs
def test_transfer_guard(dit, text, plain, name):
    """Nothing moves between host and device unasked, but what the caller gives."""
    key = jax.random.key(0)
    with jax.transfer_guard("disallow"):
        out = run(dit, text, key, strategy=STRATEGIES[name])
        more = run(dit, text, None, strategy=STRATEGIES[name], state=out.state)
        parts = list(stream(dit, text, key, chunks=4, grid=GRID, strategy=STRATEGIES[name]))
    assert_close(out, plain[name], 0)
    assert more.latents.shape[1] >= 12 and len(parts) == 4


@contextlib.contextmanager
def switched(name, value):
    before = getattr(jax.config, name)
    jax.config.update(name, value)
    try:
        yield
    finally:
        jax.config.update(name, before)


# --- transformations ----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", STRATEGIES)
def test_jit(dit, text, plain, name):
    """The caller's own program around a rollout and its continuation."""
    strategy = STRATEGIES[name]
    graph, params = nnx.split(dit)

    @jax.jit
    def both(params, text, key, trim):
        dit = nnx.merge(graph, params)
        first = run(dit, text, key, strategy=strategy, trim=trim)
        return first, run(dit, text, None, strategy=strategy, trim=trim, state=first.state)

    first, second = both(params, text, jax.random.key(0), EAGER)
    assert_close(first, plain[name])
    assert_close(second, run(dit, text, None, strategy=strategy, state=plain[name].state))
    assert first.state.origin == plain[name].state.origin


@pytest.mark.slow
@pytest.mark.parametrize("name", STRATEGIES)
def test_vmap(dit, text, plain, name):
    """Over keys and `lam`, with the states it gives."""
    strategy = STRATEGIES[name]

    def one(key, lam):
        return run(dit, text, key, strategy=strategy, trim=TokenTrim(0.25, lam, warmup=1))

    keys = jnp.stack([jax.random.key(seed) for seed in (0, 0, 3)])
    out = jax.vmap(one)(keys, jnp.array([-100.0, np.inf, -100.0]))
    assert_close(jax.tree.map(lambda x: x[0], out), plain[name])
    assert out.triggered[0].any() and not out.triggered[1].any() and not out.tested[1].any()

    def on(state):
        return run(dit, text, None, strategy=strategy, state=state).latents

    want = run(dit, text, None, strategy=strategy, state=plain[name].state).latents
    np.testing.assert_allclose(jax.vmap(on)(out.state)[0], want, rtol=0, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", STRATEGIES)
def test_grad(dit, text, name):
    """Through chunks made again, where JAX looks for NaN too."""

    def total(text, noise):
        return jnp.sum(run(dit, text, strategy=STRATEGIES[name], noise=noise).latents ** 2)

    noise = jax.random.normal(jax.random.key(2), (4, 2, 1, *SHAPE))
    with jax.debug_nans(True):
        gradients = jax.grad(total, (0, 1))(text, noise)
    for gradient in gradients:
        assert np.isfinite(gradient).all() and gradient.any()


@pytest.mark.slow
def test_pmap(dit, text, plain):
    graph, params = nnx.split(dit)

    def one(params, text, key):
        return run(nnx.merge(graph, params), text, key)

    out = jax.pmap(one, in_axes=(None, 0, 0))(params, text[None], jax.random.key(0)[None])
    assert_close(jax.tree.map(lambda x: x[0], out), plain["self"])


# --- dtypes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, np.float64])
def test_noise_and_given_frames_of_other_widths(dit, text, dtype):
    """What they hold, as float32."""
    noise, initial = np.ones((4, 2, 1, *SHAPE)) / 3, np.ones((1, *SHAPE)) / 7
    noise, initial = (np.asarray(x).astype(dtype) for x in (noise, initial))
    got = run(dit, text, noise=noise, initial=initial)
    want = run(dit, text, noise=noise.astype(np.float32), initial=initial.astype(np.float32))
    assert got.latents.dtype == np.float32
    np.testing.assert_array_equal(got.latents, want.latents)


@pytest.mark.slow
def test_text_of_16_bits(dit, text, plain):
    out = run(dit, text.astype(jnp.bfloat16))
    assert out.latents.dtype == np.float32
    assert 0 < np.abs(out.latents - plain["self"].latents).max() < 0.5


# --- threads and processes ----------------------------------------------------------------------


def test_threads(dit, text, plain):
    """Each with its own key, both in the same program, and one continued by both."""
    found = {}

    def work(seed):
        found[seed] = run(dit, text, seed), run(dit, text, seed, state=plain["self"].state)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(found[0][0].latents, plain["self"].latents)
    for seed in (0, 1):
        alone = run(dit, text, seed), run(dit, text, seed, state=plain["self"].state)
        for got, want in zip(found[seed], alone, strict=True):
            np.testing.assert_array_equal(got.latents, want.latents)


@pytest.mark.slow
@pytest.mark.usefixtures("exact")
def test_two_pipelines(tmp_path, tiny_model):
    """They share nothing but what is compiled, in turn as each alone; and nobody's switches."""
    pipes = [tt_jax.load(tiny_model), tt_jax.load(write_tiny_model(tmp_path / "other"))]
    alone = [list(pipe.stream(PROMPT, seconds=1.5)) for pipe in pipes]
    with switched("jax_debug_nans", True), switched("jax_debug_infs", True):
        streams = [pipe.stream(PROMPT, seconds=1.5) for pipe in pipes]
        turns = [[next(stream) for stream in streams] for _ in alone[0]]
    for i, chunks in enumerate(alone):
        for turn, chunk in zip(turns, chunks, strict=True):
            np.testing.assert_array_equal(turn[i].frames, chunk.frames)
