"""What a state knows of its making, whose randomness goes on, and settings that can't be."""

import dataclasses
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models import random_dit

from tt_jax import FlowMo, RollingForcing, SelfForcing, TokenTrim, rollout, stream
from tt_jax.cache.window import Window
from tt_jax.models.dit import DiTConfig
from tt_jax.strategies.schedule import check_steps
from tt_jax.strategies.state import random_key

GRID = (4, 4)
CONFIG = DiTConfig(dim=24, ffn_dim=32, layers=1, heads=2, channels=2, text_dim=8, text_len=3)
STRATEGY = SelfForcing(window=6, steps=(1000, 500))
TRIM = TokenTrim(p=0.25, lam=-100.0, warmup=1)


@pytest.fixture(scope="module")
def dit():
    return random_dit(CONFIG)


@pytest.fixture(scope="module")
def text():
    return jax.random.normal(jax.random.key(1), (1, CONFIG.text_len, CONFIG.text_dim))


def run(dit, text, key=None, chunks=3, **changed):
    key = jax.random.key(key) if isinstance(key, int) else key
    settings = {"grid": GRID, "strategy": STRATEGY, "trim": TRIM, **changed}
    return rollout(dit, text, key, chunks=chunks, **settings)


@pytest.fixture(scope="module")
def first(dit, text):
    return run(dit, text, 0)


def same(a, b):
    return bool(jnp.array_equal(a.latents, b.latents))


# --- what made it -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"strategy": SelfForcing(window=6)},
            r"steps \(1000, 500\).*steps \(1000, 750",
        ),
        ({"strategy": dataclasses.replace(STRATEGY, window=9)}, "frames=6.*frames=9"),
        ({"strategy": dataclasses.replace(STRATEGY, sink=1)}, "sink=0.*sink=1"),
        ({"strategy": dataclasses.replace(STRATEGY, relative=True)}, "relative=False.*=True"),
        ({"strategy": dataclasses.replace(STRATEGY, guidance=FlowMo())}, "guidance None.*FlowMo"),
        ({"strategy": RollingForcing(), "chunks": 5}, "strategy 'SelfForcing'.*'RollingForcing'"),
        ({"trim": dataclasses.replace(TRIM, p=0.5)}, r"p 0\.25 and .*with p 0\.5\."),
        ({"trim": TokenTrim.off()}, "retries 1.*retries 0"),
        ({"grid": (4, 8)}, r"grid \(4, 4\) and .*grid \(4, 8\)"),
        ({"text": jnp.zeros((2, 3, 8))}, "batch 1 and .*batch 2"),
        ({"config": dataclasses.replace(CONFIG, layers=2)}, "layers 1 and .*layers 2"),
    ],
)
def test_a_state_goes_on_with_nothing_else(dit, text, first, changed, said):
    other = random_dit(changed.pop("config")) if "config" in changed else dit
    prompt = changed.pop("text", text)
    message = rf"^the state was made with .*{said}"
    for call in (run, lambda *a, **k: next(stream(*a[:2], None, **{**settings(), **k}))):
        with pytest.raises(ValueError, match=message) as refused:
            call(other, prompt, state=first.state, **changed)
        assert str(refused.value).count(". ") == 0


def settings():
    return {"chunks": 1, "grid": GRID, "strategy": STRATEGY, "trim": TRIM}


def test_weights_of_another_kind_are_refused(text, first):
    wide = random_dit(CONFIG)
    wide.head.kernel = nnx.Param(wide.head.kernel[...].astype(jnp.bfloat16))
    with pytest.raises(ValueError, match=r"weights of 'float32' and .*weights of 'bfloat16'"):
        run(wide, text, state=first.state)


def test_lam_is_data_and_infinite_switches_off(dit, text, first):
    """Within one compiled program; and what never triggers is what never acts."""
    from tt_jax._rollout import _rollout

    on = run(dit, text, state=first.state)
    before = _rollout._cache_size()
    trims = [dataclasses.replace(TRIM, lam=lam) for lam in (np.inf, 1e9, jnp.inf)]
    off, never, as_array = (run(dit, text, state=first.state, trim=trim) for trim in trims)
    assert _rollout._cache_size() == before
    assert on.triggered.all() and on.tested.all() and never.tested.all()
    for out in (off, as_array):
        assert not out.tested.any() and not out.threshold.any() and out.measured.all()
        assert same(out, never) and not same(out, on)
    assert run(dit, text, state=off.state).triggered.all()


def test_a_cache_in_short_is_the_same(dit, text, first):
    long = SelfForcing(cache=Window(frames=6), steps=(1000, 500))
    assert same(run(dit, text, state=first.state, strategy=long), run(dit, text, state=first.state))


def test_a_state_keeps_its_origin(dit, text, first):
    """Through copies of its arrays, on the host as in programs."""
    want = run(dit, text, state=first.state)
    leaves, structure = jax.tree.flatten(first.state)
    back = jax.tree.unflatten(structure, [jnp.copy(leaf) for leaf in leaves])
    inside = jax.jit(lambda state: dataclasses.replace(state, chunk=state.chunk))(first.state)
    for state in (back, inside):
        assert state.origin == first.state.origin
        assert same(run(dit, text, state=state), want)
    assert pickle.loads(pickle.dumps(first.state.origin)) == first.state.origin
    assert first.state.origin.trim.lam == 0
    text_of = repr(first.state)
    assert len(text_of) < 400 and "before chunk 3" in text_of and "window=6" in text_of
    assert "latents [1, 9, 4, 4, 2]" in repr(first)


