"""The README's pictures: of the demo, still and moving, and of two other comparisons."""

import itertools
import shutil
from pathlib import Path

import imageio.v3 as iio
import numpy as np
from PIL import Image

from tt_jax.media.read import read_frames

HERE = Path(__file__).parent / "pages"
DEMO = Path(__file__).parents[1] / "demo"
EVERY = 2  # frames of the video to one of the picture's: 8 a second


def main() -> None:
    """Reads what `make demo` and `make pictures` wrote."""
    shutil.copyfile(DEMO / "compare.png", HERE / "demo.png")
    shutil.copyfile(DEMO / "small" / "compare.png", HERE / "small.png")
    with Image.open(DEMO / "policies" / "compare.png") as picture:
        picture.save(HERE / "policies.webp", quality=85, method=6)
    # Every model pixel is four of the video's: half of them is plenty. Letters want the mean.
    frames = [
        np.asarray(Image.fromarray(f).reduce(2))
        for f in itertools.islice(read_frames(DEMO / "compare.mp4"), 0, None, EVERY)
    ]
    iio.imwrite(
        HERE / "demo.webp", frames, plugin="pillow", extension=".webp", duration=1000 * EVERY // 16,
        loop=0, quality=60, method=6,
    )  # fmt: skip


if __name__ == "__main__":
    main()
