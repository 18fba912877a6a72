"""Self Forcing with rotary positions counted from the start of the window."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import random_dit
from parity import distance
from test_rolling_forcing import Plain

from tt_jax import SelfForcing, TokenTrim, rollout
from tt_jax.cache import Window
from tt_jax.models.dit import DiTConfig
from tt_jax.strategies.schedule import warp

GRID = (8, 8)
CONFIG = DiTConfig(dim=48, ffn_dim=64, layers=2, heads=2, channels=4, text_dim=16, text_len=6)
STEPS = (1000, 500)


def plain_rollout(dit, text, noise, window, sink):
    """One sample's latents: what is kept is renumbered from 0 whenever it is read."""
    model, kept, done = Plain(dit, text), [], []
    for chunk in noise:
        frames = len(kept) + np.arange(3)
        past = [[(model.rotate(k, [i]), v) for k, v in layers] for i, layers in enumerate(kept)]
        x0 = np.zeros_like(chunk[0])
        for sigma, fresh in zip(warp(STEPS), chunk, strict=True):
            noisy = (1 - sigma) * x0 + sigma * fresh
            x0 = noisy - sigma * model(noisy, np.full(3, sigma), frames, past)[0]
        own = model(x0, np.zeros(3), frames, past)[1]
        done.append(x0)
        for i in range(3):
            kept.append([(k[16 * i : 16 * i + 16], v[16 * i : 16 * i + 16]) for k, v in own])
            if len(kept) > window - 3:
                del kept[sink]
    return np.concatenate(done)


@pytest.mark.slow
@pytest.mark.parametrize(
    "sink", [pytest.param(0, marks=pytest.mark.slow), 1, pytest.param(3, marks=pytest.mark.slow)]
)
def test_against_a_plain_loop(sink):
    dit = random_dit(CONFIG)
    text = jax.random.normal(jax.random.key(1), (1, 6, 16)).at[0, 4:].set(0)
    noise = jax.random.normal(jax.random.key(2), (6, 2, 1, 3, *GRID, 4))
    out = {
        relative: rollout(
            dit, text, jax.random.key(0), chunks=6, grid=GRID, noise=noise, trim=TokenTrim.off(),
            strategy=SelfForcing(window=9, sink=sink, steps=STEPS, relative=relative),
        ).latents[0]
        for relative in (True, False)
    }  # fmt: skip
    want = plain_rollout(dit, np.asarray(text[0]), np.asarray(noise[:, :, 0]), 9, sink)
    assert distance(out[True], want) < 1e-5
    # The same as absolute positions until the first frame is evicted, and for good without a sink.
    assert distance(out[True][:9], out[False][:9]) < 1e-5
    later = distance(out[True][9:], out[False][9:])
    assert later > 1e-4 if sink else later < 1e-5
    assert jnp.isfinite(out[True]).all()


def test_short_names_and_a_cache_exclude_each_other():
    assert SelfForcing(window=9, sink=1).policy == Window(9, 1)
    assert SelfForcing(cache=Window(9)).slots == 6
    with pytest.raises(ValueError, match="give either them or a cache"):
        SelfForcing(window=12, cache=Window(9))
    with pytest.raises(ValueError, match="longer than sink plus chunk"):
        SelfForcing(cache=Window(6, sink=3))
