"""Video files, written frame by frame, and several videos in a grid."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import OutputContainer
from av.error import FFmpegError
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, VideoReformatter
from av.video.stream import VideoStream
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
    factor = _factor(*frames.shape[-3:-1])
    return frames if factor == 1 else frames.repeat(factor, axis=-3).repeat(factor, axis=-2)


def _factor(height: int, width: int) -> int:
    return -(-SMALLEST // min(height, width))


class Writer:
    """An H.264 file that grows frame by frame; playable once it is closed.

    H.264 in yuv420p, which plays in browsers; BT.709, and tagged as such; the index comes first, so
    that a video plays while it is still being fetched. As a context manager it is closed at the
    end, and after an error too.

    Args:
        path: the file, written as it stands: see `files.atomic` for a name until it is whole.
        fps: frames a second.
        lossless: keep every bit, for frames that are read again (`read.read_frames`); the file
            isn't meant for players.
    """

    def __init__(self, path: Path, fps: int = FPS, *, lossless: bool = False) -> None:
        self.path, self.fps, self.lossless = path, fps, lossless
        self.count = 0
        self._file: OutputContainer | None = None

    def add(self, frames: Iterable[UInt8[np.ndarray, "h w 3"]]) -> None:
        """Writes what comes next.

        Args:
            frames: of one size, taken one by one. Those with a side under 256 pixels are enlarged
                by a whole factor, odd sides lose a pixel.

        Raises:
            OSError: the file can't be written.
        """
        with _told(self.path):
            for frame in frames:
                if self._file is None:
                    self._open(frame.shape[0], frame.shape[1])
                self._encode(frame)
                self.count += 1

    def close(self) -> None:
        """Makes the file whole.

        Raises:
            OSError: the file can't be written.
        """
        file, self._file = self._file, None
        if file is None:
            return
        with _told(self.path):
            try:
                file.mux(self._stream.encode())
            finally:
                file.close()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _open(self, height: int, width: int) -> None:
        self._file = av.open(self.path, "w", format="mp4", options={"movflags": "+faststart"})
        if self.lossless:
            self._stream = self._file.add_stream("libx264rgb", rate=self.fps)
            self._stream.options = {"qp": "0", "preset": "ultrafast"}
            self._stream.pix_fmt = "rgb24"
            self._stream.height, self._stream.width = height, width
            return
        self._stream = self._file.add_stream("libx264", rate=self.fps)
        settle(self._stream.codec_context, height, width)
        self._reformatter = VideoReformatter()

    def _encode(self, frame: UInt8[np.ndarray, "h w 3"]) -> None:
        stream = self._stream
        if self.lossless:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        else:
            picture = converted(stream.codec_context, frame, self._reformatter)
        assert self._file is not None  # opened by the first frame
        self._file.mux(stream.encode(picture))


def settle(codec: av.VideoCodecContext, height: int, width: int) -> None:
    """Tells an H.264 encoder, before it begins, what players expect.

    Args:
        codec: the encoder.
        height: of the frames to come, before they are enlarged.
        width: likewise.
    """
    factor = _factor(height, width)
    codec.pix_fmt = "yuv420p"
    codec.height, codec.width = (factor * side - factor * side % 2 for side in (height, width))
    codec.color_range, codec.colorspace = ColorRange.MPEG, Colorspace.ITU709
    codec.color_primaries, codec.color_trc = ColorPrimaries.BT709, ColorTrc.BT709


def converted(
    codec: av.VideoCodecContext, frame: UInt8[np.ndarray, "h w 3"], reformatter: VideoReformatter
) -> av.VideoFrame:
    """A frame as an encoder that is settled takes it.

    Args:
        codec: the encoder.
        frame: of the size that it was settled for.
        reformatter: kept from frame to frame, which saves time.

    Returns:
        The frame, enlarged, in the encoder's colours.
    """
    pixels = np.ascontiguousarray(enlarge(frame)[: codec.height, : codec.width])
    # From RGB, whose transfer and primaries are BT.709's as far as players tell.
    picture = reformatter.reformat(
        av.VideoFrame.from_ndarray(pixels, format="rgb24"), format="yuv420p",
        dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG,
    )  # fmt: skip
    picture.color_primaries, picture.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
    return picture


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """FFmpeg's complaints as Python's."""
    try:
        yield
    except FFmpegError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def write_video(
    path: Path | str, frames: Iterable[UInt8[np.ndarray, "h w 3"]], fps: int = FPS
) -> None:
    """Writes an mp4 file as `Writer` does, whole or not at all.

    Args:
        path: the file, which is replaced if it exists.
        frames: of one size, taken one by one: an array `[frames, height, width, 3]`, or an iterator
            that makes them.
        fps: frames a second.

    Raises:
        ValueError: there is no frame.
        OSError: the file can't be written.
    """
    with atomic(Path(path)) as aside:
        with Writer(aside, fps) as writer:
            writer.add(frames)
        if not writer.count:
            raise ValueError("there is no frame to write.")


def partial(path: Path) -> Path:
    """Where the finished part of a video is kept that was never finished.

    Args:
        path: of the whole video.

    Returns:
        `NAME.partial.mp4` beside it.
    """
    return path.with_name(f"{path.stem}.partial{path.suffix}")


@contextmanager
def growing(
    paths: Sequence[Path], fps: int = FPS
) -> Iterator[Callable[[UInt8[np.ndarray, "b t h w 3"]], None]]:
    """Videos of a batch that are written while they are made.

    They appear under their names when all is done; after an exception, an interrupt included, what
    was finished is `partial(path)`, playable.

    Args:
        paths: of each sample; what is there is replaced.
        fps: frames a second.

    Yields:
        A function that takes the next frames of all samples.

    Raises:
        OSError: a file can't be written.
    """
    with ExitStack() as stack:
        asides = [stack.enter_context(atomic(path, kept=partial(path))) for path in paths]
        writers = [stack.enter_context(Writer(aside, fps)) for aside in asides]

        def add(frames: UInt8[np.ndarray, "b t h w 3"]) -> None:
            for writer, own in zip(writers, frames, strict=True):
                writer.add(own)

        yield add


def join(segments: Sequence[Path], path: Path) -> None:
    """Joins files of `Writer`'s one after the other, without encoding them again.

    Args:
        segments: of one size and rate.
        path: the video, written as it stands.

    Raises:
        OSError: a file can't be read or written.
    """
    with _told(path), av.open(path, "w", format="mp4", options={"movflags": "+faststart"}) as file:
        stream: VideoStream | None = None
        passed = 0
        for segment in segments:
            with av.open(segment) as part:
                source = part.streams.video[0]
                if stream is None:
                    stream = file.add_stream_from_template(source)
                for packet in part.demux(source):
                    if packet.dts is None or packet.pts is None:  # what ends the demuxer's
                        continue
                    packet.dts, packet.pts = packet.dts + passed, packet.pts + passed
                    packet.stream = stream
                    file.mux(packet)
                passed += source.duration or 0


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
