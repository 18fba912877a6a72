"""Drift, statistics and pruning policies on maps small enough to work out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import random_dit

from tt_jax import SelfForcing, TokenTrim, rollout
from tt_jax.models.dit import DiTConfig
from tt_jax.trim import drift
from tt_jax.trim.drift import RECENT, Statistics
from tt_jax.trim.policies import MEASURES, POLICIES

# Two samples of six tokens, two cached frames.
DRIFT = jnp.array([[1.0, 9.0, 2.0, 8.0, 3.0, 7.0], [6.0, 5.0, 4.0, 3.0, 2.0, 1.0]])
ENTRY = jnp.array(
    [
        [[9.0, 9.5, 9.0, 7.9, 9.0, 9.0], [0.0, 8.0, 0.0, 12.0, 0.0, 99.0]],
        [[5.0, 5.0, 5.0, 5.0, 5.0, 5.0], [4.9, 4.9, 4.9, 4.9, 4.9, 4.9]],
    ]
)


def dropped(select, drift=DRIFT, entry=ENTRY, p=0.3, keys=None):
    """The policy's mask as 0 and 1; of six tokens, p = 0.3 makes two unstable."""
    trim = TokenTrim(p=p, select=select, resample_noise=True)
    keys = jax.random.split(jax.random.key(0), len(drift)) if keys is None else keys
    mask = jax.jit(trim.drop)(drift, entry, keys)
    assert mask.dtype == bool and mask.shape == entry.shape
    return mask.astype(int).tolist()


# --- policies -----------------------------------------------------------------------------------


def test_top():
    first, second = [0, 1, 0, 1, 0, 0], [1, 1, 0, 0, 0, 0]
    assert dropped("top") == [[first, first], [second, second]]


def test_bottom():
    first, second = [1, 0, 1, 0, 0, 0], [0, 0, 0, 0, 1, 1]
    assert dropped("bottom") == [[first, first], [second, second]]


def test_none():
    assert dropped("none") == np.zeros((2, 2, 6), int).tolist()


def test_per_frame():
    # Sample 0: of tokens 1 and 3, whose least drift is 8, entries at least that far off.
    # Sample 1: tokens 0 and 1, least drift 5.
    assert dropped("per_frame") == [
        [[0, 1, 0, 0, 0, 0], [0, 1, 0, 1, 0, 0]],
        [[1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]],
    ]


@pytest.mark.parametrize(
    ("p", "wanted"),
    [
        (0.3, [0, 0, 0, 0, 0, 1, 0, 1, 0, 0]),  # a budget of 3; the third is no outlier
        (0.1, [0, 0, 0, 0, 0, 1, 0, 0, 0, 0]),  # the budget cuts
    ],
)
def test_adaptive(p, wanted):
    # Median 1.025, median distance to it 0.1: outliers lie above 1.025 + 3 x 0.148 = 1.47.
    row = jnp.array([[1.0, 1.4, 0.8, 1.1, 0.9, 9.0, 1.0, 1.55, 1.05, 0.95]])
    assert dropped("adaptive", row, jnp.zeros((1, 2, 10)), p) == [[wanted, wanted]]


def test_adaptive_drops_nothing_of_what_drifts_alike():
    assert not np.any(dropped("adaptive", jnp.ones((1, 10)), jnp.zeros((1, 2, 10))))


def test_random_is_of_the_same_size_and_everywhere():
    drift, entry = jnp.zeros((3, 30)), jnp.zeros((3, 4, 30))
    mask = np.array(dropped("random", drift, entry, p=0.1))
    assert (mask.sum(axis=2) == 3).all() and (mask == mask[:, :1]).all()
    assert (mask[0] != mask[1]).any() and (mask[1] != mask[2]).any()


def test_random_of_a_sample_depends_on_its_key_alone():
    keys = jax.random.split(jax.random.key(5), 3)
    both = dropped("random", keys=keys[:2])
    assert dropped("random", keys=keys[2:0:-1])[1] == both[1]
    assert dropped("random", DRIFT[:1], ENTRY[:1], keys=keys[:1])[0] == both[0]


@pytest.mark.parametrize("select", ["motion", "novelty"])
def test_policies_with_a_measure_drop_the_most_drifting(select):
    assert dropped(select) == dropped("top")


def test_of_equal_tokens_the_first_is_dropped():
    row, entry = jnp.ones((1, 6)), jnp.zeros((1, 1, 6))
    assert dropped("top", row, entry) == [[[1, 1, 0, 0, 0, 0]]]
    assert dropped("bottom", row, entry) == [[[1, 1, 0, 0, 0, 0]]]


