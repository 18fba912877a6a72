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


def seen(table: Table, valid: Bool[Array, "b s p"]) -> Bool[Array, "b t"]:
    """Which of one layer's tokens may be attended.

    Args:
        table: the layer's.
        valid: by places of a frame, of the whole buffer.

    Returns:
        For each row of the buffer whether its token may.
    """
    place = table["place"].reshape(valid.shape)
    return table["kept"] & jnp.take_along_axis(valid, place, axis=2).reshape(len(valid), -1)


def timed(
    context: Context,
    slots: Int[Array, " f"],
    frames: Int[Array, " f"],
    now: Bool[Array, ""] | bool = True,
) -> Context:
    """The context whose table says of some slots which frames they hold.

    Args:
        context: whose table is changed.
        slots: which hold whole frames.
        frames: the frames' numbers in the video.
        now: whether they do; else all stays.
    """
    table, per_frame = context.memory, context.valid.shape[2]
    rows = slots[:, None] * per_frame + jnp.arange(per_frame, dtype=jnp.int32)[None]
    times = jnp.repeat(frames, per_frame)[None, None]
    times = jnp.where(now, table["time"].at[:, :, rows.reshape(-1)].set(times), table["time"])
    return dataclasses.replace(context, memory=table | {"time": times})


def settled(context: Context, slots: Bool[Array, " s"]) -> Context:
    """The context with what was dropped from some slots kept in the table, token by token.

    Args:
        context: whose table takes in `valid`, which is of places, not of the tokens there.
        slots: which of them; they are all valid afterwards.
    """
    table = context.memory
    rows = jnp.repeat(slots, context.valid.shape[2])[None, None]
    one = {name: table[name] for name in ("place", "kept")}
    kept = jnp.where(rows, jax.vmap(seen, (0, None))(one, context.valid), table["kept"])
    valid = context.valid | slots[None, :, None]
    return dataclasses.replace(context, memory=table | {"kept": kept}, valid=valid)


def gathered(
    context: Context,
    index: Int[Array, "l b c"],
    kept: Bool[Array, "l b c"],
    slot: int,
    now: Bool[Array, ""],
) -> Context:
    """The context with chosen tokens in the slots from `slot` on, if `now`.

    Args:
        context: whose rows are chosen from.
        index: the rows, for each layer and sample; as many as whole frames have.
        kept: which of these may be attended.
        slot: first slot that they fill; its own number is the frame it is said to hold.
        now: whether they do; else all stays.
    """
    table, count, (slots, per_frame) = context.memory, index.shape[2], context.valid.shape[1:]
    start, number = slot * per_frame, jnp.arange(slots, dtype=jnp.int32)

    def put(x: Array, new: Array) -> Array:
        new = jnp.where(now, new, x[:, :, start : start + count])
        return jax.lax.dynamic_update_slice_in_dim(x, new, start, 2)

    taken = {n: jnp.take_along_axis(table[n], index, axis=2) for n in ("place", "time", "count")}
    taken |= {"count": taken["count"] + 1, "kept": kept}

    def edit(layer: Array, values: KV) -> KV:
        at = index[layer][None, :, :, None, None]
        edited = []
        for x in values:
            past = buffer.frames_at(x, jnp.int32(0), per_frame, slots, layer)
            new = jnp.take_along_axis(past, at, axis=2)
            new = jnp.where(now, new, past[:, :, start : start + count])
            edited.append(buffer.put_frames(x, new, jnp.int32(slot), per_frame, layer))
        return KV(*edited)

    k, v = buffer.each_layer(edit, context.keys_values)
    here = now & (number >= slot) & (number < slot + count // per_frame)
    return dataclasses.replace(
        context,
        k=k,
        v=v,
        memory=table | {name: put(table[name], new) for name, new in taken.items()},
        valid=context.valid | here[None, :, None],
        frame=jnp.where(here, number, context.frame),
    )
