"""Frames that each layer holds in a memory of its own, for TetherCache.

The memory's slots lie between the context's sinks and its newest frame. A table says what they
hold: `time`, `[L, B, S]`, a frame's number in the video, -1 where there is none; `kept`,
`[L, B, S, P]`, which of its tokens may be attended.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tt_jax.cache import buffer, selection
from tt_jax.cache.buffer import Context
from tt_jax.models.dit import KV

Table = dict[str, Array]
Moments = tuple[Float[Array, "l b n h"], Float[Array, "l b n h"]]


@dataclasses.dataclass(frozen=True)
class Newcomers:
    """F frames that may come into the memories: the context's newest, and the chunk's but its last.

    Attributes:
        own: keys and values of the chunk's frames.
        frame: their numbers in the video.
        there: which of their tokens may be attended.
        enters: which of them each layer admits.
        to: in which of its places.
    """

    own: KV
    frame: Int[Array, " f"]
    there: Bool[Array, "b f p"]
    enters: Bool[Array, "l b f"]
    to: Int[Array, "l b f"]


@dataclasses.dataclass(frozen=True)
class Drawn:
    """What a newcomer is drawn towards (`selection.drawn`).

    Attributes:
        crowded: in which memories: those that have no free place.
        towards: moments of the keys and of the values of sinks and memory.
        share: of it that is moved.
    """

    crowded: Bool[Array, "l b"]
    towards: tuple[Moments, Moments]
    share: float


def empty(layers: int, batch: int, count: int, per_frame: int) -> Table:
    """A table of no memories.

    Args:
        layers: of the transformer.
        batch: samples.
        count: frames that each layer may remember.
        per_frame: tokens of a frame.
    """
    return {
        "time": jnp.full((layers, batch, count), -1, jnp.int32),
        "kept": jnp.zeros((layers, batch, count, per_frame), bool),
    }


def ranks(time: Int[Array, "b s"]) -> Int[Array, "b s"]:
    """How many of one layer's members come before each in the video."""
    earlier = (time >= 0)[:, None] & (time[:, None] < time[:, :, None])
    return jnp.sum(earlier, axis=2, dtype=jnp.int32)


def enter(context: Context, table: Table, new: Newcomers, drawn: Drawn) -> tuple[KV, Table]:
    """The context's keys and values, and the table, with the newcomers that are admitted.

    Args:
        context: before; its last slot holds the newest frame.
        table: of the memories.
        new: frames that may come in.
        drawn: what becomes of them on the way.

    Returns:
        New keys and values of the whole context, and a new table.
    """
    per_frame, newest = context.valid.shape[2], context.valid.shape[1] - 1
    time, kept = table["time"], table["kept"]
    count = time.shape[2]

    def admit(i: int, layer: Array, values: KV) -> KV:
        """With the i-th newcomer in a layer's memory, where it enters."""
        at = newest - count + new.to[layer, :, i]
        edited = []
        for past, own, towards in zip(values, new.own, drawn.towards, strict=True):
            frame = buffer.frames_at(
                *((past, jnp.int32(newest)) if i == 0 else (own, jnp.int32(i - 1))),
                per_frame, layer=layer,
            )[0].astype(past.dtype).astype(jnp.float32)  # fmt: skip
            mean, deviation = (part[layer] for part in towards)
            moved = selection.drawn(frame, new.there[:, i], (mean, deviation), drawn.share)
            frame = jnp.where(drawn.crowded[layer][:, None, None, None], moved, frame)
            old = buffer.frames_at(past, at, per_frame, layer=layer)
            here = new.enters[layer, None, :, i, None, None, None]
            frame = jnp.where(here, frame.astype(past.dtype)[None], old)
            edited.append(buffer.put_frames(past, frame, at, per_frame, layer))
        return KV(*edited)

    values = context.keys_values
    for i in range(len(new.frame)):
        values = buffer.each_layer(partial(admit, i), values)
        here = jax.nn.one_hot(new.to[:, :, i], count, dtype=bool) & new.enters[:, :, i, None]
        time = jnp.where(here, new.frame[i], time)
        kept = jnp.where(here[..., None], new.there[None, :, i, None], kept)
    return values, {"time": time, "kept": kept}
