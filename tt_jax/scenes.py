"""A video's script: which prompt it has from which second on.

In one line of text, `a cat [10s] | a dog [5s#] | a bird`; in a file, `SECONDS PROMPT` line by line;
in Python, `[(0, "a cat"), (10, "a dog")]`.
"""

import math
import re
from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from tt_jax._rollout import Strategy
from tt_jax.strategies.switch import way

_LENGTH = r"\[\s*(\d+(?:\.\d+)?|\.\d+)\s*s\s*(#?)\s*\]\s*"
_ENDING = re.compile(_LENGTH + "$")
_ENDINGS = re.compile(_LENGTH + r"(\||$)")
_LINE = re.compile(r"(\d+(?:\.\d+)?|\.\d+)(#?)\s+(.+)")


class Scene(NamedTuple):
    """A prompt and how long it lasts.

    Attributes:
        prompt: what the scene shows.
        seconds: its length; None for the last scene, to the video's end.
        cut: whether it begins with a cut instead of going on from the scene before.
    """

    prompt: str
    seconds: float | None = None
    cut: bool = False


class Change(NamedTuple):
    """A prompt from a second of the video on.

    Attributes:
        seconds: from the video's beginning.
        prompt: what `Pipeline.stream` takes as one.
        how: what becomes of the cache, one of `strategies.switch.switches`; the cache policy's own
            way if None.
        words: of each sample, for records and pictures; the prompt itself where it is text.
    """

    seconds: float
    prompt: Any
    how: str | None = None
    words: tuple[str, ...] = ()


Changes = tuple[Change, ...]


def parse_scenes(text: str) -> tuple[Scene, ...]:
    """The scenes of a text.

    Scenes stand between bars. A scene ends with its length in brackets, `[10s]`, which the last may
    leave out; with `#`, `[10s#]`, it begins with a cut. (As Infinity-RoPE's documentation has it,
    arXiv 2511.20649; its code cuts at the end of the scene that has the mark.)

    Args:
        text: the line.

    Returns:
        At least one scene.

    Raises:
        ValueError: a scene is empty, has no length where others follow, or lasts no time; or the
            first begins with a cut.
    """
    parts = text.split("|")
    scenes = []
    for number, part in enumerate(parts, 1):
        ending = _ENDING.search(part)
        prompt = (part[: ending.start()] if ending else part).strip()
        seconds = float(ending[1]) if ending else None
        if not prompt:
            raise ValueError(f"scene {number} is empty: say what it should show.")
        if seconds is None and number < len(parts):
            raise ValueError(f'scene {number} needs its length, like "{prompt} [10s]".')
        if seconds == 0:
            raise ValueError(f"scene {number} must last more than 0 seconds.")
        cut = bool(ending and ending[2])
        if cut and number == 1:
            raise ValueError("the first scene has nothing to cut from: leave # out.")
        scenes.append(Scene(prompt, seconds, cut))
    return tuple(scenes)


def read_script(prompt: Any) -> tuple[Changes, float | None]:
    """What a request's prompt says.

    Args:
        prompt: a text, which is taken for scenes if a length like `[10s]` ends it or stands before
            a bar; a sequence of `Change` or its values, `(seconds, prompt)` say; else any prompt.

    Returns:
        The changes, the first at 0 seconds, and how long the video is if its scenes say so.

    Raises:
        ValueError: a scene can't be, as in `parse_scenes`, or a script, as in `check_script`.
    """
    if isinstance(prompt, str) and _ENDINGS.search(prompt):
        scenes = parse_scenes(prompt)
        lengths = [scene.seconds for scene in scenes if scene.seconds is not None]
        starts = accumulate(lengths, initial=0.0)
        script = tuple(
            Change(start, scene.prompt, "cut" if scene.cut else None)
            for start, scene in zip(starts, scenes, strict=False)
        )
        return script, sum(lengths) if len(lengths) == len(scenes) else None
    pairs = isinstance(prompt, Sequence) and not isinstance(prompt, str)
    if pairs and prompt and isinstance(prompt[0], tuple | list):
        for entry in prompt:
            if not isinstance(entry, tuple | list) or not 2 <= len(entry) <= len(Change._fields):
                raise ValueError(f"a script is of pairs like (10, 'a dog'), not {entry!r}.")
        entries: Any = prompt
        script = tuple(Change(*entry) for entry in entries)
        check_script(script)
        return script, None
    return (Change(0.0, prompt),), None


