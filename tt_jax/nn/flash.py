"""Flash attention on a TPU, over a past that stays where it is and a pass's own keys.

Softmax by blocks with running maxima and sums (FlashAttention, arXiv 2205.14135). What XLA would
have to copy first, the kernel's own transfers fetch: a layer's part of the whole K/V buffer, then
the pass's own keys, with no room between them and no padding behind.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float, Int

from tt_jax.nn.dot_product import Past, joined, xla
from tt_jax.nn.layers import wide

ROWS, KEYS = 1024, 1664  # at most so many queries, and keys, in a block
TILE, LANES = 16, 128  # multiples of which blocks are: of queries (bfloat16's tile) and of keys
LOW = -0.7 * float(
    jnp.finfo(jnp.float32).max
)  # a hidden key's logit; no inf, whose differences are NaN
LOG2_E = 1.4426950408889634
HIDDEN, SEEN, MIXED = 0, 1, 2  # a block's keys: none, all, some of them are seen
MEMORY = 64 * 2**20  # of a core's 128 MB of vector memory


def blocks(length: int, unit: int, most: int) -> int:
    """Size of the blocks into which queries or keys are cut.

    Args:
        length: of what is cut.
        unit: of whose multiples a block is.
        most: the largest size.

    Returns:
        Of the sizes above half of `most`, that with the least left over in the last block; of
        equal ones the largest. If one block holds all, the smallest that does.
    """
    if length <= most:
        return -(-length // unit) * unit
    sizes = range(most // unit * unit, most // 2, -unit)
    return min(sizes, key=lambda size: -(-length // size) * size)


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def flash(
    q: Float[Array, "b t n h"],
    k: Float[Array, "b s n h"],
    v: Float[Array, "b s n h"],
    mask: Bool[Array, "#b 1 keys"] | None,
    past: Past | None = None,
    interpret: bool = False,
) -> Float[Array, "b t n h"]:
    """Attention by blocks, with the gradient of `xla`.

    A block of keys that the mask hides as a whole is left out, and one that it shows as a whole
    costs what it would without a mask.

    Args:
        q: queries `[B, T, N, H]`.
        k: keys `[B, S, N, H]`.
        v: values `[B, S, N, H]`.
        mask: which of the past's keys, then of `k`, a sample's queries may see; None for all.
        past: keys and values that stand before `k` and `v`; they aren't copied.
        interpret: run the kernel's body step by step on any device, to test it.

    Returns:
        `[B, T, N, H]`; zeros where no key is seen.
    """
    b, t, n, h = q.shape
    q = (wide(q) * (LOG2_E * h**-0.5)).astype(q.dtype)
    rows = blocks(t, TILE, ROWS)
    layer = jnp.zeros((1,), jnp.int32)
    parts = [(k[None], v[None])]
    if past is not None:
        layer = jnp.reshape(past.layer, (1,)).astype(jnp.int32)
        parts.insert(0, past[:2])
    lengths = [keys.shape[2] for keys, _ in parts]
    sizes = [blocks(length, LANES, KEYS) for length in lengths]
    counts = [-(-length // size) for length, size in zip(lengths, sizes, strict=True)]
    seen, states = _masks(mask, b, lengths, sizes)
    ends = [sum(counts[:i]) for i in range(len(counts))]  # where each part's blocks begin

    def of(i: int, own_layer: bool) -> Any:
        def index(sample, head, row, block, layer, states):
            at = jnp.clip(block - ends[i], 0, counts[i] - 1)
            return (layer[0] if own_layer else 0), sample, head, at, 0

        return pl.BlockSpec((None, None, None, sizes[i], h), index)

    def row_of(i: int) -> Any:
        def index(sample, head, row, block, layer, states):
            return sample, 0, jnp.clip(block - ends[i], 0, counts[i] - 1)

        return pl.BlockSpec((None, 1, sizes[i]), index)

    specs = [pl.BlockSpec((None, None, rows, h), lambda s, n, i, j, *_: (s, n, i, 0))]
    arrays = [jnp.swapaxes(q, 1, 2)]
    for i, pair in enumerate(parts):
        specs += [of(i, past is not None and i == 0)] * 2
        arrays += [jnp.swapaxes(x, 2, 3) for x in pair]
        specs.append(row_of(i))
        arrays.append(seen[i])
    kernel = partial(_kernel, lengths=lengths, sizes=sizes, ends=ends, whole=sum(counts))
    out = pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(b, n, -(-t // rows), sum(counts)),
            in_specs=specs,
            # A head's columns of [B, T, N H], which is how the next product reads them.
            out_specs=pl.BlockSpec((None, rows, h), lambda s, n, i, j, *_: (s, i, n)),
            scratch_shapes=[
                pltpu.VMEM((rows, LANES), jnp.float32),
                pltpu.VMEM((rows, LANES), jnp.float32),
                pltpu.VMEM((rows, h), jnp.float32),
            ],
        ),
        out_shape=jax.ShapeDtypeStruct((b, t, n * h), v.dtype),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel", "arbitrary"),
            vmem_limit_bytes=MEMORY,
        ),
        interpret=interpret,
        name="flash_attention",
    )(layer, states, *arrays)
    return out.reshape(q.shape)


def _masks(
    mask: Bool[Array, "#b 1 keys"] | None, batch: int, lengths: list[int], sizes: list[int]
) -> tuple[list[Int[Array, "b 1 s"]], Int[Array, "b blocks"]]:
    """Which keys of each part are seen, those behind its end never; and each block's state."""
    rows, states, start = [], [], 0
    for length, size in zip(lengths, sizes, strict=True):
        part = jnp.ones((1, length), bool) if mask is None else mask[:, 0, start : start + length]
        part = jnp.broadcast_to(part, (batch, length))
        part = jnp.pad(part, ((0, 0), (0, -length % size)))
        some = part.reshape(batch, -1, size)
        state = jnp.where(jnp.all(some, -1), SEEN, jnp.where(jnp.any(some, -1), MIXED, HIDDEN))
        rows.append(part[:, None].astype(jnp.int32))
        states.append(state.astype(jnp.int32))
        start += length
    return rows, jnp.concatenate(states, axis=1)


