"""What a live video costs on its way to the page: JPEGs, against H.264 in one piece a chunk.

    python benchmarks/live_transport.py VIDEO [--size 832x480]

Prints bytes a second of video, and seconds of one core for them, of what `tt-jax serve` sends, and
of the encoder that its recordings use, which is what Media Source would be fed with.
"""

import argparse
import io
import itertools
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image

from tt_jax.cli.options import size
from tt_jax.media.read import read_frames
from tt_jax.media.write import converted, settle
from tt_jax.models.configs import FPS
from tt_jax.serve.recording import AT_ONCE
from tt_jax.serve.take import jpeg

SECONDS = 10  # of video, at most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("video", type=Path)
    parser.add_argument("--size", type=size, default=(480, 832), help="frames are brought to it")
    args = parser.parse_args()
    height, width = args.size
    frames = [
        np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC))
        for frame in itertools.islice(read_frames(args.video), SECONDS * FPS)
    ]
    print(f"{len(frames)} frames of {width}x{height} from {args.video}")
    print("| | kB/s | core |\n|---|---|---|")
    for name, encode in {"JPEG": jpegs, "H.264": h264}.items():
        length, spent = measure(encode, frames)
        seconds = len(frames) / FPS
        print(f"| {name} | {length / seconds / 1000:.0f} | {100 * spent / seconds:.1f} % |")


def measure(encode: Callable[[list[np.ndarray]], int], frames: list) -> tuple[int, float]:
    """Bytes, and seconds of one core."""
    encode(frames[:2])
    began = time.process_time()
    return encode(frames), time.process_time() - began


def jpegs(frames: list[np.ndarray]) -> int:
    """As they are sent."""
    return sum(len(jpeg(frame)) for frame in frames)


def h264(frames: list[np.ndarray]) -> int:
    """As it is recorded."""
    codec, reformatter, file = (
        av.VideoCodecContext.create("libx264", "w"),
        VideoReformatter(),
        io.BytesIO(),
    )
    settle(codec, *frames[0].shape[:2])
    codec.time_base, codec.framerate = Fraction(1, FPS), Fraction(FPS)
    codec.gop_size, codec.options = 3 * FPS, AT_ONCE
    for number, frame in enumerate(frames):
        image = converted(codec, frame, reformatter)
        image.pts = number
        for packet in codec.encode(image):
            file.write(bytes(packet))
    return len(file.getvalue())


if __name__ == "__main__":
    main()