def test_own_policy():
    def third(drift, entry_drift, key):
        return jnp.zeros(entry_drift.shape, bool).at[:, 1, 2].set(True)

    mask = [[0] * 6, [0, 0, 1, 0, 0, 0]]
    assert dropped(third) == [mask, mask]


def test_every_policy_is_tested_here():
    tested = {"top", "random", "bottom", "none", "adaptive", "per_frame", "motion", "novelty"}
    tested |= {"newest"}
    assert set(POLICIES) == tested and set(MEASURES) == {"motion", "novelty", "newest"}


# --- drift --------------------------------------------------------------------------------------

# A bright token on a dark 3x4 grid, of two latent values.
GRID = (3, 4)


def bright(*places):
    tokens = np.zeros((12, 2), np.float32)
    tokens[list(places)] = (3, 4)
    return tokens


def measured(select, frames, before, context, filled):
    trim = TokenTrim(p=0.3, select=select, resample_noise=True)
    arrays = (jnp.array(np.stack(x)[None]) for x in (frames, context))
    tokens, context = arrays
    valid = jnp.broadcast_to(jnp.array(filled)[:, None], context.shape[1:3])[None]
    got = trim.measure(tokens, jnp.array(before)[None], context, valid, GRID)
    return np.asarray(got)[0]


def test_measures_by_hand():
    # It moves by one place, from 5 to 6, and something new comes to the corner, 11.
    before, now = bright(5), bright(6, 11)
    call = ([now, now], before, [before, bright(0)], [True, True])
    moved = np.zeros(12)
    moved[[5, 6, 11]] = 5
    np.testing.assert_allclose(measured("top", *call), moved)
    np.testing.assert_allclose(measured("random", *call), moved)
    # Of the 3x3 before: 6 finds the bright token, 5 a dark one; 11 has only dark ones around.
    arrived = np.zeros(12)
    arrived[11] = 5
    np.testing.assert_allclose(measured("motion", *call), arrived)
    # Anywhere: the corner's finds it, too.
    np.testing.assert_allclose(measured("novelty", *call), np.zeros(12), atol=1e-6)


def test_measures_and_masks_at_the_border():
    # Place 3 (first row, last column) is no neighbour of 4 (second row, first column).
    call = ([bright(4)], bright(3), [bright(3)], [True])
    wanted = np.zeros(12)
    wanted[4] = 5
    np.testing.assert_allclose(measured("motion", *call), wanted)


def test_neighbours_at_the_border_are_no_zeros():
    """What lies beyond is nothing, not dark: of a bright picture a dark corner is far from all."""
    before = np.full((12, 2), 7, np.float32)
    now = before.copy()
    now[0] = 0
    got = measured("motion", [now], before, [before], [True])
    np.testing.assert_allclose(got, [np.hypot(7, 7)] + [0] * 11, rtol=1e-6)


def test_novelty_goes_frame_by_frame_through_what_is_valid():
    # New in one of two frames: half; what a free slot holds doesn't count.
    odd = bright()
    odd[7] = (0, 10)
    call = ([bright(5), odd], bright(5), [bright(5), odd], [True, False])
    wanted = np.zeros(12)
    wanted[7] = np.hypot(3, 6) / 2
    np.testing.assert_allclose(measured("novelty", *call), wanted, rtol=1e-6)
    wanted[:] = 0
    call = (*call[:3], [True, True])
    np.testing.assert_allclose(measured("novelty", *call), wanted)


def test_absence_by_hand():
    # New tokens at 0 and 10; of the old ones 4 is 4 from the nearest, 13 is 3, 2 is 2; 99 is gone.
    new = jnp.array([[[[0.0], [10.0]]]])
    old = jnp.array([[[[4.0], [13.0]], [[2.0], [99.0]]]])
    valid = jnp.array([[[True, True], [True, False]]])
    np.testing.assert_allclose(drift.absence(new, old, valid), [[3, 3]])
    np.testing.assert_allclose(drift.absence(new, old, jnp.zeros_like(valid)), [[0, 0]])
    # Nearest: old 4 is 4 from new 0, old 13 is 3 from new 10; and p of the two is one of each.
    strange = TokenTrim(p=0.5).strangeness(new, old, valid)
    np.testing.assert_allclose(strange, [3 + 3])


