"""What a laboratory's report and its pictures make of single numbers."""

import numpy as np

from tt_jax.lab import compare, pictures, report, stats


def test_many_arms_are_told_apart():
    looks = pictures.styles([str(arm) for arm in range(24)])
    assert len(set(looks.values())) == len(looks) == 24
    assert {look.dashes for look in list(looks.values())[:9]} == {"-"}


def test_arms_that_never_differ_share_a_line():
    one, gap = np.array([[1.0, 2.0]]), np.array([[1.0, np.nan]])
    curves = {
        "plain": [one, gap], "top": [one, 2 * gap], "none": [one.copy(), gap.copy()],
        "without": [one, None], "random": [one, 2 * gap], "still without": [one, None],
    }  # fmt: skip
    assert pictures.alike(curves) == [
        ["plain", "none"],
        ["top", "random"],
        ["without", "still without"],
    ]


def test_a_difference_is_bold_where_its_interval_leaves_zero_out():
    measure = compare.Measure("it", compare.single("recovery"), 1)
    off, none = stats.bootstrap(np.full(8, -2.0)), stats.bootstrap(np.array([-1.0, 1.0] * 4))
    assert report.cell(off, measure, sign=True) == "**-2.0 [-2.0, -2.0]**"
    assert report.cell(off, measure) == "-2.0 [-2.0, -2.0]"
    assert not report.cell(none, measure, sign=True).startswith("**")
    assert report.cell(stats.bootstrap(np.full(8, np.nan)), measure) == ""
    few = stats.bootstrap(np.array([0.0] * 60 + [2.0] * 5))
    assert few.low > 0 and not report.cell(few, measure, sign=True).startswith("**")