def check_script(script: Changes) -> None:
    """Looks at the times of a script.

    Args:
        script: at least one change.

    Raises:
        ValueError: the first isn't at 0 seconds, or one isn't later than the one before.
    """
    for change in script:
        if isinstance(change.seconds, bool) or not isinstance(change.seconds, int | float):
            raise ValueError(f"a script's times are seconds, not {change.seconds!r}.")
        if not math.isfinite(change.seconds):
            raise ValueError(f"a script's times must be finite, not {change.seconds}.")
    if script[0].seconds != 0:
        raise ValueError(f"a script begins at 0 seconds, not at {script[0].seconds:g}.")
    for before, after in pairwise(script):
        if after.seconds <= before.seconds:
            raise ValueError(
                f"a script's times must increase: {after.seconds:g} comes after {before.seconds:g}."
            )


def read_file(path: Path) -> Changes:
    """A script from a text file.

    A line is `SECONDS PROMPT`, the seconds those at which the prompt begins: `0 a cat`, then
    `10 a dog`; with `#` behind them, `10# a dog`, by a cut. Empty lines count for nothing.

    Args:
        path: of the file, UTF-8.

    Returns:
        The changes, the first at 0 seconds.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is something else, or the times can't be, as in `check_script`.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (FileNotFoundError, IsADirectoryError):
        raise FileNotFoundError(f"there is no file {path}.") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} isn't a text file in UTF-8.") from None
    script = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        found = _LINE.fullmatch(line.strip())
        if found is None:
            raise ValueError(
                f"line {number} of {path} must be SECONDS PROMPT, like '10 a dog', not "
                f"{line.strip()!r}."
            )
        script.append(Change(float(found[1]), found[3], "cut" if found[2] else None))
    if not script:
        raise ValueError(f"{path} is empty: give it lines like '0 a cat' and '10 a dog'.")
    if script[0].how:
        raise ValueError(f"the first prompt of {path} has nothing to cut from: leave # out.")
    try:
        check_script(tuple(script))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return tuple(script)


def first_chunks(script: Changes, borders: Sequence[float]) -> tuple[int, ...]:
    """Where each prompt begins: at the border between chunks that is nearest to its time.

    Args:
        script: its changes, the first at 0 seconds.
        borders: the seconds at which each chunk begins, and at which the last one ends.

    Returns:
        The number of each prompt's first chunk, from 0; a prompt has at least one.

    Raises:
        ValueError: a prompt would begin behind the last chunk.
    """
    chosen = [0]
    for change in script[1:]:
        behind = range(chosen[-1] + 1, len(borders))
        # Of two borders as near, the earlier.
        place = min(behind, key=lambda i: abs(borders[i] - change.seconds), default=len(borders))
        if place >= len(borders) - 1:
            raise ValueError(
                f"nothing is left of the video for the prompt at {change.seconds:g} seconds: it "
                f"ends at {borders[-1]:g}."
            )
        chosen.append(place)
    return tuple(chosen)


def place_changes(
    script: Changes,
    texts: Sequence[Float[Array, "b l e"]],
    strategy: Strategy,
    borders: Sequence[float],
    continued: bool,
) -> dict[int, tuple[Change, Float[Array, "b l e"]]]:
    """The changes of a stream by their chunks.

    Args:
        script: its changes, the first at 0 seconds.
        texts: the embeddings of each prompt.
        strategy: how chunks are made.
        borders: as in `first_chunks`.
        continued: whether there is a video before.

    Returns:
        By the number of the prompt's first chunk, each change, with how, and its embeddings. The
        first prompt is left out, but where it switches the cache of a continued video.

    Raises:
        ValueError: the strategy can't follow the script, or prompts differ in shape.
    """
    if script[0].how is not None and not continued:
        raise ValueError("the first prompt has no cache to switch: leave how out.")
    if strategy.lag and continued and len(script) > 1:
        raise ValueError(
            f"{type(strategy).__name__} makes the last chunks of a video that it continues again: "
            "give one prompt."
        )
    changes = {}
    places = first_chunks(script, borders)
    for place, change, text in zip(places, script, texts, strict=True):
        if text.shape != texts[0].shape:
            was, now = list(texts[0].shape), list(text.shape)
            raise ValueError(
                f"the prompt at {change.seconds:g} seconds must be {was} like the first, not {now}."
            )
        if place == 0 and change.how is None:
            continue
        words = change.words
        if not words and not isinstance(change.prompt, jax.Array | np.ndarray):
            words = (change.prompt,) if isinstance(change.prompt, str) else tuple(change.prompt)
        how = way(strategy, change.how)
        changes[place] = change._replace(how=how, words=words), text
    return changes
