"""Scores by which policies choose, against plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tt_jax.cache.selection import apart


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_frames_apart(count):
    """Of some among frames that aren't there, whose scores are the least."""
    rng = np.random.default_rng(count)
    logits = rng.standard_normal(6).astype(np.float32)
    time = np.array([9, 4, 11, 5, 30, 12])
    there = np.zeros(6, bool)
    there[rng.permutation(6)[:count]] = True
    share = np.where(there, np.exp(logits), 0)
    share = share / max(share.sum(), 1e-9)
    want = np.full(6, -np.inf)
    for i in np.flatnonzero(there):
        times = time[there]
        s = max(1, 0.5 * (times.max() - times.min() + 1))
        others = [np.exp(-abs(time[i] - time[j]) / s) * share[j]
                  for j in np.flatnonzero(there) if j != i]  # fmt: skip
        want[i] = share[i] + 0.35 * max(1 - max(others, default=0), 0)
    rows = (jnp.asarray(x)[None, None] for x in (logits, time.astype(np.int32), there))
    got = jax.jit(apart, static_argnums=3)(*rows, 0.35)
    np.testing.assert_allclose(got[0, 0], want, rtol=1e-6)
