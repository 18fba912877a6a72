"""Wan2.1's diffusion transformer with one noise level per frame. Knows no cache policy, no mesh.

Axes: B batch, F frames, P tokens of a frame, T = F P tokens, S context tokens, L layers, N heads,
H head width, D model width.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, DTypeLike, Float, Int

from tt_jax.nn import int8
from tt_jax.nn.attention import attention, choice
from tt_jax.nn.dot_product import Past
from tt_jax.nn.layers import (
    LayerNorm,
    Linear,
    RMSNorm,
    gelu,
    layer_norm,
    patchify,
    to_rank,
    unpatchify,
    wide,
)
from tt_jax.nn.rope import rotate, rotation
from tt_jax.settings import sizes


class KV(NamedTuple):
    """Keys and values of all layers.

    Attributes:
        k: keys `[L, B, S, N, H]`, normed; rotated or not is for whoever caches them to know.
        v: values `[L, B, S, N, H]`.
    """

    k: Float[Array, "l b s n h"]
    v: Float[Array, "l b s n h"]


# How self-attention reads the past: from a layer's part of the past (or None) and its own queries,
# keys and values `[B, T, N, H]`, not rotated, to what it attends to `[B, T, N, H]`, and whatever
# the pass shall return of that layer.
Read = Callable[[Any, Array, Array, Array], tuple[Array, Any]]


def reader(
    rope: tuple[Float[Array, "t *n pairs"], Float[Array, "t *n pairs"]],
    mask: Bool[Array, "#b #t keys"] | None = None,
    past_rope: tuple[Float[Array, "*cached pairs"], Float[Array, "*cached pairs"]] | None = None,
    rotated: bool = False,
    bias: Float[Array, " keys"] | None = None,
    whole: KV | None = None,
) -> Read:
    """Attention to cached keys and values, then to a pass's own; returns the latter.

    Args:
        rope: `rotation` of the pass's own tokens.
        mask: which of the S + T keys (cached ones first) a query may see.
        past_rope: rotation of the cached keys `[S, *N, pairs]`, or each sample's `[B, S, N or 1,
            pairs]`; without it they are rotated already.
        rotated: whether the returned keys are rotated.
        bias: added to the logits of the S + T keys.
        whole: rotated keys and values of all layers, in the place of a layer's past: that is its
            number then (see `in_place`).

    Returns:
        A `Read` for a past of keys and values `[B, S, N, H]`, or None.
    """

    def read(past: Any, q: Array, k: Array, v: Array) -> tuple[Array, KV]:
        keys = rotate(k, rope)
        own = KV(keys if rotated else k, v)
        if whole is not None:
            past = Past(*whole, past)
        elif past is not None:
            cached = past[0].astype(k.dtype)
            cached = cached if past_rope is None else rotate(cached, past_rope)
            past = Past(cached[None], past[1].astype(k.dtype)[None], jnp.int32(0))
        return attention(rotate(q, rope), keys, v, mask, bias=bias, past=past), own

    return read


def in_place(
    context: KV | None,
    own: int,
    mask: Bool[Array, "#b #t keys"] | None,
    rotated: bool,
    bias: Float[Array, " keys"] | None = None,
) -> bool:
    """Whether a kernel reads the cached keys of all layers where they are.

    XLA would copy a layer's part of them out, in each layer of each pass. Where it attends itself,
    that is all the same, and a gradient by them wants no sum over all layers.

    Args:
        context: keys and values of all layers.
        own: a pass's own tokens.
        mask: which keys a query may see.
        rotated: whether the cached keys are.
        bias: added to the logits.

    Returns:
        True if `reader` takes `context` as its `whole`.
    """
    if context is None or not rotated or bias is not None:
        return False
    shape, dtype = context.k.shape[1:], context.k.dtype
    q = jax.ShapeDtypeStruct((shape[0], own, *shape[2:]), dtype)
    return choice(q, jax.ShapeDtypeStruct(shape, dtype), mask).impl == "flash"


@dataclasses.dataclass(frozen=True)
class DiTConfig:
    """Sizes of a diffusion transformer; the defaults are those of Wan2.1 T2V 1.3B.

    Args:
        dim: width of the model.
        ffn_dim: hidden width of its feed-forward.
        layers: number of blocks.
        heads: attention heads.
        channels: of the latents.
        patch: side of a token in latents.
        text_dim: width of the prompts' embeddings.
        text_len: rows of a prompt's embeddings.
        freq_dim: width of the sinusoids of a noise level.
        quantize: "int8" for linear layers of 8 bits in all blocks but the first and the last; None
            for none.

    Raises:
        ValueError: sizes that no transformer has.
    """

    dim: int = 1536
    ffn_dim: int = 8960
    layers: int = 30
    heads: int = 12
    channels: int = 16
    patch: int = 2
    text_dim: int = 4096
    text_len: int = 512
    freq_dim: int = 256
    quantize: str | None = None

    def __post_init__(self) -> None:
        sizes(self)
        int8.check(self.quantize)
        if self.quantize and self.layers < 3:
            raise ValueError("a transformer of one or two blocks has none to quantise.")
        if self.dim % self.heads:
            raise ValueError(
                f"a width of {self.dim} can't be split into {self.heads} heads of an even width."
            )
        # Pairs of channels are rotated, some for time, for height and for width.
        if self.head_dim % 2 or self.head_dim < 6:
            raise ValueError(
                f"a head's width, dim / heads, must be even and at least 6, not {self.head_dim}."
            )
        if self.freq_dim % 2:
            raise ValueError(f"freq_dim, sines and cosines, must be even, not {self.freq_dim}.")

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.dim // self.heads

    @classmethod
    def wan_1_3b(cls) -> "DiTConfig":
        """Wan2.1 T2V 1.3B, the backbone of Self Forcing and Rolling Forcing."""
        return cls()

    @classmethod
    def wan_14b(cls) -> "DiTConfig":
        """Wan2.1 T2V 14B."""
        return cls(dim=5120, ffn_dim=13824, layers=40, heads=40)


class MLP(nnx.Module):
    """Two linear layers with an activation between."""

    def __init__(
        self,
        sizes: tuple[int, int, int],
        act: Callable[[Array], Array],
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
        linear: type[Linear] | type[int8.Int8Linear] = Linear,
    ) -> None:
        self.act = act
        self.fc1 = linear(sizes[0], sizes[1], dtype=dtype, rngs=rngs)
        self.fc2 = linear(sizes[1], sizes[2], dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "*s i"]) -> Float[Array, "*s o"]:
        return self.fc2(self.act(self.fc1(x)))


class Projections(nnx.Module):
    """The projections of one attention; queries and keys are normed over their whole width."""

    def __init__(
        self,
        config: DiTConfig,
        linear: type[Linear] | type[int8.Int8Linear],
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        dim = config.dim
        self.heads = config.heads
        self.q, self.k, self.v, self.o = (
            linear(dim, dim, dtype=dtype, rngs=rngs) for _ in range(4)
        )
        self.norm_q, self.norm_k = (RMSNorm(dim, dtype=dtype) for _ in range(2))

    def _split(self, x: Float[Array, "b t d"]) -> Float[Array, "b t n h"]:
        return x.reshape(*x.shape[:-1], self.heads, -1)

    def query(self, x: Float[Array, "b t d"]) -> Float[Array, "b t n h"]:
        """Normed queries, not rotated."""
        return self._split(self.norm_q(self.q(x)))

    def key_value(
        self, x: Float[Array, "b s d"]
    ) -> tuple[Float[Array, "b s n h"], Float[Array, "b s n h"]]:
        """Normed keys, not rotated, and values."""
        return self._split(self.norm_k(self.k(x))), self._split(self.v(x))

    def out(self, x: Float[Array, "b t n h"]) -> Float[Array, "b t d"]:
        """Joins the heads."""
        return self.o(x.reshape(*x.shape[:-2], -1))


class Block(nnx.Module):
    """Modulated self-attention, cross-attention to the text, modulated feed-forward."""

    def __init__(
        self,
        config: DiTConfig,
        linear: type[Linear] | type[int8.Int8Linear] = Linear,
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        dim = config.dim
        scale = dim**-0.5
        modulation = scale * jax.random.normal(rngs.params(), (6, dim))
        self.modulation = nnx.Param(modulation.astype(dtype))
        self.self_attn = Projections(config, linear, dtype=dtype, rngs=rngs)
        self.cross_attn = Projections(config, linear, dtype=dtype, rngs=rngs)
        self.norm_cross = LayerNorm(dim, dtype=dtype)
        self.ffn = MLP((dim, config.ffn_dim, dim), gelu, dtype=dtype, rngs=rngs, linear=linear)

    def __call__(
        self,
        x: Float[Array, "b f p d"],
        time: Float[Array, "#b f 6 d"],
        text: tuple[Float[Array, "b l n h"], Float[Array, "b l n h"]],
        past: Any,
        read: Read,
    ) -> tuple[Float[Array, "b f p d"], Any]:
        b, f, p, d = x.shape
        kind = x.dtype
        m = time + to_rank(wide(self.modulation[...]), 4)
        shift1, scale1, gate1, shift2, scale2, gate2 = (m[:, :, i, None] for i in range(6))

        with jax.named_scope("self_attention"):
            y = (layer_norm(x) * (1 + scale1) + shift1).astype(kind).reshape(b, f * p, d)
            k, v = self.self_attn.key_value(y)
            y, own = read(past, self.self_attn.query(y), k, v)
            y = self.self_attn.out(y).reshape(x.shape)
            x = (wide(x) + wide(y) * gate1).astype(kind)

        with jax.named_scope("cross_attention"):
            y = self.norm_cross(x).astype(kind).reshape(b, f * p, d)
            y = self.cross_attn.out(attention(self.cross_attn.query(y), *text))
            x = x + y.reshape(x.shape)

        with jax.named_scope("feed_forward"):
            y = self.ffn((layer_norm(x) * (1 + scale2) + shift2).astype(kind))
            x = (wide(x) + wide(y) * gate2).astype(kind)
        return x, own


class DiT(nnx.Module):
    """The transformer. Its blocks are stacked along a leading layer axis and run by one scan.

    Of a quantised one the first and the last block, which aren't, are a stack of their own, `ends`.
    """

    def __init__(
        self, config: DiTConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs
    ) -> None:
        self.config = config
        dim = config.dim
        values = config.patch**2 * config.channels
        self.patch_embedding = Linear(values, dim, dtype=dtype, rngs=rngs)
        self.text_embedding = MLP((config.text_dim, dim, dim), gelu, dtype=dtype, rngs=rngs)
        self.time_embedding = MLP((config.freq_dim, dim, dim), jax.nn.silu, dtype=dtype, rngs=rngs)
        self.time_projection = Linear(dim, 6 * dim, dtype=dtype, rngs=rngs)

        def stack(layers: int, linear: type[Linear] | type[int8.Int8Linear]) -> Block:
            make = nnx.split_rngs(splits=layers)(
                nnx.vmap(lambda rngs: Block(config, linear, dtype=dtype, rngs=rngs))
            )
            return make(rngs)

        if config.quantize is None:
            self.blocks = stack(config.layers, Linear)
        else:
            self.blocks = stack(config.layers - 2, int8.Int8Linear)
            self.ends = stack(2, Linear)
        modulation = dim**-0.5 * jax.random.normal(rngs.params(), (2, dim))
        self.head_modulation = nnx.Param(modulation.astype(dtype))
        self.head = Linear(dim, values, dtype=dtype, rngs=rngs)

    def encode_text(self, text: Float[Array, "b l e"]) -> KV:
        """Cross-attention keys and values of a prompt; once per prompt.

        Args:
            text: embeddings, padded with zero rows to `text_len`; every row is attended, as in Wan.

        Returns:
            Both `[L, B, text_len, N, H]`.
        """
        rows = self.text_embedding(text)
        layer = lambda none, block, _: (none, block.cross_attn.key_value(rows))  # noqa: E731
        return KV(*self._through(layer, None, None)[1])

    def _through(
        self, layer: Callable[[Any, Block, Any], tuple[Any, Any]], carry: Any, inputs: Any
    ) -> tuple[Any, Any]:
        """A scan of `layer(carry, block, input)` over all blocks.

        carry: of the first block. inputs: a pytree whose arrays have a leading axis of layers, or
        None. Returns the last carry, and what each layer returns beside it.
        """
        if self.config.quantize is None:
            return jax.lax.scan(lambda x, rows: layer(x, *rows), carry, (self.blocks, inputs))

        # In one scan all the same: slices of a stacked input, or parts of a stacked output to be
        # joined, would be copies of a K/V buffer.
        def either(x: Any, rows: Any) -> tuple[Any, Any]:
            number, row = rows
            first, last = number == 0, number == self.config.layers - 1

            def of(stack: Block, place: Int[Array, ""]) -> Callable[[Any], tuple[Any, Any]]:
                def run(x: Any) -> tuple[Any, Any]:
                    take = lambda part: jax.lax.dynamic_index_in_dim(part, place, 0, False)  # noqa: E731
                    return layer(x, jax.tree.map(take, stack), row)

                return run

            end = of(self.ends, last.astype(jnp.int32))
            return jax.lax.cond(first | last, end, of(self.blocks, number - 1), x)

        numbers = jnp.arange(self.config.layers, dtype=jnp.int32)
        return jax.lax.scan(either, carry, (numbers, inputs))

    def embed_time(
        self, sinusoid: Float[Array, "#b f e"]
    ) -> tuple[Float[Array, "#b f d"], Float[Array, "#b f 6 d"]]:
        """Embedding of noise levels and its six modulations.

        Args:
            sinusoid: of each frame's level, from `schedule.time_sinusoid`.

        Returns:
            `[B or 1, F, D]` and `[B or 1, F, 6, D]`, at least float32.
        """
        first, second, last = (
            # Each of them has a bias.
            (wide(part.kernel[...]), to_rank(wide(part.bias[...]), 3))  # pyright: ignore[reportOptionalSubscript]
            for part in (self.time_embedding.fc1, self.time_embedding.fc2, self.time_projection)
        )
        hidden = jax.nn.silu(wide(sinusoid).astype(first[0].dtype) @ first[0] + first[1])
        e = hidden @ second[0] + second[1]
        e0 = jax.nn.silu(e) @ last[0] + last[1]
        return e, e0.reshape(*e.shape[:-1], 6, -1)

    def __call__(
        self,
        latents: Float[Array, "b f h w c"],
        time: Float[Array, "#b f e"],
        text: KV,
        frames: Int[Array, " f"] | None,
        context: Any = None,
        mask: Bool[Array, "#b #t keys"] | None = None,
        *,
        positions: Int[Array, " slots"] | None = None,
        rotated: bool = False,
        read: Read | None = None,
        remat: bool = False,
    ) -> tuple[Float[Array, "b f h w c"], Any]:
        """One pass: the flow (noise - x0) of every frame, and the frames' own keys and values.

        Keys are rotated layer by layer: all layers' at once would be another K/V buffer.

        Args:
            latents: noisy frames, channels-last.
            time: sinusoids of the frames' noise levels, from `schedule.time_sinusoid`.
            text: from `encode_text`.
            frames: absolute index of each frame in the video, for the rotary positions.
            context: keys and values of S earlier tokens; read, never written.
            mask: which of the S + T keys (context first) a query may see.
            positions: frame index of each frame of the context, whose keys aren't rotated then.
                Without it they are.
            rotated: whether the returned keys are rotated, to `frames`. If not, whoever caches them
                decides on their positions.
            read: how layers read a past of any kind: `context` is a pytree whose arrays have a
                leading axis of layers, and what `read` returns of each layer stands in the place of
                keys and values. Mask, positions and `rotated` are its own affair then, and `frames`
                unused.
            remat: recompute each block in the backward pass instead of keeping its activations.

        Returns:
            The flow, in the dtype of the weights, and keys and values as a `KV` (or what `read`
            returns, with a leading axis of layers).

        Raises:
            ValueError: the latents can't be cut into patches.
        """
        config = self.config
        height, width = latents.shape[2:4]
        if height % config.patch or width % config.patch:
            raise ValueError(
                f"latents of {height}x{width} can't be cut into {config.patch}x{config.patch} "
                "patches: use even sides."
            )
        x = self.patch_embedding(patchify(latents, config.patch))
        e, e0 = self.embed_time(time)
        grid = (height // config.patch, width // config.patch)
        if read is None:
            assert frames is not None
            past = None if positions is None else rotation(positions, *grid, config.head_dim)
            here = in_place(context, x.shape[1] * x.shape[2], mask, past is None)
            whole = context if here else None
            rope = rotation(frames, *grid, config.head_dim)
            read = reader(rope, mask, past, rotated, whole=whole)
            context = jnp.arange(config.layers, dtype=jnp.int32) if here else context

        def layer(x: Array, block: Block, inputs: Any) -> tuple[Array, Any]:
            text, context = inputs
            return block(x, e0, text, context, read)

        if remat:
            layer = jax.checkpoint(layer)
        x, own = self._through(layer, x, (tuple(text), context))

        m = e[:, :, None] + to_rank(wide(self.head_modulation[...]), 4)
        shift, scale = m[:, :, 0, None], m[:, :, 1, None]
        x = self.head((layer_norm(x) * (1 + scale) + shift).astype(x.dtype))
        return unpatchify(x, config.patch, height, width), own
