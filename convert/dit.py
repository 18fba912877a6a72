"""The transformer: where its arrays are in Wan's own checkpoints and in the diffusers ones.

Self Forcing's and Rolling Forcing's checkpoints have the native names. The head's values are in our
order, (row, column, channel); the patch embedding's are not, and its axes say so.
"""

from convert.layout import Row, Table
from tt_jax.models.dit import DiTConfig

# (what follows our path, what follows the source's name, axes)
LINEAR = (("/kernel", ".weight", "o i -> i o"), ("/bias", ".bias", "o -> o"))
PATCH = (("/kernel", ".weight", "o c 1 h w -> (h w c) o"), ("/bias", ".bias", "o -> o"))
RMS_NORM = (("/scale", ".weight", "d -> d"),)
LAYER_NORM = (("/scale", ".weight", "d -> d"), ("/bias", ".bias", "d -> d"))
MODULATION = (("", "", "1 m d -> m d"),)

# Ours, native, diffusers, kind.
ARRAYS = (
    ("patch_embedding", "patch_embedding", "patch_embedding", PATCH),
    ("text_embedding/fc1", "text_embedding.0", "condition_embedder.text_embedder.linear_1", LINEAR),
    ("text_embedding/fc2", "text_embedding.2", "condition_embedder.text_embedder.linear_2", LINEAR),
    ("time_embedding/fc1", "time_embedding.0", "condition_embedder.time_embedder.linear_1", LINEAR),
    ("time_embedding/fc2", "time_embedding.2", "condition_embedder.time_embedder.linear_2", LINEAR),
    ("time_projection", "time_projection.1", "condition_embedder.time_proj", LINEAR),
    ("head_modulation", "head.modulation", "scale_shift_table", MODULATION),
    ("head", "head.head", "proj_out", LINEAR),
)
# The same within each block.
BLOCK_ARRAYS = (
    ("modulation", "modulation", "scale_shift_table", MODULATION),
    ("self_attn/q", "self_attn.q", "attn1.to_q", LINEAR),
    ("self_attn/k", "self_attn.k", "attn1.to_k", LINEAR),
    ("self_attn/v", "self_attn.v", "attn1.to_v", LINEAR),
    ("self_attn/o", "self_attn.o", "attn1.to_out.0", LINEAR),
    ("self_attn/norm_q", "self_attn.norm_q", "attn1.norm_q", RMS_NORM),
    ("self_attn/norm_k", "self_attn.norm_k", "attn1.norm_k", RMS_NORM),
    ("norm_cross", "norm3", "norm2", LAYER_NORM),
    ("cross_attn/q", "cross_attn.q", "attn2.to_q", LINEAR),
    ("cross_attn/k", "cross_attn.k", "attn2.to_k", LINEAR),
    ("cross_attn/v", "cross_attn.v", "attn2.to_v", LINEAR),
    ("cross_attn/o", "cross_attn.o", "attn2.to_out.0", LINEAR),
    ("cross_attn/norm_q", "cross_attn.norm_q", "attn2.norm_q", RMS_NORM),
    ("cross_attn/norm_k", "cross_attn.norm_k", "attn2.norm_k", RMS_NORM),
    ("ffn/fc1", "ffn.0", "ffn.net.0.proj", LINEAR),
    ("ffn/fc2", "ffn.2", "ffn.net.2", LINEAR),
)


def native(config: DiTConfig) -> Table:
    """The layout of Wan's own checkpoints, of Self Forcing's and of Rolling Forcing's.

    Args:
        config: Sizes of the transformer.

    Returns:
        A row for each array.
    """
    return _table(config, 0)


def diffusers(config: DiTConfig) -> Table:
    """The layout of diffusers' `WanTransformer3DModel`.

    Args:
        config: Sizes of the transformer.

    Returns:
        A row for each array.
    """
    return _table(config, 1)


def _table(config: DiTConfig, source: int) -> Table:
    patch = {"h": config.patch, "w": config.patch}
    rows = []
    for path, *names, leaves in ARRAYS:
        for ours, theirs, axes in leaves:
            sizes = patch if "(h w c)" in axes else {}
            rows.append(Row(names[source] + theirs, path + ours, axes, sizes))
    for path, *names, leaves in BLOCK_ARRAYS:
        for ours, theirs, axes in leaves:
            name = f"blocks.{{i}}.{names[source]}{theirs}"
            rows.append(Row(name, f"blocks/{path}{ours}", axes))
    return tuple(rows)
