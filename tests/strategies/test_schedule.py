"""The flow-matching schedule and its sinusoids."""

import numpy as np
import pytest

from tt_jax import RollingForcing, SelfForcing
from tt_jax.strategies.schedule import sigmas, time_sinusoid, warp


def test_levels_of_the_published_schedules():
    np.testing.assert_allclose(
        1000 * np.array(warp((1000, 750, 500, 250))), [1000, 937.5, 2500 / 3, 625], rtol=1e-7
    )
    np.testing.assert_allclose(
        1000 * np.array(warp((1000, 800, 600, 400, 200))),
        [1000, 952.38104, 882.35291, 769.23077, 555.55556],
        rtol=1e-7,
    )


def test_the_shift_is_the_models():
    steps = (1000, 750, 500, 250)
    np.testing.assert_allclose(warp(steps, 1.0), [1, 0.75, 0.5, 0.25], rtol=1e-6)
    assert warp(steps, None) == (1, 0.75, 0.5, 0.25)
    np.testing.assert_allclose(warp((500,), 3.0), [0.75], rtol=1e-6)
    for strategy in (SelfForcing, RollingForcing):
        assert strategy().shift == 5.0
        with pytest.raises(ValueError, match="shift must be above 0"):
            strategy(shift=0.0)


def test_sigmas_fall_from_one_to_zero():
    table = sigmas()
    assert table[0] == 1 and table[-1] == 0 and len(table) == 1001
    assert (np.diff(table) < 0).all()


def test_sinusoid_is_cosines_then_sines():
    got = time_sinusoid(np.array([0.8333333333]), 8)
    assert got.dtype == np.float32 and got.shape == (1, 8)
    angle = np.float32(833.3333333) * 10000.0 ** (-np.arange(4) / 4)
    np.testing.assert_allclose(got[0], [*np.cos(angle), *np.sin(angle)], atol=1e-7)