@pytest.mark.slow
def test_a_start_goes_on_under_any_trim(dit, text):
    state = STRATEGY.start(dit, 1, GRID, jax.random.key(0))
    for trim in (TRIM, dataclasses.replace(TRIM, p=0.5)):
        assert same(run(dit, text, state=state, trim=trim), run(dit, text, 0, trim=trim))


# --- whose randomness ---------------------------------------------------------------------------


@pytest.mark.slow
def test_without_a_key_a_state_goes_on_with_its_own(dit, text, first):
    whole = run(dit, text, 0, chunks=6)
    rest = run(dit, text, state=first.state)
    np.testing.assert_allclose(rest.latents, whole.latents[:, 9:], rtol=0, atol=1e-5)
    parts = list(stream(dit, text, state=first.state, **{**settings(), "chunks": 3}))
    joined = jnp.concatenate([part.latents for part in parts], axis=1)
    np.testing.assert_allclose(joined, rest.latents, rtol=0, atol=1e-5)


def test_with_a_key_it_branches_off(dit, text, first):
    own, one, again, other = (run(dit, text, key, state=first.state) for key in (None, 5, 5, 6))
    assert same(one, again) and not same(one, own) and not same(one, other)
    assert same(run(dit, text, 0, state=first.state), own)
    # From there on the branch's key is the state's own.
    assert same(run(dit, text, state=one.state), run(dit, text, 5, state=one.state))
    part = next(stream(dit, text, jax.random.key(5), state=first.state, **settings()))
    np.testing.assert_allclose(part.latents, one.latents[:, :3], rtol=0, atol=1e-5)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("key", "said"),
    [
        (None, "a rollout starts from a key"),
        (jax.random.PRNGKey(0), "one typed key"),
        (np.arange(2), "one typed key"),
    ],
)
def test_keys_that_cannot_be(dit, text, key, said):
    with pytest.raises(ValueError, match=said):
        run(dit, text, key)


@pytest.mark.usefixtures("unchecked")
def test_seeds_of_64_bits():
    data = [jax.random.key_data(random_key(seed)) for seed in (0, 7, 2**32 - 1, 2**32, 2**40)]
    assert len({tuple(words.tolist()) for words in data}) == 5
    np.testing.assert_array_equal(data[1], jax.random.key_data(jax.random.key(7)))
    for seed in (-1, 2**64, 1.0, True, "3"):
        with pytest.raises(ValueError, match="seed must be a whole number from 0 to 18446"):
            random_key(seed)


# --- settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [SelfForcing, RollingForcing])
@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ((), "at least one"),
        ((1500, 500), "a denoising step must be a whole number from 1 to 1000, not 1500"),
        ((500, 0), "from 1 to 1000, not 0"),
        ((1000.0, 500), r"from 1 to 1000, not 1000\.0"),
        ((500, 1000), r"must descend, the noisiest first, not \(500, 1000\)"),
        ((500, 500), "must descend"),
        ("1000", "a sequence of whole numbers, not '1000'"),
        (1000, "a sequence of whole numbers, not 1000"),
    ],
)
def test_steps_that_cannot_be(make, steps, said):
    with pytest.raises(ValueError, match=said):
        make(steps=steps)


def test_steps_of_any_sequence():
    for steps in ([1000, 500], np.array([1000, 500]), range(1000, 0, -500)):
        assert check_steps(steps) == (1000, 500)
        assert SelfForcing(steps=steps) == SelfForcing(steps=(1000, 500))
        assert hash(RollingForcing(steps=steps)) == hash(RollingForcing(steps=(1000, 500)))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: SelfForcing(chunk=0), "chunk must be a whole number at least 1, not 0"),
        (lambda: SelfForcing(window=21.0), "window must be a whole number at least 1, not 21.0"),
        (lambda: SelfForcing(sink="3"), "sink must be a whole number at least 0, not '3'"),
        (lambda: SelfForcing(relative=1), "relative must be True or False, not 1"),
        (lambda: SelfForcing(guidance="first"), "guidance must be a FlowMo, not 'first'"),
        (lambda: SelfForcing(cache=21), "cache must be a policy"),
        (lambda: RollingForcing(guidance=0.24), "guidance must be a FlowMo, not 0.24"),
        (lambda: FlowMo(fraction="all"), "fraction must be a finite number, not 'all'"),
        (lambda: FlowMo(rate=np.inf), "rate must be a finite number, not inf"),
    ],
)
def test_settings_that_cannot_be(make, said):
    with pytest.raises(ValueError, match=said):
        make()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"chunks": 2.0}, r"chunks must be a whole number at least 1, not 2\.0"),
        ({"grid": (0, 4)}, "height of grid must be a whole number at least 1, not 0"),
        ({"grid": (4, 4.0)}, r"width of grid must be a whole number at least 1, not 4\.0"),
        ({"text": np.zeros((1, 3, 8), int)}, "text must be of floating-point numbers, not int64"),
        ({"text": np.zeros((0, 3, 8))}, "text must be"),
        ({"initial": np.zeros((1, 3, 4, 4, 2), bool)}, "initial must be of float.*bool"),
        (
            {"noise": np.zeros((3, 2, 1, 3, 4, 4, 2), "i4")},
            "noise must be of float.*int32",
        ),
        ({"trim": TokenTrim(lam=jnp.zeros(2))}, "lam must be one number.*jax.vmap"),
    ],
)
def test_requests_that_cannot_be(dit, text, changed, said):
    with pytest.raises(ValueError, match=said):
        run(dit, changed.pop("text", text), 0, **changed)
