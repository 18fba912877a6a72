import numpy as np
import pytest

from tt_jax.lab import stats


def test_interval_is_the_normal_one_for_many_values():
    values = np.random.default_rng(1).normal(3.0, 2.0, 400)
    found = stats.bootstrap(values)
    half = 1.96 * values.std() / np.sqrt(400)
    assert found.mean == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.015)
    assert found.high == pytest.approx(values.mean() + half, abs=0.015)
    assert found.count == 400 and found.sure


def test_pairing_removes_what_prompts_have_in_common():
    plain = np.random.default_rng(2).normal(0, 100, 24)
    found = stats.paired(plain - 0.5, plain)
    assert [found.mean, found.low, found.high] == pytest.approx([-0.5] * 3)
    assert found.sure
    shuffled = stats.paired((plain - 0.5)[::-1], plain)
    assert shuffled.low < -10 < 10 < shuffled.high and not shuffled.sure


def test_three_values_by_hand():
    # Of the 27 draws of (0, 0, 3) the mean is 0 in 8/27, 1 in 12/27, 2 in 6/27, 3 in 1/27 (3.7 %).
    found = stats.bootstrap(np.array([0.0, 0.0, 3.0]))
    assert (found.mean, found.low, found.high) == (1.0, 0.0, 3.0)
    # With four, the highest mean comes in 1/256 of the draws, three of the highest in 12/256.
    found = stats.bootstrap(np.array([0.0, 0.0, 0.0, 4.0]))
    assert (found.low, found.high) == (0.0, 3.0)


def test_few_values_are_never_sure():
    assert not stats.bootstrap(np.full(5, 2.0)).sure
    assert stats.bootstrap(np.full(6, 2.0)).sure and stats.bootstrap(np.full(6, -2.0)).sure


def test_what_is_missing_is_left_out():
    ours, theirs = np.array([1.0, np.nan, 3.0]), np.array([0.0, 0.0, np.nan])
    found = stats.paired(ours, theirs)
    assert (found.mean, found.count) == (1.0, 1) and np.isnan(found.low) and not found.sure
    nothing = stats.bootstrap(np.full(3, np.nan))
    assert np.isnan(nothing.mean) and np.isnan(nothing.low) and nothing.count == 0
    assert not nothing.sure


def test_curves_have_one_interval_a_second_and_repeat():
    curve = np.stack([np.arange(5.0), np.arange(5.0) + 2])
    curve[1, 4] = np.nan
    found = stats.bootstrap(curve)
    np.testing.assert_allclose(found.mean, [1, 2, 3, 4, 4])
    np.testing.assert_allclose(found.low, [0, 1, 2, 3, np.nan])
    np.testing.assert_allclose(found.high, [2, 3, 4, 5, np.nan])
    again = stats.bootstrap(curve)
    np.testing.assert_array_equal(found.low, again.low)


def test_start_and_end_of_a_curve():
    fade = np.arange(30.0)
    assert stats.end(fade) == 27 and stats.change(fade) == 25
    assert stats.change(np.array([1.0, 1.0, 5.0])) == 4  # halves of a short one
    gaps = np.array([np.nan] * 8 + [2.0, 4.0])
    assert stats.end(gaps) == 3 and np.isnan(stats.change(gaps))