def test_novelty_against_all_differences():
    rng = np.random.default_rng(0)
    tokens, context = rng.normal(100, 1, (2, 3, 9, 8)), rng.normal(100, 1, (2, 5, 9, 8))
    tokens[1, 0] = context[1, 3]  # close to nothing, far from the origin: the square's weak spot
    valid = rng.random((2, 5, 9)) < 0.7
    valid[:, 2] = False
    valid[1, 3, 0] = False  # what is pruned makes nothing familiar
    far = np.linalg.norm(tokens[:, :, :, None] - context.reshape(2, 1, 1, -1, 8), axis=-1)
    far = np.where(valid.reshape(2, 1, 1, -1), far, np.inf)
    got = drift.novelty(
        jnp.asarray(tokens, jnp.float32), jnp.asarray(context, jnp.float32), jnp.asarray(valid)
    )
    np.testing.assert_allclose(got, far.min(axis=-1).mean(axis=1), rtol=1e-4)
    none = drift.novelty(jnp.ones((1, 1, 2, 4)), jnp.ones((1, 3, 2, 4)), jnp.zeros((1, 3, 2), bool))
    np.testing.assert_array_equal(none, [[2, 2]])  # to the origin, not infinite


def test_novelty_fits_into_memory_at_full_size():
    f32 = jnp.float32
    shapes = [((1, 3, 1560, 64), f32), ((1, 18, 1560, 64), f32), ((1, 18, 1560), bool)]
    compiled = jax.jit(drift.novelty).lower(*(jax.ShapeDtypeStruct(*s) for s in shapes)).compile()
    # All differences would be 33 GB, all products 525 MB; those of one slot are 29 MB.
    assert compiled.memory_analysis().temp_size_in_bytes < 120e6


@pytest.mark.parametrize("select", ["top", "motion", "novelty"])
def test_measures_have_no_gradient(select):
    trim = TokenTrim(select=select)
    tokens, context = jnp.ones((1, 3, 12, 2)), jnp.ones((1, 2, 12, 2))

    def total(tokens, before, context):
        return trim.measure(tokens, before, context, jnp.ones((1, 2, 12), bool), GRID).sum()

    for gradient in jax.grad(total, (0, 1, 2))(tokens, tokens[:, 0], context):
        assert not gradient.any()


# --- severity, threshold, statistics ------------------------------------------------------------


@pytest.mark.parametrize(
    ("p", "tokens", "count"),
    [(0.1, 30, 3), (0.1, 1560, 156), (0.1, 36, 4), (0.05, 36, 2), (0.07, 100, 7), (0.001, 5, 1)],
)
def test_count(p, tokens, count):
    assert TokenTrim(p=p).count(tokens) == count


def test_severity():
    np.testing.assert_allclose(drift.severity(DRIFT, 2), [8.5, 5.5])
    np.testing.assert_allclose(drift.severity(DRIFT, 6), [5, 3.5])


def test_statistics_equal_those_of_numpy():
    values = np.random.default_rng(0).normal(100, 3, (50, 4)).astype(np.float32)
    statistics = Statistics.start(4)
    for i, row in enumerate(values, 1):
        statistics = statistics.update(jnp.array(row), jnp.array(True))
        seen = values[:i].astype(np.float64)
        np.testing.assert_allclose(statistics.mean, seen.mean(axis=0), rtol=1e-6)
        np.testing.assert_allclose(statistics.deviation, seen.std(axis=0), rtol=1e-4, atol=1e-5)
    assert (np.asarray(statistics.count) == 50).all()


def test_robust_statistics_equal_those_of_numpy():
    values = np.random.default_rng(0).normal(100, 3, (RECENT + 9, 4)).astype(np.float32)
    values[0] *= 4  # as a video's first severity is
    statistics = Statistics.start(4)
    for i, row in enumerate(values, 1):
        statistics = statistics.update(jnp.array(row), jnp.array(True))
        recent = values[max(0, i - RECENT) : i]
        median = np.median(recent, axis=0)
        spread = 1.4826 * np.median(np.abs(recent - median), axis=0)
        np.testing.assert_allclose(statistics.robust, (median, spread), rtol=1e-5, atol=1e-4)
        threshold, exists = statistics.threshold(2.0, 1, robust=True)
        np.testing.assert_allclose(threshold, median + 2 * spread, rtol=1e-5)
        assert exists.all()
    assert (np.array(Statistics.start(4).robust) == 0).all()


def test_what_was_not_measured_changes_no_statistics():
    one = Statistics.start(1).update(jnp.array([3.0]), jnp.array(True))
    two = one.update(jnp.array([jnp.nan]), jnp.array(False))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), one, two))


