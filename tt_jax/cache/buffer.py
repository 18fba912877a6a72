"""The context of a rollout: a fixed-size K/V buffer with its validity mask. A pytree.

Slots are counted in latent frames. What stands in which is the cache policy's affair; mostly, the
first `sink` slots keep the video's first frames for good, the others are a ring: a new frame takes
the slot of the oldest one, and no data moves. An entry that isn't valid (never written, or pruned)
is masked out of attention. The mask and the frame numbers stand once for all layers and heads.

Axes: L layers, B batch, S slots, P tokens of a frame, N heads, H head width, D token width.

Keys and values are a row of S P tokens, as the transformer reads them: split into slots and tokens
a TPU would lay the buffer out otherwise in memory than the rollout's loop does, and copy all of it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Bool, DTypeLike, Float, Int

from tt_jax.contracts import checked
from tt_jax.models.dit import KV
from tt_jax.nn.layers import wide_dtype

T = TypeVar("T")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
    """The buffer. Every operation returns a new one of the same shapes.

    Attributes:
        k: keys `[L, B, S P, N, H]`, rotated or not as the cache policy reads them.
        v: values, of the same shape.
        tokens: the latent tokens that the entries were made from, `[B, S, P, D]`: what drift is
            measured on.
        valid: which entries may be attended, `[B, S, P]`.
        frame: each slot's frame of the video, from 0, `[S]`; -1 where nothing was written yet.
        sink: how many of the video's first frames are sinks.
        exempt: slots beside the sinks whose entries are never pruned, `[S]`.
        memory: the cache policy's own arrays.
    """

    k: Float[Array, "l b t n h"]
    v: Float[Array, "l b t n h"]
    tokens: Float[Array, "b s p d"]
    valid: Bool[Array, "b s p"]
    frame: Int[Array, " s"]
    sink: int = dataclasses.field(metadata={"static": True})
    exempt: Bool[Array, " s"] | None = None
    memory: Any = None

    @property
    def filled(self) -> Bool[Array, " s"]:
        """Slots that hold a frame."""
        return self.frame >= 0

    @property
    def keys_values(self) -> KV:
        """Of all slots, `[L, B, S P, N, H]`."""
        return KV(self.k, self.v)


def empty(
    *,
    layers: int,
    batch: int,
    slots: int,
    tokens: int,
    heads: int,
    head_dim: int,
    token_dim: int,
    sink: int,
    dtype: DTypeLike,
) -> Context:
    """A buffer without any frame.

    Args:
        layers: L.
        batch: B.
        slots: S, in latent frames.
        tokens: P, of a frame.
        heads: N.
        head_dim: H.
        token_dim: D.
        sink: how many of the video's first frames are sinks.
        dtype: of keys and values; tokens are float32 where it is narrower.
    """
    shape = (layers, batch, slots * tokens, heads, head_dim)
    context = Context(
        k=jnp.zeros(shape, dtype),
        v=jnp.zeros(shape, dtype),
        tokens=jnp.zeros((batch, slots, tokens, token_dim), wide_dtype(dtype)),
        valid=jnp.zeros((batch, slots, tokens), bool),
        frame=jnp.full((slots,), -1, jnp.int32),
        sink=sink,
    )
    return checked(context)


def ring(context: Context, frames: Int[Array, "*f"], kept: int | None = None) -> Int[Array, "*f"]:
    """The slots of frames: the first `kept` frames' own, then the rest in turn.

    Args:
        context: the buffer.
        frames: their numbers in the video.
        kept: slots that are no part of the ring; the sinks if not given.
    """
    kept = context.sink if kept is None else kept
    turns = context.frame.shape[0] - kept
    return jnp.where(frames < kept, frames, kept + (frames - kept) % turns)


def ranks(context: Context) -> Int[Array, " s"]:
    """How many of the frames that the buffer holds come before each slot's."""
    earlier = context.filled[None] & (context.frame[None] < context.frame[:, None])
    return jnp.sum(earlier, axis=1, dtype=jnp.int32)


def append(
    context: Context,
    kv: KV,
    tokens: Float[Array, "b f p d"],
    frames: Int[Array, " f"],
) -> Context:
    """Writes F frames, oldest first, over the oldest ones outside the sink.

    Their entries are valid, whatever was dropped at their positions before.

    Args:
        context: the buffer.
        kv: keys and values of the F frames, `[L, B, F P, N, H]`.
        tokens: their latent tokens.
        frames: their numbers in the video.
    """
    return write(context, kv, tokens, frames, ring(context, frames))


def write(
    context: Context,
    kv: KV,
    tokens: Float[Array, "b f p d"],
    frames: Int[Array, " f"],
    slots: Int[Array, " f"],
    valid: Bool[Array, "b f p"] | None = None,
) -> Context:
    """Writes F frames into the given slots.

    Args:
        context: the buffer.
        kv: keys and values of the F frames, `[L, B, F P, N, H]`.
        tokens: their latent tokens.
        frames: their numbers in the video.
        slots: where each goes.
        valid: which of their entries may be attended; all if not given.
    """
    per_frame = context.valid.shape[2]
    k, v = (part.astype(context.k.dtype) for part in kv)
    put = jax.lax.dynamic_update_index_in_dim
    put_row = jax.lax.dynamic_update_slice_in_dim
    values = {"k": context.k, "v": context.v, "tokens": context.tokens}
    mask, frame, dtype = context.valid, context.frame, context.tokens.dtype
    valid = jnp.ones(tokens.shape[:3], bool) if valid is None else valid
    # One slice a frame, not one scatter: XLA then updates the scan's carry in place.
    for i in range(frames.shape[0]):
        own, start = slice(i * per_frame, (i + 1) * per_frame), slots[i] * per_frame
        values["k"] = put_row(values["k"], k[:, :, own], start, 2)
        values["v"] = put_row(values["v"], v[:, :, own], start, 2)
        values["tokens"] = put(values["tokens"], tokens[:, i].astype(dtype), slots[i], 1)
        mask = put(mask, valid[:, i], slots[i], 1)
        frame = put(frame, frames[i].astype(jnp.int32), slots[i], 0)
    return checked(dataclasses.replace(context, **values, valid=mask, frame=frame))


