"""The README's pictures: of the demo, still and moving, and of another comparison."""

import shutil
from pathlib import Path

import imageio.v3 as iio

HERE = Path(__file__).parent
DEMO = HERE.parent / "demo"
EVERY = 2  # frames of the video to one of the picture's: 8 a second


def main() -> None:
    """Reads what `make demo` and `make pictures` wrote."""
    shutil.copyfile(DEMO / "compare.png", HERE / "demo.png")
    shutil.copyfile(DEMO / "small" / "compare.png", HERE / "small.png")
    frames = iio.imread(DEMO / "compare.mp4", plugin="pyav")[::EVERY]
    # Every model pixel is four of the video's: half of them is plenty.
    iio.imwrite(
        HERE / "demo.webp", frames[:, ::2, ::2], plugin="pillow", extension=".webp",
        duration=1000 * EVERY // 16, loop=0, quality=60, method=6,
    )  # fmt: skip


if __name__ == "__main__":
    main()
