"""What becomes of entries that were dropped, in policies that keep or replay frames otherwise."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tt_jax.cache import DeepForcing, FadeMem, LongLive, RollingSink, buffer
from tt_jax.models.dit import KV

ROWS, COLUMNS, HEADS, WIDTH, CHUNK = 1, 2, 1, 12, 3
PLACES = ROWS * COLUMNS


def after(policy, chunks):
    """The context after so many chunks of nothing, and what takes in another one."""
    context = buffer.empty(
        layers=1, batch=1, slots=policy.slots(CHUNK), tokens=PLACES, heads=HEADS, head_dim=WIDTH,
        token_dim=3, sink=policy.sinks, dtype=jnp.float32,
    )  # fmt: skip
    kv = KV(*jnp.zeros((2, 1, 1, CHUNK * PLACES, HEADS, WIDTH)))
    own = (kv, jnp.zeros((1, 1, HEADS, WIDTH))) if isinstance(policy, DeepForcing) else kv
    tokens = jnp.zeros((1, CHUNK, PLACES, 3))

    @jax.jit
    def accept(context, chunk):
        return policy.accept(context, own, tokens, CHUNK * chunk + jnp.arange(CHUNK))

    context = policy.start(context, CHUNK)
    for chunk in range(chunks):
        context = accept(context, jnp.asarray(chunk))
    return context, lambda context: accept(context, jnp.asarray(chunks))


def without(context, *dropped):
    """The context without the entries of these (frame, place)."""
    valid = context.valid
    for frame, place in dropped:
        valid = valid.at[:, int(jnp.argmax(context.frame == frame)), place].set(False)
    return dataclasses.replace(context, valid=valid)


def holes(context):
    """(frame, place) of what may not be read."""
    slots, places = np.nonzero(~np.asarray(context.valid[0]))
    return sorted(zip(np.asarray(context.frame)[slots].tolist(), places.tolist(), strict=True))


@pytest.mark.parametrize(
    ("chunks", "frames"), [(2, range(6)), (3, range(3, 9)), (4, range(9, 12)), (5, range(12, 15))]
)
def test_rolling_sinks_replayed_frames_are_exempt(chunks, frames):
    context, _ = after(RollingSink(9), chunks)
    assert sorted(context.frame[buffer.prunable(context, False)].tolist()) == list(frames)


@pytest.mark.parametrize(
    ("dropped", "stays"),
    [([(4, 0)], []), ([(4, 0), (5, 0), (5, 1)], [(5, 0)]), ([(0, 1)], [(0, 1)])],
)
def test_fade_mems_pairs_have_what_either_had_and_the_first_frame_what_it_had(dropped, stays):
    context, accept = after(FadeMem(12, 6), 2)
    context = accept(without(context, *dropped))
    assert holes(context) == stays


@pytest.mark.parametrize("at", [9, 11])
def test_long_live_encodes_nothing_that_was_dropped(at):
    policy = LongLive(9, 2)
    context, _ = after(policy, 4)
    shape = (1, 1, policy.frames * PLACES, HEADS, WIDTH)
    context = policy.switch(
        without(context, (at, 1)), jnp.asarray(12), "recache",
        lambda *_: KV(jnp.zeros(shape), jnp.zeros(shape)), (ROWS, COLUMNS),
    )  # fmt: skip
    assert holes(context) == [(at, 1)]


def test_deep_forcings_chosen_tokens_are_dropped_one_by_one():
    """A place is dropped; the tokens that lie in its slots may come from others."""
    policy = DeepForcing(frames=12, sink=3, budget=8, recent=4)
    context, accept = after(policy, 4)
    table, row = context.memory, 3 * PLACES  # the slot of what is chosen
    place = table["place"].at[:, :, row].set(1).at[:, :, row + 1].set(0)
    count = table["count"].at[:, :, row : row + PLACES].set(1)
    context = dataclasses.replace(context, memory=table | {"place": place, "count": count})
    valid = context.valid.at[:, 3, 1].set(False)
    context = accept(dataclasses.replace(context, valid=valid))
    assert context.valid.all()
    assert np.flatnonzero(~context.memory["kept"]).tolist() == [row]
