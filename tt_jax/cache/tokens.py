"""Whose tokens a layer's rows are, for policies that let each layer choose its own.

A table stands beside the buffer's keys, a row for each of theirs, `[L, B, S P]`: `time` and
`place`, the frame that a token is of and where in it; `kept`, whether it may be attended as far as
the layer is concerned; `count`, how often it was chosen.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from tt_jax.cache import buffer
from tt_jax.cache.buffer import Context
from tt_jax.models.dit import KV

Table = dict[str, Array]


def empty(context: Context) -> Table:
    """The table of a buffer that no frame was written to."""
    shape, per_frame = context.k.shape[:3], context.valid.shape[2]
    place = jnp.arange(shape[2], dtype=jnp.int32) % per_frame
    return {
        "place": jnp.broadcast_to(place, shape),
        "time": jnp.zeros(shape, jnp.int32),
        "kept": jnp.ones(shape, bool),
        "count": jnp.zeros(shape, jnp.int32),
    }


def timed(table: Table, slots: Int[Array, " f"], frames: Int[Array, " f"], per_frame: int) -> Table:
    """With whole frames in the given slots."""
    rows = slots[:, None] * per_frame + jnp.arange(per_frame, dtype=jnp.int32)[None]
    times = jnp.repeat(frames, per_frame)[None, None]
    return table | {"time": table["time"].at[:, :, rows.reshape(-1)].set(times)}


def seen(table: Table, valid: Bool[Array, "b s p"]) -> Bool[Array, "b t"]:
    """Which of one layer's tokens may be attended; `valid` is by places of a frame."""
    place = table["place"].reshape(valid.shape)
    return table["kept"] & jnp.take_along_axis(valid, place, axis=2).reshape(len(valid), -1)


def dropped(table: Table, context: Context, chosen: Bool[Array, " s"]) -> tuple[Table, Context]:
    """What was dropped from the slots `chosen`: in the table for good, valid for later chunks."""
    rows = jnp.repeat(chosen, context.valid.shape[2])[None, None]
    kept = jax.vmap(seen, (0, None))(table, context.valid)
    table = table | {"kept": jnp.where(rows, kept, table["kept"])}
    valid = context.valid | chosen[None, :, None]
    return table, dataclasses.replace(context, valid=valid)


def chosen(
    table: Table,
    context: Context,
    index: Int[Array, "l b c"],
    kept: Bool[Array, "l b c"],
    slot: int,
    now: Bool[Array, ""],
) -> tuple[Table, KV]:
    """With the tokens `index` in the slots from `slot` on, if `now`; and their keys and values.

    Args:
        table: of the context.
        context: whose rows are chosen from.
        index: rows, for each layer and sample; whole frames' number of them.
        kept: which of these may be attended.
        slot: first slot that they fill.
        now: whether they do; else all stays.
    """
    count, (slots, per_frame) = index.shape[2], context.valid.shape[1:]
    start = slot * per_frame

    def put(x: Array, new: Array) -> Array:
        new = jnp.where(now, new, x[:, :, start : start + count])
        return jax.lax.dynamic_update_slice_in_dim(x, new, start, 2)

    taken = {n: jnp.take_along_axis(table[n], index, axis=2) for n in ("place", "time", "count")}
    taken["count"] += 1
    taken["kept"] = kept

    def edit(layer: Array, values: KV) -> KV:
        at = index[layer][None, :, :, None, None]
        edited = []
        for x in values:
            past = buffer.frames_at(x, jnp.int32(0), per_frame, slots, layer)
            new = jnp.take_along_axis(past, at, axis=2)
            new = jnp.where(now, new, past[:, :, start : start + count])
            edited.append(buffer.put_frames(x, new, jnp.int32(slot), per_frame, layer))
        return KV(*edited)

    values = buffer.each_layer(edit, context.keys_values)
    return {name: put(table[name], new) for name, new in taken.items()}, values
