"""What a video of the embedded world shows, against what its prompt says, over time."""

import numpy as np
from jaxtyping import Bool, Float, UInt8

from tt_jax.shapes import verdict
from tt_jax.shapes.checker import Measurement
from tt_jax.shapes.language import parse
from tt_jax.shapes.world import BACKGROUNDS, COLOURS, FPS, SIDE

# Our name for each of the checker's errors. `lost` is a share of objects, no distance.
ERRORS = {
    "colour_error": "colour",
    "background_error": "background",
    "shape_error": "shape",
    "size_error": "size",
    "count_error": "count",
    "speed_error": "motion",
    "lost": "lost",
}


def curves(seen: Measurement, prompt: str) -> dict[str, Float[np.ndarray, " seconds"]]:
    """Errors per whole second, as `shapes.verdict.errors` defines them, and `moving`.

    Args:
        seen: what the checker saw.
        prompt: what was asked for.

    Returns:
        Under the names in `ERRORS`: distances of RGB in [0, 1] (colours), shares of objects (shape,
        lost), octaves (size), objects (count), pixels a frame (speed). `moving`: the share of the
        objects said to move of which something moves. NaN where there is nothing to measure.
    """
    found = verdict.errors(seen, prompt)
    values = {name: found[theirs] for name, theirs in ERRORS.items()}
    said = sum(thing.direction not in (None, "still") for thing in parse(prompt).objects)
    seconds = len(seen.background) // FPS
    moving = np.full(seconds, np.nan)
    for second in range(seconds if said else 0):
        part = seen.cut(slice(second * FPS, (second + 1) * FPS))
        moving[second] = min(verdict.moving(part), said) / said
    return values | {"moving": moving}


def object_tokens(
    seen: Measurement, frames: slice, grid: tuple[int, int]
) -> Bool[np.ndarray, "rows columns"]:
    """Tokens that any object's circumscribed circle touches in any of the frames.

    Args:
        seen: what a video's checker measured.
        frames: which of its frames.
        grid: rows and columns of tokens in a frame.

    Returns:
        True for those.
    """
    centre = seen.centre[frames].reshape(-1, 2)
    radius = seen.radius[frames].reshape(-1)
    there = ~np.isnan(radius)
    (y, tall), (x, wide) = (_cells(count) for count in grid)
    right = np.maximum(np.abs(x - centre[there, 0, None]) - wide / 2, 0)[:, None, :]
    down = np.maximum(np.abs(y - centre[there, 1, None]) - tall / 2, 0)[:, :, None]
    return np.any(np.hypot(right, down) < radius[there, None, None], axis=0)


def _cells(count: int) -> tuple[Float[np.ndarray, " count"], float]:
    """Centres and width, in pixels, of `count` cells along a frame's side."""
    width = SIDE / count
    return (np.arange(count) + 0.5) * width, width


def place_error(
    video: UInt8[np.ndarray, "t 64 64 3"],
    prompt: str,
    rows: tuple[int, ...],
    columns: tuple[int, ...],
    grid: tuple[int, int],
) -> Float[np.ndarray, " t"]:
    """How foreign the pixels of some tokens are.

    Args:
        video: its frames.
        prompt: what was asked for.
        rows: of the tokens, from 0.
        columns: of the tokens, from 0.
        grid: rows and columns of a frame's tokens.

    Returns:
        For each frame the mean distance, of RGB in [0, 1], to the nearest colour that the prompt
        allows (its objects', and between its ground's tones).
    """
    tall, wide = (SIDE // count for count in grid)
    place = np.zeros((SIDE, SIDE), bool)
    for row in rows:
        for column in columns:
            place[row * tall : (row + 1) * tall, column * wide : (column + 1) * wide] = True
    pixels = video[:, place].astype(np.float32) / 255
    said = parse(prompt)
    allowed = [COLOURS[thing.colour] for thing in said.objects if thing.colour]
    pure = np.array(allowed, np.float32).reshape(-1, 3) / 255
    off = [np.linalg.norm(pixels - colour, axis=-1) for colour in pure]
    if said.background:
        tones = np.array(BACKGROUNDS[said.background], np.float32) / 255
        off.append(_to_segment(pixels, tones[0], tones[-1]))
    return np.min(off, axis=0).mean(axis=1)


def _to_segment(pixels, start, end):
    """Distance of each pixel to the nearest mixture of two colours."""
    way = end - start
    share = np.clip((pixels - start) @ way / max(float(way @ way), 1e-9), 0, 1)
    return np.linalg.norm(pixels - start - share[..., None] * way, axis=-1)


def recovery(error: Float[np.ndarray, " t"], start: int) -> float:
    """Seconds from frame `start` until the error is back where it was before, for good or not.

    Args:
        error: of each frame.
        start: the frame at which it may have begun to rise.

    Returns:
        The first whole second whose mean is no more than the mean plus two deviations of the whole
        seconds that lie before; 0 if the error never left, what is left of the video if it never
        came back. NaN if less than two seconds lie before, or less than one after.
    """
    before = error[start % FPS : start].reshape(-1, FPS).mean(axis=1)
    if len(before) < 2 or len(error) - start < FPS:
        return np.nan
    limit = before.mean() + 2 * before.std()
    means = np.convolve(error[start:], np.full(FPS, 1 / FPS), mode="valid")
    above = means > limit
    if not above.any():
        return 0.0
    left = int(np.argmax(above))
    back = np.flatnonzero(~above[left:])
    return float(left + back[0] if len(back) else len(error) - start) / FPS


def precision_recall(
    dropped: Bool[np.ndarray, "chunks tokens"], planted: Bool[np.ndarray, " tokens"]
) -> tuple[float, float]:
    """Of the tokens dropped in any of the chunks, the share that was planted; and the reverse.

    Args:
        dropped: by chunk and token.
        planted: by token.

    Returns:
        Precision, NaN where nothing was dropped, and recall.
    """
    ever = dropped.any(axis=0)
    both = (ever & planted).sum()
    return (float(both / ever.sum()) if ever.any() else np.nan), float(both / planted.sum())
