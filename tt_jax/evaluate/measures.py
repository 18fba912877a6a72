"""Measures of a finished video: how much it flickers, drifts from its start, moves, and blurs.

Frames are uint8 RGB. They are taken one by one: besides the last one only sums are kept, so that
memory doesn't grow with the frames. A curve has one value for each whole second of the video; what
lies behind the last whole second counts for `temporal_flickering` alone.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable
from fractions import Fraction
from numbers import Rational
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8, UInt16

from tt_jax.media.read import open_video, read_frames

CELL = 16  # pixels
BINS = 8  # per colour
SHORTEST = 3  # seconds
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
FLOW_SIDE = 120  # pixels: the shorter side that optical flow is computed at, at least
FLOW_CELL = 8  # pixels, of the window that shares one flow without OpenCV

CURVES = ("temporal_flickering", "histogram_drift", "colour_drift", "motion", "sharpness")
# The three ways in which papers take the difference between a curve's start and end.
CONTRASTS = ("first - last 5 s", "|first - last 5 s|", "|first - last 15 %|")

Flow = Callable[[Float[np.ndarray, "h w"], Float[np.ndarray, "h w"]], float]


@dataclasses.dataclass(frozen=True)
class Measures:
    """What was measured of one video.

    Attributes:
        fps: frames a second.
        frames: how many there are.
        temporal_flickering: per cent; 100 for a still. (VBench's: 255 minus the mean absolute
            difference of neighbouring frames, over 255.)
        histogram_drift_end: in [0, 1]; total-variation distance between the colour histogram of a
            second and of the first one, mean over the last three.
        histogram_drift_all: likewise, mean over all.
        colour_drift: distance between the mean RGB, in [0, 1], of the first and the last two
            seconds.
        motion: mean length of the optical flow between neighbouring frames, per cent of the frame's
            height in a second.
        flow: the method behind it, "Farneback" or "Lucas-Kanade".
        sharpness: variance of the Laplacian of the luma, in squared levels of 255.
        curves: by the names in `CURVES`, per second; colour drift to the first two seconds.
    """

    fps: Fraction
    frames: int
    temporal_flickering: float
    histogram_drift_end: float
    histogram_drift_all: float
    colour_drift: float
    motion: float
    flow: str
    sharpness: float
    curves: dict[str, Float[np.ndarray, " seconds"]]

    @property
    def values(self) -> dict[str, float]:
        """Every number about the whole video: the fields above, then each curve's contrasts."""
        names = [*CURVES[:1], "histogram_drift_end", "histogram_drift_all", *CURVES[2:]]
        values = {name: getattr(self, name) for name in names}
        for name, curve in self.curves.items():
            values |= {f"{name}, {kind}": value for kind, value in contrasts(curve).items()}
        return values


def contrasts(curve: Float[np.ndarray, " seconds"]) -> dict[str, float]:
    """Start-end contrasts of a curve.

    In videos under ten seconds the 5 s are half the video, so that start and end don't overlap.

    Args:
        curve: one value a second.

    Returns:
        The difference in each of the conventions of `CONTRASTS`.
    """
    seconds = len(curve)

    def difference(length: float) -> float:
        """Mean over the first `length` seconds minus mean over the last; a second may be cut."""
        inside = np.clip(length - np.arange(seconds), 0, 1)
        return float(inside @ curve - inside[::-1] @ curve) / length

    signed = difference(min(5, seconds / 2))
    return dict(zip(CONTRASTS, (signed, abs(signed), abs(difference(0.15 * seconds))), strict=True))


