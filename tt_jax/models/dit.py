"""Wan2.1's diffusion transformer with one noise level per frame. Knows no cache policy, no mesh.

Axes: B batch, F frames, P tokens of a frame, T = F P tokens, S context tokens, L layers, N heads,
H head width, D model width.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, DTypeLike, Float, Int

from tt_jax.nn.attention import attention
from tt_jax.nn.layers import (
    LayerNorm,
    Linear,
    RMSNorm,
    gelu,
    layer_norm,
    patchify,
    unpatchify,
    wide,
)
from tt_jax.nn.rope import rotate, rotation


class KV(NamedTuple):
    """Keys and values of all layers, `[L, B, S, N, H]` each."""

    k: Float[Array, "l b s n h"]
    v: Float[Array, "l b s n h"]


@dataclasses.dataclass(frozen=True)
class DiTConfig:
    """Sizes of a diffusion transformer; the defaults are those of Wan2.1 T2V 1.3B."""

    dim: int = 1536
    ffn_dim: int = 8960
    layers: int = 30
    heads: int = 12
    channels: int = 16
    patch: int = 2
    text_dim: int = 4096
    text_len: int = 512
    freq_dim: int = 256

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

    def __init__(self, sizes: tuple[int, int, int], act, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.act = act
        self.fc1 = Linear(sizes[0], sizes[1], dtype=dtype, rngs=rngs)
        self.fc2 = Linear(sizes[1], sizes[2], dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "*s i"]) -> Float[Array, "*s o"]:
        return self.fc2(self.act(self.fc1(x)))


class Projections(nnx.Module):
    """The projections of one attention; queries and keys are normed over their whole width."""

    def __init__(self, config: DiTConfig, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        dim = config.dim
        self.heads = config.heads
        self.q, self.k, self.v, self.o = (
            Linear(dim, dim, dtype=dtype, rngs=rngs) for _ in range(4)
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

    def __init__(self, config: DiTConfig, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        dim = config.dim
        scale = dim**-0.5
        modulation = scale * jax.random.normal(rngs.params(), (6, dim))
        self.modulation = nnx.Param(modulation.astype(dtype))
        self.self_attn = Projections(config, dtype=dtype, rngs=rngs)
        self.cross_attn = Projections(config, dtype=dtype, rngs=rngs)
        self.norm_cross = LayerNorm(dim, dtype=dtype)
        self.ffn = MLP((dim, config.ffn_dim, dim), gelu, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b f p d"],
        time: Float[Array, "#b f 6 d"],
        rope: tuple[Float[Array, "t pairs"], Float[Array, "t pairs"]],
        text: tuple[Float[Array, "b l n h"], Float[Array, "b l n h"]],
        context: tuple[Float[Array, "b s n h"], Float[Array, "b s n h"]] | None,
        mask: Bool[Array, "#b #t keys"] | None,
        past_rope: tuple[Float[Array, "s pairs"], Float[Array, "s pairs"]] | None = None,
        rotated: bool = False,
    ) -> tuple[Float[Array, "b f p d"], tuple[Float[Array, "b t n h"], Float[Array, "b t n h"]]]:
        b, f, p, d = x.shape
        kind = x.dtype
        m = time + wide(self.modulation[...])
        shift1, scale1, gate1, shift2, scale2, gate2 = (m[:, :, i, None] for i in range(6))

        with jax.named_scope("self_attention"):
            y = (layer_norm(x) * (1 + scale1) + shift1).astype(kind).reshape(b, f * p, d)
            k, v = self.self_attn.key_value(y)
            keys, values = rotate(k, rope), v
            own = (keys if rotated else k, v)
            if context is not None:
                past = context[0].astype(kind)
                past = past if past_rope is None else rotate(past, past_rope)
                keys = jnp.concatenate([past, keys], axis=1)
                values = jnp.concatenate([context[1].astype(kind), values], axis=1)
            y = attention(rotate(self.self_attn.query(y), rope), keys, values, mask)
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
    """The transformer. Its blocks are stacked along a leading layer axis and run by one scan."""

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
        make = nnx.split_rngs(splits=config.layers)(
            nnx.vmap(lambda rngs: Block(config, dtype=dtype, rngs=rngs), in_axes=0, out_axes=0)
        )
        self.blocks = make(rngs)
        modulation = dim**-0.5 * jax.random.normal(rngs.params(), (2, dim))
        self.head_modulation = nnx.Param(modulation.astype(dtype))
        self.head = Linear(dim, values, dtype=dtype, rngs=rngs)

    def encode_text(self, text: Float[Array, "b l e"]) -> KV:
        """Cross-attention keys and values of a prompt, `[L, B, l, N, H]`; once per prompt.

        `text` is padded with zero rows to `text_len`, and every row is attended, as in Wan.
        """
        rows = self.text_embedding(text)
        return KV(*jax.lax.map(lambda block: block.cross_attn.key_value(rows), self.blocks))

    def embed_time(
        self, sinusoid: Float[Array, "#b f e"]
    ) -> tuple[Float[Array, "#b f d"], Float[Array, "#b f 6 d"]]:
        """Embedding of the noise levels and its six modulations; at least float32."""
        first, second, last = (
            # Each of them has a bias.
            (wide(part.kernel[...]), wide(part.bias[...]))  # pyright: ignore[reportOptionalSubscript]
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
        frames: Int[Array, " f"],
        context: KV | None = None,
        mask: Bool[Array, "#b #t keys"] | None = None,
        *,
        positions: Int[Array, " slots"] | None = None,
        rotated: bool = False,
        remat: bool = False,
    ) -> tuple[Float[Array, "b f h w c"], KV]:
        """One pass: the flow (noise - x0) of every frame, and the frames' own keys and values.

        latents: noisy frames, channels-last.
        time: sinusoids of the frames' noise levels, from `schedule.time_sinusoid`.
        text: from `encode_text`.
        frames: absolute index of each frame in the video, for the rotary positions.
        context: keys and values of S earlier tokens; read, never written.
        mask: which of the S + T keys (context first) a query may see; `[B or 1, T or 1, S + T]`.
        positions: frame index of each frame of the context, whose keys aren't rotated then. Without
            it they are.
        rotated: whether the returned keys are rotated, to `frames`. If not, whoever caches them
            decides on their positions.
        remat: recompute each block in the backward pass instead of keeping its activations.

        Keys are rotated layer by layer: all layers' at once would be another K/V buffer.
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
        rope = rotation(frames, *grid, config.head_dim)
        past = None if positions is None else rotation(positions, *grid, config.head_dim)

        def layer(x, inputs):
            block, text, context = inputs
            return block(x, e0, rope, text, context, mask, past, rotated)

        if remat:
            layer = jax.checkpoint(layer)
        cached = None if context is None else tuple(context)
        x, (k, v) = jax.lax.scan(layer, x, (self.blocks, tuple(text), cached))

        m = e[:, :, None] + wide(self.head_modulation[...])
        shift, scale = m[:, :, 0, None], m[:, :, 1, None]
        x = self.head((layer_norm(x) * (1 + scale) + shift).astype(x.dtype))
        return unpatchify(x, config.patch, height, width), KV(k, v)
