"""Measures of videos made chunk by chunk, on videos whose answers are known."""

import numpy as np
import pytest

from tt_jax.evaluate.chunks import jumps, sink_collapse, sink_distances

STARTS = (0, 9, 21, 33)


def moving(steps):
    """A wave that moves by so many pixels from frame to frame."""
    x, y = np.arange(64), np.arange(64)[:, None]
    where = np.cumsum([0.0, *steps])
    wave = [np.sin((x - at) / 6) * 60 + np.sin(y / 5) * 40 + 128 for at in where]
    return np.repeat(np.stack(wave)[..., None], 3, axis=3).astype(np.uint8)


def test_a_jump_of_the_motion_at_a_border():
    steps = np.full(44, 0.5)
    steps[20] = 1.0  # onto frame 21, where the third chunk begins
    steps[27] = 1.0  # within a chunk, which is no jump
    found = jumps(moving(steps), STARTS, 16)
    assert np.isnan(found[0])
    # Half a pixel of 64, 16 times a second, in per cent; flow is an estimate.
    assert found[2] == pytest.approx(100 * 16 * 0.5 / 64, rel=0.3)
    assert max(found[1], found[3]) < 0.2 * found[2]
    assert np.isnan(jumps(moving(steps)[:34], STARTS, 16)[3]), "nothing after the border"


def test_distance_to_the_sink_and_falls_back_to_it():
    video = np.zeros((45, 64, 64, 3), np.uint8)
    video[5:9] = 40  # the first chunk has two pictures
    video[9:21], video[21:33], video[33:] = 43, 50, 2
    np.testing.assert_allclose(sink_distances(video, STARTS), [np.nan, 3, 10, 2])
    large = video.repeat(2, axis=1).repeat(2, axis=2)
    np.testing.assert_allclose(sink_distances(large, STARTS), [np.nan, 3, 10, 2])
    assert np.isnan(sink_distances(video[:33], STARTS)[3]), "none of its frames is shown"
    falls = sink_collapse(np.array([np.nan, 10, 12, 11, 13, 4, 11, 30, np.nan]))
    np.testing.assert_allclose(falls, [np.nan] * 5 + [7.5, 0.5, 0, np.nan])
