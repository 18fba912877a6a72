"""The UMT5 encoder through which Wan reads its prompts (T5: Raffel et al., 2020; UMT5: Chung et
al., 2023). Axes: B batch, L token (M as a key), D width, N head, K head width."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, DTypeLike, Float, Int

from tt_jax.nn import int8
from tt_jax.nn.layers import Linear, RMSNorm, gelu, wide, wide_dtype
from tt_jax.settings import sizes


@dataclass(frozen=True)
class TextConfig:
    """Sizes of a text encoder.

    Args:
        vocab: number of token ids.
        dim: width of the model, and of what it returns.
        attention_dim: width of all heads together.
        ffn_dim: hidden width of its feed-forward.
        heads: attention heads.
        layers: number of blocks.
        buckets: of relative positions, half of them for either direction.
        max_distance: tokens from which on all positions share a bucket.
        text_len: rows to which every prompt is padded or cut.
        quantize: "int8" for linear layers and an embedding of 8 bits; None for none.

    Raises:
        ValueError: sizes that no encoder has.
    """

    vocab: int
    dim: int
    attention_dim: int
    ffn_dim: int
    heads: int
    layers: int
    buckets: int = 32
    max_distance: int = 128
    text_len: int = 512
    quantize: str | None = None

    def __post_init__(self) -> None:
        sizes(self)
        int8.check(self.quantize)
        if self.attention_dim % self.heads:
            raise ValueError(
                f"a width of {self.attention_dim} can't be split into {self.heads} heads."
            )
        if self.buckets < 4 or self.buckets % 2:
            raise ValueError(f"buckets must be even and at least 4, not {self.buckets}.")
        if self.max_distance <= self.buckets // 4:
            raise ValueError(
                f"max_distance must be more than a quarter of the {self.buckets} buckets, "
                f"not {self.max_distance}."
            )

    @classmethod
    def umt5_xxl(cls) -> "TextConfig":
        """The encoder of every Wan2.1 model: 5.7 billion parameters."""
        return cls(vocab=256_384, dim=4096, attention_dim=4096, ffn_dim=10_240, heads=64, layers=24)


def relative_buckets(length: int, buckets: int, max_distance: int) -> Int[np.ndarray, "L L"]:
    """The bias bucket of every (query, key) pair (T5: Raffel et al., 2020, section 2.1).

    Keys up to the query use the lower half of the buckets, keys to its right the upper half. In
    each half the first buckets are one distance each; the others grow logarithmically up to
    `max_distance`, beyond which all distances share the last one.

    Args:
        length: number of tokens L.
        buckets: number of buckets.
        max_distance: in tokens.

    Returns:
        Bucket of query and key, `[L, L]`, int32.
    """
    side = buckets // 2
    exact = side // 2
    offset = np.arange(length)[None, :] - np.arange(length)[:, None]
    distance = np.abs(offset)
    # In float32, like the original: at some distances another precision truncates differently.
    log = np.log(np.maximum(distance, exact).astype(np.float32) / np.float32(exact))
    far = log / np.float32(math.log(max_distance / exact)) * np.float32(side - exact)
    far = np.minimum(exact + far.astype(np.int32), side - 1)
    near = np.where(distance < exact, distance, far)
    return (near + side * (offset > 0)).astype(np.int32)


class TextBlock(nnx.Module):
    """Pre-norm self-attention with its own relative position bias, then a gated feed-forward."""

    def __init__(self, config: TextConfig, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        c = config
        self.heads = c.heads

        kind = Linear if c.quantize is None else int8.Int8Linear

        def linear(in_dim: int, out_dim: int) -> Linear | int8.Int8Linear:
            return kind(in_dim, out_dim, bias=False, dtype=dtype, rngs=rngs)

        self.norm1 = RMSNorm(c.dim, dtype=dtype)
        self.q = linear(c.dim, c.attention_dim)
        self.k = linear(c.dim, c.attention_dim)
        self.v = linear(c.dim, c.attention_dim)
        self.o = linear(c.attention_dim, c.dim)
        # T5 doesn't divide its logits by sqrt(K); the initial query kernel does it instead.
        first = self.q.kernel if isinstance(self.q, Linear) else self.q.scale
        first[...] *= (c.attention_dim // c.heads) ** -0.5
        bias = (2 * c.dim) ** -0.5 * jax.random.normal(rngs.params(), (c.buckets, c.heads))
        self.position = nnx.Param(bias.astype(dtype))
        self.norm2 = RMSNorm(c.dim, dtype=dtype)
        self.gate = linear(c.dim, c.ffn_dim)
        self.fc1 = linear(c.dim, c.ffn_dim)
        self.fc2 = linear(c.ffn_dim, c.dim)

    def attend(
        self, x: Float[Array, "B L D"], mask: Bool[Array, "B L"], buckets: Int[np.ndarray, "L L"]
    ) -> Float[Array, "B L D"]:
        """Self-attention with the relative position bias, without scaling of the logits (as in T5).

        Args:
            x: normed rows.
            mask: keys that may be seen.
            buckets: from `relative_buckets`.

        Returns:
            What is added to the rows.
        """
        q, k, v = (
            y.reshape(*y.shape[:2], self.heads, -1) for y in (self.q(x), self.k(x), self.v(x))
        )
        kind = wide_dtype(q.dtype)
        logits = jnp.einsum("blnk,bmnk->bnlm", q, k, preferred_element_type=kind)
        position = wide(self.position[...])[buckets]
        logits = logits + jnp.moveaxis(position, -1, 0)[None]
        logits = jnp.where(mask[:, None, None, :], logits, jnp.finfo(logits.dtype).min)
        weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
        y = jnp.einsum("bnlm,bmnk->blnk", weights, v)
        return self.o(y.reshape(*y.shape[:2], -1))

    def __call__(
        self, x: Float[Array, "B L D"], mask: Bool[Array, "B L"], buckets: Int[np.ndarray, "L L"]
    ) -> Float[Array, "B L D"]:
        """One layer.

        Args:
            x: rows of the prompts.
            mask: keys that may be seen.
            buckets: from `relative_buckets`.

        Returns:
            The rows after it.
        """
        x = x + self.attend(self.norm1(x), mask, buckets)
        y = self.norm2(x)
        return x + self.fc2(self.fc1(y) * gelu(self.gate(y)))


class TextEncoder(nnx.Module):
    """UMT5's encoder. `blocks` holds every layer's parameters in a leading layer axis."""

    def __init__(
        self, config: TextConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs
    ) -> None:
        self.config = config
        embedding = jax.random.normal(rngs.params(), (config.vocab, config.dim))
        self.embedding = nnx.Param(embedding.astype(dtype))
        if config.quantize is not None:
            self.embedding = nnx.Param(jnp.zeros((config.vocab, config.dim), jnp.int8))
            self.embedding_scale = nnx.Param(jnp.ones((config.vocab, 1), jnp.float32))

        @nnx.split_rngs(splits=config.layers)
        @nnx.vmap
        def stack(rngs: nnx.Rngs) -> TextBlock:
            return TextBlock(config, dtype=dtype, rngs=rngs)

        self.blocks = stack(rngs)
        self.norm = RMSNorm(config.dim, dtype=dtype)

    def __call__(
        self, ids: Int[Array, "B L"], mask: Bool[Array, "B L"]
    ) -> Float[Array, "B L {self.config.dim}"]:
        """Embeds prompts.

        Args:
            ids: token ids `[B, L]`, int32.
            mask: True at a prompt's tokens, its end token included, `[B, L]`.

        Returns:
            `[B, L, D]` in the dtype of the parameters; rows beyond the mask are zeros.
        """
        c = self.config
        buckets = relative_buckets(ids.shape[1], c.buckets, c.max_distance)

        def layer(x: Float[Array, "B L D"], block: TextBlock) -> tuple[Float[Array, "B L D"], None]:
            with jax.named_scope("text_block"):
                return block(x, mask, buckets), None

        x = self.embedding[...][ids]
        if c.quantize is not None:
            scale = self.embedding_scale[...][ids]
            x = (x.astype(scale.dtype) * scale).astype(self.norm.scale.dtype)
        x, _ = jax.lax.scan(layer, x, self.blocks)
        return jnp.where(mask[..., None], self.norm(x), 0)
