"""The UMT5 encoder: where its arrays are in Wan's own checkpoint and in the transformers one."""

from convert.layout import Row, Table
from tt_jax.models.text import TextConfig

KERNEL, SAME_1D, SAME_2D = "o i -> i o", "d -> d", "r d -> r d"

# Ours, native, transformers, axes.
ARRAYS = (
    ("embedding", "token_embedding.weight", "shared.weight", SAME_2D),
    ("norm/scale", "norm.weight", "encoder.final_layer_norm.weight", SAME_1D),
)
# The same for each block: ours, then the suffixes in a native and in a transformers block.
BLOCK_ARRAYS = (
    ("norm1/scale", "norm1", "layer.0.layer_norm", SAME_1D),
    ("q/kernel", "attn.q", "layer.0.SelfAttention.q", KERNEL),
    ("k/kernel", "attn.k", "layer.0.SelfAttention.k", KERNEL),
    ("v/kernel", "attn.v", "layer.0.SelfAttention.v", KERNEL),
    ("o/kernel", "attn.o", "layer.0.SelfAttention.o", KERNEL),
    (
        "position",
        "pos_embedding.embedding",
        "layer.0.SelfAttention.relative_attention_bias",
        SAME_2D,
    ),
    ("norm2/scale", "norm2", "layer.1.layer_norm", SAME_1D),
    ("gate/kernel", "ffn.gate.0", "layer.1.DenseReluDense.wi_0", KERNEL),
    ("fc1/kernel", "ffn.fc1", "layer.1.DenseReluDense.wi_1", KERNEL),
    ("fc2/kernel", "ffn.fc2", "layer.1.DenseReluDense.wo", KERNEL),
)
# transformers ties these, and a file may hold both.
TIED = {"shared.weight": ("encoder.embed_tokens.weight",)}


def native(_: TextConfig) -> Table:
    """Wan's own checkpoint (`models_t5_umt5-xxl-enc-bf16.pth`); the names are those of any size."""
    rows = [Row(name, path, axes) for path, name, _, axes in ARRAYS]
    rows += [
        Row(f"blocks.{{i}}.{name}.weight", f"blocks/{path}", axes)
        for path, name, _, axes in BLOCK_ARRAYS
    ]
    return tuple(rows)


def transformers(_: TextConfig) -> Table:
    """`UMT5EncoderModel` of transformers, the `text_encoder` folder of diffusers checkpoints."""
    rows = [Row(name, path, axes, copies=TIED.get(name, ())) for path, _, name, axes in ARRAYS]
    rows += [
        Row(f"encoder.block.{{i}}.{name}.weight", f"blocks/{path}", axes)
        for path, _, name, axes in BLOCK_ARRAYS
    ]
    return tuple(rows)
