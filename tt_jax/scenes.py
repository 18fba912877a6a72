"""A video's scenes in one line of text: `a cat [10s] | a dog [5s#] | a bird`."""

import re
from collections.abc import Sequence
from typing import NamedTuple

_ENDING = re.compile(r"\[\s*(\d+(?:\.\d+)?|\.\d+)\s*s\s*(#?)\s*\]\s*$")


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


def first_chunks(scenes: Sequence[Scene], chunk_seconds: float) -> tuple[int, ...]:
    """Where each scene begins: at the border between chunks that is nearest to its time.

    Args:
        scenes: all of a video, of known lengths but the last.
        chunk_seconds: how long a chunk lasts (0.75 for Wan's three latent frames at 16 a second).

    Returns:
        The number of each scene's first chunk; a scene has at least one.

    Raises:
        ValueError: a scene before the last has no length.
    """
    starts, passed = [0], 0.0
    for scene in scenes[:-1]:
        if scene.seconds is None:
            raise ValueError(f"the scene {scene.prompt!r} needs its length: others follow.")
        passed += scene.seconds
        starts.append(max(starts[-1] + 1, round(passed / chunk_seconds)))
    return tuple(starts)
