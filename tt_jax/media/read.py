"""Pictures and videos, read as viewers and players show them: upright, with square pixels, in the
colours that the file says, on white where they are transparent, each frame at its own time."""

import dataclasses
import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition
from av.video.reformatter import Colorspace, ColorTrc, VideoReformatter
from av.video.stream import VideoStream
from jaxtyping import UInt8
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from tt_jax.models.configs import FPS

# Formats of Pillow's whose several pictures are a film's frames; those of others are apart, like a
# camera's preview or the pages of a scan. And films that it takes for pictures.
ANIMATED, FILMS = ("AVIF", "GIF", "PNG", "WEBP"), ("MPEG", "FLI")
# Brands of pictures in FFmpeg's reach, which takes their tiles for films.
HEIF = (b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1", b"avif", b"avis")
HDR = (ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67)
UNSPECIFIED = 2  # AVCOL_SPC_UNSPECIFIED
# Timestamps are rounded to the file's own unit, of a millisecond at most where it matters.
ROUNDED = Fraction(1, 1000)
SLACK = Fraction(11, 10)  # frames


class Frame(NamedTuple):
    """A frame and when it is shown.

    Attributes:
        start: seconds from the first frame's start.
        end: likewise; from then on the next frame is shown.
        image: RGB, upright.
    """

    start: Fraction
    end: Fraction
    image: Image.Image


@dataclasses.dataclass(frozen=True)
class Source:
    """A file of frames.

    Attributes:
        path: the file.
        fps: mean frames a second; None for a picture.
        seconds: how long it lasts, None where the file doesn't say.
        decode: yields the frames; a ValueError, which names the file, says that it is damaged or
            holds what can't be told in eight bits of RGB.
    """

    path: Path
    fps: Fraction | None
    seconds: float | None
    decode: Callable[[], Iterator[Frame]]


@dataclasses.dataclass(frozen=True)
class Clip:
    """What was read from a picture or a video.

    Attributes:
        frames: resized and centre-cropped, at 16 frames a second.
        source: height and width of the file's own frames, upright.
        fps: the file's mean frames a second, None for a picture.
    """

    frames: UInt8[np.ndarray, "t h w 3"]
    source: tuple[int, int]
    fps: float | None


def read_clip(path: Path | str, size: tuple[int, int], limit: int) -> Clip:
    """Reads a picture (as one frame), or the first frames of a video, brought to 16 a second.

    Args:
        path: the file.
        size: height and width that frames are resized to cover, and cropped to around the centre.
        limit: the most frames to read.

    Returns:
        At least one frame, and what the file says of itself.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is neither a picture nor a video, or can't be read; one sentence says why.
    """
    source = open_source(Path(path))
    frames = source.decode()
    shown = frames if source.fps is None else at_16_fps(frames)
    fitted, own = [], (0, 0)
    for frame in shown:
        image, own = frame.image, (frame.image.height, frame.image.width)
        fitted.append(np.asarray(ImageOps.fit(image, (size[1], size[0]), Image.Resampling.LANCZOS)))
        if len(fitted) == limit:
            break
    fps = None if source.fps is None else float(source.fps)
    return Clip(np.stack(fitted), own, fps)


def open_video(path: Path) -> tuple[Fraction, float | None]:
    """Looks at a video without decoding it.

    Args:
        path: the file.

    Returns:
        Its mean rate in frames a second, and its length in seconds where the file says.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no video.
    """
    source = open_source(path)
    if source.fps is None:
        raise ValueError(f"{path} is a picture, not a video.")
    return source.fps, source.seconds


def read_frames(path: Path) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """Reads all frames of a video at its mean rate, one after the other, in the file's own size.

    Where frames come evenly, these are the file's; one is repeated or left out where it would come
    more than 1.1 frames too early or too late (FFmpeg's rule for a constant rate).

    Args:
        path: the file.

    Yields:
        The frames, RGB.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no video, or is damaged.
    """
    fps, _ = open_video(path)
    count, last = 0, None
    for frame in open_source(path).decode():
        if frame.start * fps - count < -SLACK:
            continue
        while last is not None and frame.start * fps - count > SLACK:
            yield np.asarray(last.image)
            count += 1
        yield np.asarray(frame.image)
        count, last = count + 1, frame
    while last is not None and last.end * fps - count > SLACK:
        yield np.asarray(last.image)
        count += 1


def at_16_fps(frames: Iterable[Frame]) -> Iterator[Frame]:
    """The frame that is shown at each sixteenth of a second.

    Args:
        frames: in the order of time.

    Yields:
        A frame for every sixteenth, from the first frame's start to the last one's end.
    """
    count = 0
    for frame in frames:
        while Fraction(count, FPS) + ROUNDED < frame.end:
            yield frame
            count += 1


def open_source(path: Path) -> Source:
    """Finds out what a file holds, from its content alone.

    Args:
        path: the file.

    Returns:
        The picture, animation or video.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is neither a picture nor a video.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}.")
    try:
        with _pictures(path), Image.open(path) as image:
            if image.format in ANIMATED and getattr(image, "n_frames", 1) > 1:
                ends = list(_times(image))
                return Source(
                    path, len(ends) / ends[-1], float(ends[-1]), lambda: _decode_animation(path)
                )
            if image.format not in FILMS:
                return Source(path, None, None, lambda: _decode_picture(path))
    except UnidentifiedImageError:
        pass
    with _open_video(path) as (file, stream):
        seconds = file.duration and file.duration / av.time_base
        return Source(path, _rate(stream), seconds, lambda: _decode_video(path))


# --- pictures -----------------------------------------------------------------------------------


@contextmanager
def _pictures(path: Path) -> Iterator[None]:
    """Says in a sentence what Pillow complains of; not knowing the format is left to the caller."""
    try:
        yield
    except UnidentifiedImageError:
        raise
    except Image.DecompressionBombError:
        raise ValueError(f"{path} has too many pixels: make it smaller.") from None
    except (OSError, SyntaxError, EOFError) as error:
        raise ValueError(f"{path} is damaged: {str(error).rstrip('.')}.") from None


def _decode_picture(path: Path) -> Iterator[Frame]:
    with _pictures(path), Image.open(path) as image:
        yield Frame(Fraction(0), 1 / Fraction(FPS), upright(image, path))


def _decode_animation(path: Path) -> Iterator[Frame]:
    start = Fraction(0)
    with _pictures(path), Image.open(path) as image:
        for end in _times(image):
            yield Frame(start, end, upright(image, path))
            start = end


def _times(image: Any) -> Iterator[Fraction]:
    """Brings up each frame of an animation in turn; yields the second that it ends at."""
    end = Fraction(0)
    # An animated PNG may have a picture before its first frame, for those who know no others.
    for place in range(bool(getattr(image, "default_image", False)), image.n_frames):
        image.seek(place)
        image.load()
        milliseconds = Fraction(image.info.get("duration", 0)).limit_denominator(1000)
        # As browsers do: who asks for no time at all gets a tenth of a second.
        end += (milliseconds if milliseconds > 10 else 100) / Fraction(1000)
        yield end


def upright(image: Image.Image, path: Path) -> Image.Image:
    """A picture as viewers show it.

    Args:
        image: as Pillow opened it.
        path: its file, for what is raised.

    Returns:
        Eight bits of sRGB, turned as its camera says, on white where it is clear.

    Raises:
        ValueError: it holds numbers without a known white.
    """
    profile, png = image.info.get("icc_profile"), image.format == "PNG"
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or (image.mode == "I" and png):
        image = Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
    elif image.mode in ("I", "F"):
        values = np.asarray(image)
        if image.mode == "I" or not ((values >= 0) & (values <= 1)).all():
            raise ValueError(
                f"{path} holds numbers whose white isn't known: save it in 8 or 16 bits a channel."
            )
        image = Image.fromarray(np.rint(values * 255).astype(np.uint8))
    if image.has_transparency_data:
        clear = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear)
        image = image.convert("RGB")
    elif image.mode == "P":
        image = image.convert("RGB")
    if profile:
        try:
            given = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            wanted = ImageCms.createProfile("sRGB")
            converted = ImageCms.profileToProfile(image, given, wanted, outputMode="RGB")
            return image.convert("RGB") if converted is None else converted
        except (ImageCms.PyCMSError, OSError):
            pass  # not a profile, or not of these channels
    return image.convert("RGB")


# --- videos -------------------------------------------------------------------------------------


@contextmanager
def _open_video(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The file and its film. Raises ValueError if there is none."""
    with path.open("rb") as raw:
        start = raw.read(12)
    if start[4:8] == b"ftyp" and start[8:] in HEIF:
        raise ValueError(
            f"{path} is a HEIC or AVIF picture, which can't be read here: save it as PNG or JPEG."
        )
    try:
        file = av.open(path)
    except (OSError, ValueError, FFmpegError):
        raise ValueError(f"{path} is neither a picture nor a video.") from None
    with file:
        stream = file.streams.best("video")
        cover = stream is not None and stream.disposition & Disposition.attached_pic
        # FFmpeg also takes plain text for a video, of a terminal, and believes a picture's suffix.
        other = file.format.name in ("tty", "image2") or file.format.name.endswith("_pipe")
        if not isinstance(stream, VideoStream) or cover or other:
            raise ValueError(f"{path} is neither a picture nor a video.")
        yield file, stream


def _exact(ratio: Any) -> Fraction:
    """A ratio of PyAV's, which from its version 19 on has a class of its own; 0 for None."""
    return Fraction(ratio.numerator, ratio.denominator) if ratio else Fraction(0)


def _rate(stream: VideoStream) -> Fraction:
    return _exact(stream.average_rate or stream.guessed_rate) or Fraction(FPS)


def _decode_video(path: Path) -> Iterator[Frame]:
    with _open_video(path) as (file, stream):
        stream.thread_type = "AUTO"
        rate, convert = _rate(stream), VideoReformatter()
        zero: Fraction | None = None
        start, length, image = Fraction(0), Fraction(0), None
        try:
            for frame in file.decode(stream):
                at = start + (1 / rate if image else 0)  # where the file doesn't say
                unit = _exact(frame.time_base)
                if frame.pts is not None and unit:
                    zero = frame.pts * unit if zero is None else zero
                    at = max(start, frame.pts * unit - zero)
                if image is not None:
                    yield Frame(start, at, image)
                length = (frame.duration or 0) * unit or 1 / rate
                start, image = at, _image(frame, _exact(stream.sample_aspect_ratio), convert, path)
        except FFmpegError as error:
            raise ValueError(f"{path} is damaged: {error.strerror}.") from None
        end = start + length
        said = (stream.duration or 0) * _exact(stream.time_base)
        if image is None or end < said - 2 / rate:
            whole = f", not {float(said):.1f} s" if said else ""
            raise ValueError(f"{path} is damaged: it ends after {float(end):.1f}{whole}.")
        yield Frame(start, end, image)


def _image(
    frame: av.VideoFrame, aspect: Fraction, convert: VideoReformatter, path: Path
) -> Image.Image:
    """A decoded frame as players show it; `aspect` is its pixels' width over their height."""
    if frame.color_trc in HDR:
        raise ValueError(f"{path} has a high dynamic range: convert it to BT.709 first.")
    space = frame.colorspace
    if space == UNSPECIFIED:  # what players take it for
        high = frame.width >= 1280 or frame.height > 576
        space = Colorspace.ITU709 if high else Colorspace.ITU601
    width = max(1, round(frame.width * (aspect or 1)))
    pixels = convert.reformat(frame, width, format="rgb24", src_colorspace=space).to_ndarray()
    return Image.fromarray(_turned(pixels, frame.side_data.get("DISPLAYMATRIX")))


def _turned(pixels: UInt8[np.ndarray, "h w 3"], matrix: Any) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Pixels turned by quarters and mirrored as a display matrix says (ISO/IEC 14496-12)."""
    if matrix is None:
        return pixels
    # A point (x, y) is shown at (a x + c y, b x + d y).
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()
    if abs(b) > abs(a):
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    return np.ascontiguousarray(pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])