def _kernel(layer, states, q, *refs, lengths, sizes, ends, whole) -> None:
    """One block of queries and one of keys; the last axis of the grid goes through the keys."""
    *parts, out, most, total, summed = refs
    sample, block = pl.program_id(0), pl.program_id(3)
    state = states[sample, block]

    @pl.when(block == 0)
    def _begin():
        most[...] = jnp.full_like(most, LOW)
        total[...] = jnp.zeros_like(total)
        summed[...] = jnp.zeros_like(summed)

    def add(k: Array, v: Array, seen: Array | None, left: Array) -> None:
        logits = jax.lax.dot_general(
            q[...], k, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
        )
        if seen is not None:
            logits = jnp.where(seen > 0, logits, LOW)
            # Behind an array's end lies anything, NaN too.
            row = jax.lax.broadcasted_iota(jnp.int32, v.shape, 0)
            v = jnp.where(row < left, v, jnp.zeros_like(v))
        before = most[...]
        now = jnp.maximum(before, jnp.max(logits, axis=1, keepdims=True))
        weights = jnp.exp2(logits - _across(now, logits.shape[1]))
        fade = jnp.exp2(before - now)
        most[...] = now
        total[...] = fade * total[...] + jnp.sum(weights, axis=1, keepdims=True)
        product = jax.lax.dot_general(
            weights.astype(v.dtype), v, (((1,), (0,)), ((), ())),
            preferred_element_type=jnp.float32,
        )  # fmt: skip
        summed[...] = summed[...] * _across(fade, v.shape[1]) + product

    for i, (length, size, begin) in enumerate(zip(lengths, sizes, ends, strict=True)):
        k, v, seen = parts[3 * i : 3 * i + 3]
        end = begin + -(-length // size)
        here = (block >= begin) & (block < end)
        left = length - (block - begin) * size

        @pl.when(here & (state == SEEN))
        def _plain(k=k, v=v, left=left):
            add(k[...], v[...], None, left)

        @pl.when(here & (state == MIXED))
        def _masked(k=k, v=v, seen=seen, left=left):
            add(k[...], v[...], seen[...], left)

    @pl.when(block == whole - 1)
    def _finish():
        by = _across(total[...], out.shape[1])
        out[...] = (summed[...] / jnp.where(by == 0, 1, by)).astype(out.dtype)


def _across(x: Float[Array, "rows lanes"], width: int) -> Float[Array, "rows width"]:
    """`x`, equal in all lanes, of another width."""
    return x[:, :width] if width <= LANES else jnp.tile(x, (1, width // LANES))


def _forward(q, k, v, mask, past, interpret):
    return flash(q, k, v, mask, past, interpret), (q, k, v, mask, past)


def _backward(interpret, kept, gradient):
    q, k, v, mask, past = kept

    def plain(q, k, v, past):
        return xla(q, *joined(k, v, past), mask)

    _, pull = jax.vjp(plain, q, k, v, past)
    dq, dk, dv, dpast = pull(gradient)
    return dq, dk, dv, None, dpast


flash.defvjp(_forward, _backward)
