"""Video files: writing, reading to a model's size, and two videos side by side."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import av
import imageio.v3 as iio
import numpy as np
from av.error import FFmpegError
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError

from tt_jax.files import atomic
from tt_jax.models.configs import FPS

SMALLEST = 256  # pixels; smaller videos are enlarged in their files, so that one can see them
GROUND = 255  # of side-by-side frames


@dataclasses.dataclass(frozen=True)
class Clip:
    """What was read from a picture or a video.

    frames: resized and centre-cropped, at 16 frames a second. source: height and width of the
    file's own frames. fps: the file's frame rate, None for a picture.
    """

    frames: UInt8[np.ndarray, "t h w 3"]
    source: tuple[int, int]
    fps: float | None


def enlarge(frames: UInt8[np.ndarray, "*t h w 3"]) -> UInt8[np.ndarray, "*t h2 w2 3"]:
    """Each pixel repeated so that the shorter side has at least 256."""
    factor = -(-SMALLEST // min(frames.shape[-3:-1]))
    return frames.repeat(factor, axis=-3).repeat(factor, axis=-2)


def write(path: Path | str, frames: UInt8[np.ndarray, "t h w 3"], fps: int = FPS) -> None:
    """Writes an mp4 file (H.264, yuv420p: plays in browsers), whole or not at all.

    Videos with a side under 256 pixels are enlarged by a whole factor, odd sides lose a pixel.
    Raises OSError when the file can't be written.
    """
    frames = enlarge(frames)
    height, width = (side - side % 2 for side in frames.shape[1:3])
    with atomic(Path(path)) as aside, iio.imopen(aside, "w", plugin="pyav") as file:
        file.init_video_stream("libx264", fps=fps, pixel_format="yuv420p")
        for frame in frames[:, :height, :width]:
            file.write_frame(frame)


def read(path: Path | str, size: tuple[int, int], limit: int) -> Clip:
    """Reads a picture (as one frame), or the first `limit` frames of a video, brought to 16 fps.

    Frames are resized to cover `size` (height, width) and cropped around their centre. Raises
    FileNotFoundError, or ValueError for a file that is neither picture nor video.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}.")
    try:
        picture = _picture(path)
        if picture is not None:
            return Clip(_fit(picture, size)[None], (picture.height, picture.width), None)
        return _video(path, size, limit)
    except (OSError, ValueError, FFmpegError, Image.DecompressionBombError):
        raise ValueError(f"{path} is neither a picture nor a video.") from None


def _picture(path: Path) -> Image.Image | None:
    """The picture in a file, upright; None if it holds none, or several."""
    try:
        with Image.open(path) as image:
            if getattr(image, "n_frames", 1) > 1:
                return None
            return ImageOps.exif_transpose(image).convert("RGB")
    except UnidentifiedImageError:
        return None


def _fit(image: Image.Image, size: tuple[int, int]) -> UInt8[np.ndarray, "h w 3"]:
    return np.asarray(ImageOps.fit(image, (size[1], size[0]), Image.Resampling.LANCZOS))


def _video(path: Path, size: tuple[int, int], limit: int) -> Clip:
    with av.open(path) as file:
        if not file.streams.video:
            raise ValueError("no video stream")
        stream = file.streams.video[0]
        fps = float(stream.average_rate or FPS)
        frames = []
        for frame in _at(file.decode(stream), fps):
            frames.append(_fit(frame.to_image(), size))
            if len(frames) == limit:
                break
        if not frames:
            raise ValueError("no frame")
        return Clip(np.stack(frames), (stream.height, stream.width), fps)


def _at(frames: Iterator[av.VideoFrame], fps: float) -> Iterator[av.VideoFrame]:
    """The frames that are shown at each sixteenth of a second."""
    shown = 0
    for index, frame in enumerate(frames):
        while shown * fps < (index + 1) * FPS:
            yield frame
            shown += 1


def side_by_side(
    left: UInt8[np.ndarray, "t h w 3"],
    right: UInt8[np.ndarray, "t h w 3"],
    labels: tuple[str, str],
) -> UInt8[np.ndarray, "t h2 w2 3"]:
    """Two videos of one size in one, each under its label; enlarged as `write` does."""
    left, right = enlarge(left), enlarge(right)
    height, width = left.shape[1:3]
    text = max(14, height // 24)
    gap, band = text // 2, 2 * text
    frame = Image.new("RGB", (2 * width + gap, height + band), (GROUND,) * 3)
    draw, font = ImageDraw.Draw(frame), ImageFont.load_default(text)
    for i, label in enumerate(labels):
        at = (i * (width + gap) + width / 2, band / 2)
        draw.text(at, label, fill=(30, 30, 30), font=font, anchor="mm")
    out = np.repeat(np.asarray(frame)[None], len(left), axis=0)
    out[:, band:, :width] = left
    out[:, band:, width + gap :] = right
    return out
