"""The flow-matching schedule and its sinusoids."""

import numpy as np

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


def test_sigmas_fall_from_one_to_zero():
    table = sigmas()
    assert table[0] == 1 and table[-1] == 0 and len(table) == 1001
    assert (np.diff(table) < 0).all()


def test_sinusoid_is_cosines_then_sines():
    got = time_sinusoid(np.array([0.8333333333]), 8)
    assert got.dtype == np.float32 and got.shape == (1, 8)
    angle = np.float32(833.3333333) * 10000.0 ** (-np.arange(4) / 4)
    np.testing.assert_allclose(got[0], [*np.cos(angle), *np.sin(angle)], atol=1e-7)
