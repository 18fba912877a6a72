"""The context buffer: ring eviction, sinks and masks, against tables written by hand."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from tt_jax.cache import buffer
from tt_jax.models.dit import KV

TOKENS = 2


def filled(slots: int, sink: int = 0) -> buffer.Context:
    return buffer.empty(
        layers=1, batch=2, slots=slots, tokens=TOKENS, heads=1, head_dim=2, token_dim=3,
        sink=sink, dtype=jnp.float32,
    )  # fmt: skip


def write(context: buffer.Context, *frames: int) -> buffer.Context:
    """Appends frames whose keys are their number, values ten and tokens a hundred times that."""
    number = jnp.repeat(jnp.array(frames, jnp.float32), TOKENS)[None, None, :, None, None]
    kv = KV(jnp.broadcast_to(number, (1, 2, len(frames) * TOKENS, 1, 2)), 10 * number + jnp.zeros(
        (1, 2, len(frames) * TOKENS, 1, 2)
    ))  # fmt: skip
    tokens = jnp.broadcast_to(
        100 * jnp.array(frames, jnp.float32)[None, :, None, None], (2, len(frames), TOKENS, 3)
    )
    return buffer.append(context, kv, tokens, jnp.array(frames, jnp.int32))


@pytest.mark.parametrize(
    ("slots", "sink", "frames", "expected"),
    [
        (6, 0, 3, [0, 1, 2, -1, -1, -1]),
        (6, 0, 6, [0, 1, 2, 3, 4, 5]),
        (6, 0, 9, [6, 7, 8, 3, 4, 5]),
        (6, 0, 12, [6, 7, 8, 9, 10, 11]),
        (6, 1, 9, [0, 6, 7, 8, 4, 5]),
        (6, 3, 12, [0, 1, 2, 9, 10, 11]),
        (4, 0, 6, [4, 5, 2, 3]),
        (2, 0, 3, [2, 1]),
        (3, 2, 6, [0, 1, 5]),
    ],
)
def test_ring(slots, sink, frames, expected):
    context = filled(slots, sink)
    for start in range(0, frames, 3):
        context = write(context, start, start + 1, start + 2)
    np.testing.assert_array_equal(context.frame, expected)
    held = np.maximum(expected, 0).astype(np.float32)
    np.testing.assert_array_equal(context.k[0, 1, ::TOKENS, 0, 0], held)
    np.testing.assert_array_equal(context.v[0, 0, 1::TOKENS, 0, 1], 10 * held)
    np.testing.assert_array_equal(context.tokens[1, :, 0, 2], 100 * held)
    np.testing.assert_array_equal(context.valid[0, :, 0], np.array(expected) >= 0)


def test_chunks_of_any_length():
    context = write(write(filled(6), 0), 1, 2, 3)
    context = write(context, 4, 5, 6)
    np.testing.assert_array_equal(context.frame, [6, 1, 2, 3, 4, 5])


def test_entries_written_over_pruned_ones_are_valid_again():
    context = write(write(filled(6), 0, 1, 2), 3, 4, 5)
    valid = context.valid.at[0, :, 1].set(False)
    context = write(dataclasses.replace(context, valid=valid), 6, 7, 8)
    np.testing.assert_array_equal(context.valid[0, :, 1], [True] * 3 + [False] * 3)
    assert context.valid[1].all() and context.valid[0, :, 0].all()


def test_prunable():
    context = write(filled(5, sink=1), 0, 1, 2)
    np.testing.assert_array_equal(
        buffer.prunable(context, False), [False, True, True, False, False]
    )
    np.testing.assert_array_equal(buffer.prunable(context, True), [True, True, True, False, False])


def test_attention_mask():
    valid = jnp.array([[[True, False], [False, False]]])
    np.testing.assert_array_equal(
        buffer.attention_mask(valid, 3), [[[True, False, False, False, True, True, True]]]
    )


def test_kept_fraction():
    context = filled(4)
    np.testing.assert_array_equal(buffer.kept_fraction(context), [1, 1])
    context = write(context, 0, 1)
    valid = context.valid.at[0, 0, 0].set(False)
    np.testing.assert_array_equal(
        buffer.kept_fraction(dataclasses.replace(context, valid=valid)), [0.75, 1]
    )


def test_keys_values_are_one_row_of_tokens():
    context = write(filled(3), 0, 1, 2)
    k, v = context.keys_values
    assert k.shape == (1, 2, 6, 1, 2)
    np.testing.assert_array_equal(k[0, 0, :, 0, 0], [0, 0, 1, 1, 2, 2])
    np.testing.assert_array_equal(v[0, 0, :, 0, 0], [0, 0, 10, 10, 20, 20])


def test_exempt_slots_are_not_prunable():
    context = write(filled(4, sink=1), 0, 1, 2)
    context = dataclasses.replace(context, exempt=jnp.array([False, True, False, False]))
    np.testing.assert_array_equal(buffer.prunable(context, False), [False, False, True, False])
    np.testing.assert_array_equal(buffer.prunable(context, True), [True, True, True, False])


def test_ranks_are_in_the_order_of_the_video():
    context = buffer.drop(
        write(filled(4), 0, 1, 2, 3, 4, 5), jnp.array([False, False, False, True])
    )
    np.testing.assert_array_equal(context.frame, [4, 5, 2, -1])
    np.testing.assert_array_equal(buffer.ranks(context)[:3], [1, 2, 0])
    np.testing.assert_array_equal(context.valid[0, :, 0], [True, True, True, False])


def test_frames_of_one_layer_and_of_each_sample():
    k = jnp.arange(3 * 2 * 8, dtype=jnp.float32).reshape(3, 2, 8, 1, 1)
    slot, own, layer = jnp.int32(1), jnp.array([2, 0], jnp.int32), jnp.int32(2)
    np.testing.assert_array_equal(buffer.frames_at(k, slot, 2), k[:, :, 2:4])
    np.testing.assert_array_equal(buffer.frames_at(k, slot, 2, 2, layer), k[2:, :, 2:6])
    rows = buffer.frames_at(k, own, 2, layer=layer)
    np.testing.assert_array_equal(rows, jnp.stack([k[2:, 0, 4:6], k[2:, 1, :2]], axis=1))
    got = buffer.put_frames(k, -rows, own, 2, layer)
    np.testing.assert_array_equal(buffer.frames_at(got, own, 2, layer=layer), -rows)
    assert int(jnp.sum(got != k)) == rows.size

    def edit(layer, x):
        return buffer.put_frames(x, buffer.frames_at(x, slot, 2, layer=layer) + 1, slot, 2, layer)

    want = k.at[:, :, 2:4].add(1)
    np.testing.assert_array_equal(buffer.each_layer(edit, k), want)
