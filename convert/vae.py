"""Wan2.1's VAE: where the arrays are in the original checkpoint, and in the diffusers one.

Which blocks there are depends on the sizes, so the tables are made for a config.
"""

from collections.abc import Iterator

from convert.layout import Row, Table
from tt_jax.models.vae import VAEConfig

# The arrays of a layer: ours, the source's, axes. Convolutions of length one are linear layers.
CONV3 = (("kernel", "weight", "o i t h w -> t h w i o"), ("bias", "bias", "o -> o"))
CONV2 = (("kernel", "weight", "o i h w -> 1 h w i o"), ("bias", "bias", "o -> o"))
LINEAR3 = (("kernel", "weight", "o i 1 1 1 -> i o"), ("bias", "bias", "o -> o"))
LINEAR2 = (("kernel", "weight", "o i 1 1 -> i o"), ("bias", "bias", "o -> o"))
NORM3 = (("scale", "gamma", "c 1 1 1 -> c"),)
NORM2 = (("scale", "gamma", "c 1 1 -> c"),)

# Layers: ours, the native name, the diffusers name, arrays. First those of the whole model, then of
# the encoder and decoder alike, of a residual block, and of a change of resolution.
WHOLE = (
    ("to_moments", "conv1", "quant_conv", LINEAR3),
    ("from_latents", "conv2", "post_quant_conv", LINEAR3),
)
SIDE = (
    ("conv_in", "conv1", "conv_in", CONV3),
    ("middle/attention/norm", "middle.1.norm", "mid_block.attentions.0.norm", NORM2),
    ("middle/attention/qkv", "middle.1.to_qkv", "mid_block.attentions.0.to_qkv", LINEAR2),
    ("middle/attention/out", "middle.1.proj", "mid_block.attentions.0.proj", LINEAR2),
    ("head/norm", "head.0", "norm_out", NORM3),
    ("head/conv", "head.2", "conv_out", CONV3),
)
BLOCK = (
    ("norm1", "residual.0", "norm1", NORM3),
    ("conv1", "residual.2", "conv1", CONV3),
    ("norm2", "residual.3", "norm2", NORM3),
    ("conv2", "residual.6", "conv2", CONV3),
)
SHORTCUT = (("shortcut", "shortcut", "conv_shortcut", LINEAR3),)
SPACE = (("space", "resample.1", "resample.1", CONV2),)
TIME = (("time", "time_conv", "time_conv", CONV3),)

Layers = tuple[tuple[str, str, str, tuple[tuple[str, str, str], ...]], ...]
Place = tuple[str, str, str, Layers]  # ours, the native name, the diffusers name, layers there


def _places(config: VAEConfig) -> Iterator[Place]:
    """Every module of the VAE with its names, and the layers in it."""
    yield "", "", "", WHOLE
    widths = config.dim_mult
    last = len(widths) - 1
    for side in ("encoder", "decoder"):
        yield f"{side}/", f"{side}.", f"{side}.", SIDE
        for ours, native, other in (("block1", 0, 0), ("block2", 2, 1)):
            yield (
                f"{side}/middle/{ours}/",
                f"{side}.middle.{native}.",
                f"{side}.mid_block.resnets.{other}.",
                BLOCK,
            )

    # The original numbers blocks and resamplings through all levels; diffusers does in the encoder.
    place = 0
    for i, width in enumerate(widths):
        before = widths[max(i - 1, 0)]
        for j in range(config.res_blocks):
            yield (
                f"encoder/levels/{i}/blocks/{j}/",
                f"encoder.downsamples.{place}.",
                f"encoder.down_blocks.{place}.",
                BLOCK + (SHORTCUT if before != width and j == 0 else ()),
            )
            place += 1
        if i < last:
            yield (
                f"encoder/levels/{i}/resample/",
                f"encoder.downsamples.{place}.",
                f"encoder.down_blocks.{place}.",
                SPACE + (TIME if config.temporal_downsample[i] else ()),
            )
            place += 1

    place = 0
    for i, width in enumerate(reversed(widths)):
        before = width if i == 0 else widths[last - i + 1] / 2
        for j in range(config.res_blocks + 1):
            yield (
                f"decoder/levels/{i}/blocks/{j}/",
                f"decoder.upsamples.{place}.",
                f"decoder.up_blocks.{i}.resnets.{j}.",
                BLOCK + (SHORTCUT if before != width and j == 0 else ()),
            )
            place += 1
        if i < last:
            yield (
                f"decoder/levels/{i}/resample/",
                f"decoder.upsamples.{place}.",
                f"decoder.up_blocks.{i}.upsamplers.0.",
                SPACE + (TIME if config.temporal_downsample[last - 1 - i] else ()),
            )
            place += 1


def native(config: VAEConfig) -> Table:
    """The layout of Wan's own `Wan2.1_VAE.pth`.

    Args:
        config: Sizes of the VAE, which decide on its blocks.

    Returns:
        A row for each array.
    """
    return tuple(
        Row(f"{source}{name}.{array}", f"{ours}{layer}/{leaf}", axes)
        for ours, source, _, layers in _places(config)
        for layer, name, _, arrays in layers
        for leaf, array, axes in arrays
    )


def diffusers(config: VAEConfig) -> Table:
    """The layout of diffusers' `AutoencoderKLWan`.

    Args:
        config: As in `native`.

    Returns:
        A row for each array.
    """
    return tuple(
        Row(f"{source}{name}.{array}", f"{ours}{layer}/{leaf}", axes)
        for ours, _, source, layers in _places(config)
        for layer, _, name, arrays in layers
        for leaf, array, axes in arrays
    )