def test_threshold_and_warmup():
    statistics, thresholds = Statistics.start(1), []
    for value in (2.0, 4.0, 9.0):
        thresholds.append([x.item() for x in statistics.threshold(jnp.array(2.0), 2)])
        statistics = statistics.update(jnp.array([value]), jnp.array(True))
    # After 2 and 4: mean 3, deviation 1.
    assert thresholds == [[0, False], [0, False], [5, True]]


def test_lam_is_any_number_and_infinite_there_is_no_threshold():
    statistics = Statistics.start(1)
    for value in (1.0, 5.0):
        statistics = statistics.update(jnp.array([value]), jnp.array(True))

    def threshold(lam):
        return [x.item() for x in jax.jit(statistics.threshold, static_argnums=1)(lam, 2)]

    assert threshold(-1) == threshold(np.float64(-1)) == threshold(jnp.int32(-1)) == [1, True]
    assert threshold(np.inf) == threshold(jnp.nan) == [0, False]
    # Of these there is one, and no arithmetic makes it infinite.
    most = float(np.finfo(np.float32).max)
    assert threshold(most) == [most, True] and threshold(-most) == [-most, True]
    assert threshold(-np.inf) == [-most, True]
    statistics = Statistics.start(1)
    for _ in range(2):  # no deviation: nothing times infinity is no number
        statistics = statistics.update(jnp.array([3.0]), jnp.array(True))
    assert threshold(-np.inf) == [3, True]


# --- settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"p": 0.0}, "between 0 and 1"),
        ({"p": 1.0}, "between 0 and 1"),
        ({"p": "0.1"}, "p must be a finite number, not '0.1'"),
        ({"p": True}, "p is the share|p must be"),
        ({"lam": "2"}, "lam must be a number, which may be infinite, not '2'"),
        ({"lam": np.nan}, "lam must be a number, which may be infinite, not nan"),
        ({"lam": -np.inf}, "lam must be a number, which may be infinite, not -inf"),
        ({"warmup": 0}, "warmup must be a whole number at least 1, not 0"),
        ({"warmup": 2.0}, "warmup must be a whole number"),
        ({"retries": -1}, "retries must be a whole number at least 0, not -1"),
        ({"retries": True}, "retries must be a whole number"),
        ({"resample_noise": "no"}, "resample_noise must be True or False, not 'no'"),
        ({"prune_sink": 1}, "prune_sink must be True or False, not 1"),
        ({"select": ["top"]}, "no policy"),
        ({"select": None}, "no policy None"),
        ({"when": "never"}, '"final" or "first_step"'),
        ({"accept": "never"}, '"always", "better" or "consistent"'),
        ({"statistics": "none"}, '"moments" or "robust"'),
        ({"select": "best"}, "no policy 'best'.*novelty"),
        ({"select": "none"}, "resample_noise=True"),
    ],
)
def test_settings_that_cannot_be(settings, said):
    with pytest.raises(ValueError, match=said):
        TokenTrim(**settings)


def test_settings_that_can_be():
    assert TokenTrim(select="none", retries=0).select == "none"
    assert TokenTrim.off().retries == 0
    kinds = TokenTrim(p=np.float64(0.25), lam=np.inf, warmup=np.int64(3), retries=np.uint8(2))
    assert kinds == TokenTrim(p=0.25, lam=np.inf, warmup=3, retries=2)
    # As data: what JAX puts in the place of arrays, and several at once for `vmap`.
    assert jax.tree.structure(TokenTrim(lam=jnp.arange(3.0))) == jax.tree.structure(TokenTrim())
    assert jax.vmap(lambda trim: trim.lam + 1)(TokenTrim(lam=jnp.arange(3.0))).tolist() == [1, 2, 3]


# --- in a rollout -------------------------------------------------------------------------------

CONFIG = DiTConfig(dim=24, ffn_dim=32, layers=1, heads=2, channels=2, text_dim=8, text_len=3)
SIDE = 8  # latents; 4x4 tokens


@pytest.fixture(scope="module")
def run():
    dit = random_dit(CONFIG)
    text = jax.random.normal(jax.random.key(1), (2, CONFIG.text_len, CONFIG.text_dim))
    strategy = SelfForcing(window=9, steps=(1000, 500))

    def call(trim, chunks=5):
        return rollout(
            dit, text, jax.random.key(0), chunks=chunks, grid=(SIDE, SIDE), strategy=strategy,
            trim=trim,
        )  # fmt: skip

    return call


