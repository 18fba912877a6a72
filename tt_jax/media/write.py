"""Video files, written frame by frame, and several videos in a grid."""

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, VideoReformatter
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from tt_jax.files import atomic
from tt_jax.models.configs import FPS

SMALLEST = 256  # pixels; smaller videos are enlarged in their files, so that one can see them
SMALLEST_LABEL = 14  # pixels
GROUND = 255  # of joined frames


def enlarge(frames: UInt8[np.ndarray, "*t h w 3"]) -> UInt8[np.ndarray, "*t h2 w2 3"]:
    """Repeats each pixel so that the shorter side has at least 256.

    Args:
        frames: one frame or several.

    Returns:
        The frames, larger by a whole factor; themselves where they are large enough.
    """
    factor = -(-SMALLEST // min(frames.shape[-3:-1]))
    return frames if factor == 1 else frames.repeat(factor, axis=-3).repeat(factor, axis=-2)


def write_video(
    path: Path | str, frames: Iterable[UInt8[np.ndarray, "h w 3"]], fps: int = FPS
) -> None:
    """Writes an mp4 file, whole or not at all.

    H.264 in yuv420p, which plays in browsers; BT.709, and tagged as such; the index comes first, so
    that a video plays while it is still being fetched.

    Args:
        path: the file, which is replaced if it exists.
        frames: of one size, taken one by one: an array `[frames, height, width, 3]`, or an iterator
            that makes them. Those with a side under 256 pixels are enlarged by a whole factor, odd
            sides lose a pixel.
        fps: frames a second.

    Raises:
        ValueError: there is no frame.
        OSError: the file can't be written.
    """
    with atomic(Path(path)) as aside:
        try:
            _encode(aside, iter(frames), fps)
        except FFmpegError as error:
            raise OSError(error.errno, error.strerror, str(path)) from None


def _encode(path: Path, frames: Iterator[UInt8[np.ndarray, "h w 3"]], fps: int) -> None:
    first = next(frames, None)
    if first is None:
        raise ValueError("there is no frame to write.")
    with av.open(path, "w", format="mp4", options={"movflags": "+faststart"}) as file:
        stream = file.add_stream("libx264", rate=fps)
        stream.pix_fmt = "yuv420p"
        stream.height, stream.width = (side - side % 2 for side in enlarge(first).shape[:2])
        codec = stream.codec_context
        codec.color_range, codec.colorspace = ColorRange.MPEG, Colorspace.ITU709
        codec.color_primaries, codec.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        reformatter, frame = VideoReformatter(), first
        while frame is not None:
            pixels = np.ascontiguousarray(enlarge(frame)[: stream.height, : stream.width])
            # From RGB, whose transfer and primaries are BT.709's as far as players tell.
            picture = reformatter.reformat(
                av.VideoFrame.from_ndarray(pixels, format="rgb24"), format="yuv420p",
                dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG,
            )  # fmt: skip
            picture.color_primaries, picture.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
            file.mux(stream.encode(picture))
            frame = next(frames, None)
        file.mux(stream.encode())


def tile(
    videos: Sequence[Iterable[UInt8[np.ndarray, "h w 3"]]], labels: Sequence[str]
) -> Iterator[UInt8[np.ndarray, "h2 w2 3"]]:
    """Joins videos of one size and length in a grid, each under its label.

    Args:
        videos: the frames of each, taken one by one; up to three stand side by side, more in rows.
        labels: what stands above each; a long one is written smaller.

    Yields:
        Frame by frame, enlarged as `write_video` does.

    Raises:
        ValueError: one has more frames than another.
    """
    ground: np.ndarray | None = None
    corners: list[tuple[int, int]] = []
    for frames in zip(*videos, strict=True):
        large = [enlarge(frame) for frame in frames]
        height, width = large[0].shape[:2]
        if ground is None:
            ground, corners = _labelled(height, width, labels)
        joined = ground.copy()
        for (y, x), frame in zip(corners, large, strict=True):
            joined[y : y + height, x : x + width] = frame
        yield joined


def _labelled(
    height: int, width: int, labels: Sequence[str]
) -> tuple[UInt8[np.ndarray, "h2 w2 3"], list[tuple[int, int]]]:
    """The ground of a grid of frames, gaps between them and a band of labels above each row; and
    where each frame's upper left corner is, (y, x)."""
    text = max(SMALLEST_LABEL, height // 24)
    gap, band = text // 2, 2 * text
    count = len(labels)
    columns = count if count <= 3 else math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    side = columns * width + (columns - 1) * gap
    frame = Image.new("RGB", (side, rows * (height + band)), (GROUND,) * 3)
    draw, corners = ImageDraw.Draw(frame), []
    for i, label in enumerate(labels):
        y, x = i // columns * (height + band), i % columns * (width + gap)
        font = ImageFont.load_default(text)
        length = draw.textlength(label, font)
        if length > width:
            font = ImageFont.load_default(text * width / length)
        at = (x + width / 2, y + band / 2)
        draw.text(at, label, fill=(30, 30, 30), font=font, anchor="mm")
        corners.append((y + band, x))
    return np.array(frame), corners