def measure(
    frames: Iterable[UInt8[np.ndarray, "h w 3"]], fps: Rational | float, name: str = "the video"
) -> Measures:
    """Measures the frames of one video.

    Args:
        frames: uint8 RGB, taken one by one.
        fps: frames a second.
        name: stands in what is raised.

    Returns:
        What was measured.

    Raises:
        ValueError: less than three seconds, less than one frame a second, or frames without one
            whole cell of 16x16 pixels.
    """
    fps = Fraction(fps)
    if fps < 1:
        raise ValueError(f"{name} has fewer than one frame a second.")
    method, flow = optical_flow()
    differences, lengths, sharp = [], [], []
    cells: list[np.ndarray] = []  # per second, sums over its frames
    before: tuple[np.ndarray, np.ndarray] | None = None  # the last frame, and its small luma
    for i, frame in enumerate(frames):
        if min(frame.shape[:2]) < CELL:
            raise ValueError(f"{name} must have at least {CELL}x{CELL} pixels.")
        luma = frame @ LUMA
        small = block_means(luma, max(1, min(luma.shape) // FLOW_SIDE))
        if before is not None:
            # In int16, where nothing wraps around, the sum in integers: exact.
            apart = np.abs(frame.astype(np.int16) - before[0])
            differences.append(float(apart.sum(dtype=np.int64)) / apart.size)
            lengths.append(flow(before[1], small) / small.shape[0])
        before = frame, small
        sharp.append(sharpness(luma))
        if i // fps == len(cells):
            cells.append(np.zeros((frame.shape[0] // CELL, frame.shape[1] // CELL, 3), np.int64))
        cells[-1] += cell_sums(frame)

    seconds = int(len(sharp) // fps)
    if seconds < SHORTEST:
        raise ValueError(f"{name} is shorter than three seconds.")
    second = np.array([i // fps for i in range(len(sharp))], np.int64)
    inside = second < seconds
    second = second[inside]
    counts = np.bincount(second)

    def per_second(of_frame: list[float]) -> Float[np.ndarray, " seconds"]:
        return np.bincount(second, np.array(of_frame)[inside]) / counts

    def of_pairs(values: list[float]) -> list[float]:
        """One for each frame: what it changed; the first frame changed what the second did."""
        return [values[0], *values]

    colours = np.stack(cells[:seconds]) / (counts[:, None, None, None] * CELL**2)
    histograms = np.stack([histogram(c) for c in colours])
    drift = np.abs(histograms - histograms[0]).sum(axis=1) / 2
    mean = colours.mean(axis=(1, 2)) / 255
    start = mean[:2].mean(axis=0)
    curves = {
        "temporal_flickering": 100 * (1 - per_second(of_pairs(differences)) / 255),
        "histogram_drift": drift,
        "colour_drift": np.linalg.norm(mean - start, axis=1),
        "motion": 100 * float(fps) * per_second(of_pairs(lengths)),
        "sharpness": per_second(sharp),
    }
    return Measures(
        fps=fps,
        frames=len(sharp),
        temporal_flickering=100 * (1 - math.fsum(differences) / len(differences) / 255),
        histogram_drift_end=float(drift[-3:].mean()),
        histogram_drift_all=float(drift.mean()),
        colour_drift=float(np.linalg.norm(mean[-2:].mean(axis=0) - start)),
        motion=float(curves["motion"].mean()),
        flow=method,
        sharpness=float(curves["sharpness"].mean()),
        curves=curves,
    )


def cell_sums(frame: UInt8[np.ndarray, "h w 3"]) -> UInt16[np.ndarray, "h//16 w//16 3"]:
    """Sums over whole cells: 16x16 times 255 just fits into uint16.

    Args:
        frame: RGB.

    Returns:
        Each cell's sum, by channel.
    """
    rows, columns = (side // CELL for side in frame.shape[:2])
    part = frame[: rows * CELL, : columns * CELL].reshape(rows, CELL, -1)
    part = part.sum(axis=1, dtype=np.uint16).reshape(rows, columns, CELL, 3)
    return part.sum(axis=2, dtype=np.uint16)


def histogram(colours: Float[np.ndarray, "*cells 3"]) -> Float[np.ndarray, " bins"]:
    """Histogram of colours in 8x8x8 equal bins over [0, 255] in RGB.

    Args:
        colours: the mean of each cell.

    Returns:
        Shares of the cells, 1 in all.
    """
    bins = np.minimum((colours.reshape(-1, 3) * (BINS / 255)).astype(np.int64), BINS - 1)
    return np.bincount(bins @ (BINS**2, BINS, 1), minlength=BINS**3) / len(bins)


def sharpness(luma: Float[np.ndarray, "h w"]) -> float:
    """Variance of the Laplacian (four neighbours; borders left out).

    Args:
        luma: of a frame, 0 to 255.

    Returns:
        The variance in squared levels.
    """
    inner = luma[1:-1, 1:-1]
    around = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:]
    return float(np.var(around - 4 * inner))


def block_means(x: Float[np.ndarray, "h w"], side: int) -> Float[np.ndarray, "h2 w2"]:
    """Means of whole blocks.

    Args:
        x: values of a frame's pixels.
        side: of a block, in pixels.

    Returns:
        One mean for each block; what lies beyond the last whole one is left out.
    """
    rows, columns = (length // side for length in x.shape)
    return x[: rows * side, : columns * side].reshape(rows, side, columns, side).mean(axis=(1, 3))


def optical_flow() -> tuple[str, Flow]:
    """Chooses a method of optical flow.

    Farneback's where OpenCV is installed (the extra "eval"), else Lucas and Kanade's on blocks,
    which misses motion faster than two pixels of the reduced frame.

    Returns:
        The method's name, and a function of two lumas: mean length of the flow, in pixels.
    """
    try:
        import cv2  # pyright: ignore[reportMissingImports]  (an extra of its own)
    except ImportError:
        return "Lucas-Kanade", lucas_kanade

    def farneback(before: np.ndarray, after: np.ndarray) -> float:
        pair = (np.rint(x).astype(np.uint8) for x in (before, after))
        flow = cv2.calcOpticalFlowFarneback(*pair, None, 0.5, 3, 15, 3, 5, 1.2, 0)
        return float(np.hypot(flow[..., 0], flow[..., 1]).mean())

    return "Farneback", farneback


def lucas_kanade(before: Float[np.ndarray, "h w"], after: Float[np.ndarray, "h w"]) -> float:
    """Mean length of the flow that explains each 8x8 block's change best, to first order.

    Args:
        before: luma of a frame, 0 to 255.
        after: luma of the next one.

    Returns:
        The length in pixels.
    """
    middle = (before + after) / 2
    down, right = (np.gradient(middle, axis=axis) for axis in (0, 1))
    change = after - before
    products = (right * right, right * down, down * down, right * change, down * change)
    xx, xy, yy, xt, yt = (block_means(p, FLOW_CELL) for p in products)
    # A squared level for noise: a block without texture has no flow.
    xx, yy = xx + 1, yy + 1
    area = xx * yy - xy * xy
    return float(np.hypot((xy * yt - yy * xt) / area, (xy * xt - xx * yt) / area).mean())


def measure_files(paths: Iterable[Path]) -> list[Measures]:
    """Measures video files that are to be compared, all of one frame rate.

    Frames are taken as players show them: upright, in the colours that the file says, and for as
    long as it says where they don't come evenly (then at the file's mean rate).

    Args:
        paths: the files.

    Returns:
        The measures of each.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file, which is named, is no video, shorter than three seconds, or of another
            frame rate than the first.
    """
    paths = list(paths)
    rates = [open_video(path)[0] for path in paths]
    for path, rate in zip(paths, rates, strict=True):
        if rate != rates[0]:
            raise ValueError(
                f"{path} has {float(rate):g} frames a second, {paths[0]} has {float(rates[0]):g}."
            )
    return [
        measure(read_frames(path), rate, str(path)) for path, rate in zip(paths, rates, strict=True)
    ]