def drop(context: Context, slots: Bool[Array, " s"]) -> Context:
    """Without the frames of the given slots, which are empty then.

    Args:
        context: the buffer.
        slots: True for those to empty.
    """
    frame = jnp.where(slots, -1, context.frame)
    return dataclasses.replace(context, frame=frame, valid=context.valid & ~slots[None, :, None])


def frames_at(
    values: Float[Array, "l b t n h"],
    slot: Int[Array, "*b"],
    per_frame: int,
    count: int = 1,
    layer: Int[Array, ""] | None = None,
) -> Float[Array, "k b r n h"]:
    """The entries of some slots.

    Args:
        values: keys or values of all slots.
        slot: the first slot, one for all samples or each sample's own.
        per_frame: tokens of a frame, P.
        count: how many slots.
        layer: that alone; all layers if not given.

    Returns:
        `[L or 1, B, count P, N, H]`.
    """
    layers = values.shape[0] if layer is None else 1

    def take(values: Array, slot: Array) -> Array:
        shape = (layers, *values.shape[1:-3], count * per_frame, *values.shape[-2:])
        return jax.lax.dynamic_slice(values, _start(values, slot * per_frame, layer), shape)

    take = jax.vmap(take, (1, 0), 1) if slot.ndim else take
    rows = take(values, slot)
    return rows if layer is None else _as_read(rows)


def put_frames(
    values: Float[Array, "l b t n h"],
    new: Float[Array, "k b r n h"],
    slot: Int[Array, "*b"],
    per_frame: int,
    layer: Int[Array, ""] | None = None,
) -> Float[Array, "l b t n h"]:
    """Keys or values with other entries in some slots.

    Args:
        values: keys or values of all slots.
        new: the entries to write, as `frames_at` returns them.
        slot: the first slot, one for all samples or each sample's own.
        per_frame: tokens of a frame, P.
        layer: the one that `new` is of; all layers if not given.
    """
    new = new.astype(values.dtype)

    def put(values: Array, new: Array, slot: Array) -> Array:
        return jax.lax.dynamic_update_slice(values, new, _start(values, slot * per_frame, layer))

    put = jax.vmap(put, (1, 1, 0), 1) if slot.ndim else put
    values = put(values, new, slot)
    return values if layer is None else _as_read(values)


def _start(values: Array, row: Array, layer: Array | None) -> list[Array]:
    start = [jnp.zeros((), jnp.int32)] * values.ndim
    start[0], start[-3] = start[0] if layer is None else layer, row
    return start


def _as_read(values: Float[Array, "l b t n h"]) -> Float[Array, "l b t n h"]:
    """On a TPU, laid out as attention reads it. A loop would choose another way, and all of the
    buffer be copied to and fro."""
    layout = Layout((0, 1, 3, 2, 4))
    return jax.lax.platform_dependent(
        values, tpu=lambda x: with_layout_constraint(x, layout), default=lambda x: x
    )


def each_layer(edit: Callable[[Int[Array, ""], T], T], values: T) -> T:
    """Edits one layer after the other, in place.

    What is computed for all layers at once needs memory beside the buffer: for each frame of a
    chunk, as much as the pass itself returns of it. An edit writes each array once, at the slots of
    it that it reads, or the compiler copies all of it.

    Args:
        edit: takes a layer's number and the values; returns the values with that layer changed.
        values: a pytree of arrays with a leading axis of layers.
    """
    layers = len(jax.tree.leaves(values)[0])
    return jax.lax.fori_loop(np.int32(0), np.int32(layers), edit, values)


def prunable(context: Context, prune_sink: bool) -> Bool[Array, " s"]:
    """Slots whose entries TokenTrim may drop: those that hold a frame and aren't exempt.

    Args:
        context: the buffer.
        prune_sink: sinks and exempt slots too.
    """
    if prune_sink:
        return context.filled
    may = context.filled & (context.frame >= context.sink)
    return may if context.exempt is None else may & ~context.exempt


def attention_mask(valid: Bool[Array, "b s p"], own: int) -> Bool[Array, "b 1 keys"]:
    """Which keys every query of a pass may see: the valid context, then all new tokens.

    Args:
        valid: which entries of the buffer may be attended.
        own: how many new tokens there are.
    """
    batch = valid.shape[0]
    new = jnp.ones((batch, own), bool)
    return jnp.concatenate([valid.reshape(batch, -1), new], axis=1)[:, None]


def kept_fraction(context: Context) -> Float[Array, " b"]:
    """Valid entries over written entries, per sample; 1 while nothing is written."""
    batch, _, per_frame = context.valid.shape
    written = (jnp.sum(context.filled) * per_frame).astype(jnp.float32)
    kept = jnp.sum(context.valid.reshape(batch, -1), axis=1).astype(jnp.float32)
    return jnp.where(written > 0, kept / jnp.maximum(written, 1), 1.0)
