"""TAEHV's tiny autoencoder: where the arrays are in its own files, all sizes and both formats."""

from collections.abc import Iterator

from convert.layout import Row, Table
from tt_jax.models.tiny_vae import TinyVAEConfig

KERNEL = ("kernel", "weight", "o i h w -> h w i o")
BIAS = ("bias", "bias", "o -> o")
POINT = ("kernel", "conv.weight", "o i 1 1 -> i o")  # a convolution of length one

Leaf = tuple[str, str, str]  # ours, the source's, axes


def _places(config: TinyVAEConfig) -> Iterator[tuple[str, str, tuple[Leaf, ...]]]:
    """Every layer: ours, the source's name, its arrays.

    The source numbers what it runs one after the other, activations and resizing included.
    """
    levels, blocks = len(config.temporal_upsample), config.blocks
    last = 2 + levels * (2 + blocks)  # of the encoder
    yield "encoder/conv_in", "encoder.0", (KERNEL, BIAS)
    yield "encoder/head", f"encoder.{last}", (KERNEL, BIAS)
    yield "decoder/conv_in", "decoder.1", (KERNEL, BIAS)
    yield "decoder/head", f"decoder.{4 + levels * (3 + blocks)}", (KERNEL, BIAS)
    for i in range(levels):
        down, up = 2 + i * (2 + blocks), 3 + i * (3 + blocks)
        yield f"encoder/levels/{i}/pool", f"encoder.{down}", (POINT,)
        yield f"encoder/levels/{i}/conv", f"encoder.{down + 1}", (KERNEL,)
        yield f"decoder/levels/{i}/grow", f"decoder.{up + blocks + 1}", (POINT,)
        yield f"decoder/levels/{i}/conv", f"decoder.{up + blocks + 2}", (KERNEL,)
        for side, first in (("encoder", down + 2), ("decoder", up)):
            for j in range(blocks):
                for k in range(3):
                    ours = f"{side}/levels/{i}/blocks/{j}/conv{k + 1}"
                    yield ours, f"{side}.{first + j}.conv.{2 * k}", (KERNEL, BIAS)


def native(config: TinyVAEConfig) -> Table:
    """The layout of `taew2_1` and `taew2_2`."""
    return tuple(
        Row(f"{source}.{theirs}", f"{path}/{ours}", axes)
        for path, source, leaves in _places(config)
        for ours, theirs, axes in leaves
    )
