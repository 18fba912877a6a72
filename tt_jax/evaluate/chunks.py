"""Measures of a video made chunk by chunk: jumps where chunks meet, returns to the sink."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from jaxtyping import Float, UInt8

from tt_jax.evaluate.measures import FLOW_SIDE, LUMA, block_means, optical_flow

SMALL = 64  # pixels: the shorter side at which frames are compared with those of the sink, at least
BEFORE = 4  # chunks that a fall of the distance to the sink is taken from


def jumps(
    video: UInt8[np.ndarray, "t h w 3"], starts: Sequence[int], fps: float
) -> Float[np.ndarray, " chunks"]:
    """How much the motion jumps where each chunk begins.

    Args:
        video: its frames.
        starts: the frame at which each chunk begins.
        fps: frames a second.

    Returns:
        Mean length of the optical flow onto the chunk's first frame, less the mean of those just
        before and just after, absolute; in per cent of the frame's height a second. NaN for the
        first chunk and where there are no such frames.
    """
    _, flow = optical_flow()

    def small(frame: int) -> Float[np.ndarray, "h w"]:
        luma = video[frame] @ LUMA
        return block_means(luma, max(1, min(luma.shape) // FLOW_SIDE))

    found = np.full(len(starts), np.nan)
    for chunk, start in enumerate(starts):
        if start < 2 or start + 1 >= len(video):
            continue
        frames = [small(start + offset) for offset in (-2, -1, 0, 1)]
        before, onto, after = (flow(a, b) / a.shape[0] for a, b in pairwise(frames))
        found[chunk] = 100 * fps * abs(onto - (before + after) / 2)
    return found


def sink_distances(
    video: UInt8[np.ndarray, "t h w 3"], starts: Sequence[int]
) -> Float[np.ndarray, " chunks"]:
    """How far each chunk is from the video's first, whose frames are the sinks of most policies.

    Args:
        video: its frames.
        starts: the frame at which each chunk begins.

    Returns:
        Root mean square difference, in levels of 255, between a frame and that of the first chunk
        which is nearest to it, mean over the chunk's frames; NaN for a chunk of which none is
        shown, and for the first.
    """
    side = max(1, min(video.shape[1:3]) // SMALL)
    ends = [*starts[1:], len(video)]

    def flat(frame: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, " pixels"]:
        wide = frame.astype(np.float32)
        planes = [block_means(wide[..., colour], side) for colour in range(3)]
        return np.concatenate([plane.ravel() for plane in planes])

    sinks = np.stack([flat(frame) for frame in video[: ends[0]]])
    found = np.full(len(starts), np.nan)
    for chunk in range(1, len(starts)):
        frames = video[starts[chunk] : ends[chunk]]
        if len(frames):
            apart = [np.square(sinks - flat(frame)).mean(axis=1).min() for frame in frames]
            found[chunk] = np.sqrt(apart).mean()
    return found


def sink_collapse(distances: Float[np.ndarray, " chunks"]) -> Float[np.ndarray, " chunks"]:
    """How much each chunk falls back to the video's first (sink collapse; LoL, arXiv 2601.16914).

    Args:
        distances: of each chunk to the first, as `sink_distances` has them.

    Returns:
        The median distance of the four chunks before less the chunk's own, 0 where that is
        negative; NaN where there aren't so many.
    """
    found = np.full(len(distances), np.nan)
    for chunk in range(BEFORE + 1, len(distances)):  # the first has no distance
        fall = np.median(distances[chunk - BEFORE : chunk]) - distances[chunk]
        found[chunk] = max(0.0, fall) if np.isfinite(fall) else np.nan
    return found