@pytest.mark.slow
def test_warmup_counts_severities(run):
    # The first severity exists at the second chunk, the first test comes `warmup` chunks later.
    for warmup, first in ((1, 2), (2, 3)):
        out = run(TokenTrim(lam=-100.0, warmup=warmup))
        assert out.tested.tolist() == [[t >= first for t in range(5)]] * 2
        assert out.measured.tolist() == [[False] + [True] * 4] * 2


@pytest.mark.slow
def test_own_policy_in_a_rollout(run):
    def middle(drift, entry_drift, key):
        assert drift.shape == (2, 16) and entry_drift.shape == (2, 6, 16) and key.shape == (2,)
        return jnp.zeros(entry_drift.shape, bool).at[:, :, 5].set(True).at[1, :3, 6].set(True)

    out = run(TokenTrim(lam=-100.0, select=middle))
    pruned = np.asarray(out.pruned).reshape(2, 5, 16)
    assert not pruned[:, :3].any()
    # Full from the third chunk on: six slots, of which sample 1 loses three at place 6.
    wanted = np.zeros((2, 16))
    wanted[:, 5], wanted[1, 6] = 1, 0.5
    np.testing.assert_allclose(pruned[:, 3], wanted)


@pytest.mark.parametrize(
    ("policy", "got"),
    [
        (lambda drift, entry_drift, key: drift > 1, r"bool \[2, 16\]"),
        (lambda drift, entry_drift, key: entry_drift, r"float32 \[2, 6, 16\]"),
        (lambda drift, entry_drift, key: None, r"object \[\]"),
    ],
)
def test_an_own_policy_that_returns_something_else(run, policy, got):
    with pytest.raises(ValueError, match=r"an array of bool \[2, 6, 16\], one truth.*not " + got):
        run(TokenTrim(select=policy))


@pytest.mark.parametrize("select", ["motion", pytest.param("novelty", marks=pytest.mark.slow)])
def test_drift_of_a_rollout_is_that_of_the_measure(run, select):
    out = run(TokenTrim(select=select, lam=1e9))
    tokens = drift.frame_tokens(out.latents, CONFIG.patch)
    for chunk in range(1, 5):
        now = tokens[:, 3 * chunk : 3 * chunk + 3]
        if select == "motion":
            before = tokens[:, 3 * chunk - 3 : 3 * chunk].mean(axis=1)
            want = drift.neighbour_drift(now.mean(axis=1), before, (4, 4))
        else:
            past = tokens[:, max(0, 3 * chunk - 6) : 3 * chunk]
            want = drift.novelty(now, past, jnp.ones(past.shape[:3], bool))
        got = out.drift[:, chunk].reshape(2, 16)
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
        count = TokenTrim().count(16)
        severity = np.sort(np.asarray(got))[:, -count:].mean(axis=1)
        np.testing.assert_allclose(out.severity[:, chunk], severity, rtol=1e-5)
    # The measure decides on what is dropped, too.
    out = run(TokenTrim(select=select, lam=-100.0))
    drops = np.asarray(out.pruned[:, 3]).reshape(2, 16) == 1
    top = np.asarray(drift.top(out.drift[:, 3].reshape(2, 16), count))
    np.testing.assert_array_equal(drops, top)


def test_newest_drops_from_the_chunk_before_alone(run):
    out = run(TokenTrim(select="newest", lam=-100.0))
    count = TokenTrim().count(16)
    pruned = np.asarray(out.pruned).reshape(2, 5, 16)
    top = np.asarray(drift.top(out.drift[:, 3].reshape(2, 16), count))
    np.testing.assert_array_equal(pruned[:, 3], top)
    # Three of six frames lost so many tokens, then the other three.
    lost = np.array([[3, 6]] * 2) * count / (6 * 16)
    np.testing.assert_allclose(out.kept_fraction[:, 3:], 1 - lost)
    frame, valid = out.state.context.frame, np.asarray(out.state.context.valid)
    lost = {int(f) for f, there in zip(frame, valid.all(axis=(0, 2)), strict=True) if not there}
    assert lost == {9, 10, 11}  # those before the last chunk, 12 to 14


@pytest.mark.slow
@pytest.mark.parametrize("select", ["bottom", "adaptive", "per_frame"])
def test_policies_in_a_rollout(run, select):
    out = run(TokenTrim(select=select, lam=-100.0))
    pruned = np.asarray(out.pruned).reshape(2, 5, 16)
    assert out.triggered[:, 3:].all() and np.isfinite(out.latents).all()
    assert (np.count_nonzero(pruned[:, 3:], axis=2) <= 2).all() and not pruned[:, :3].any()
