"""VBench (arXiv 2311.17982): videos laid out as it reads them, and its scores' aggregation."""

import dataclasses
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from tt_jax.files import atomic
from tt_jax.media.read import open_video
from tt_jax.records import save

Mode = Literal["standard", "custom"]

# (worst, best) score of each dimension, as published with VBench's leaderboard.
QUALITY = {
    "subject_consistency": (0.1462, 1.0),
    "background_consistency": (0.2615, 1.0),
    "temporal_flickering": (0.6293, 1.0),
    "motion_smoothness": (0.706, 0.9975),
    "dynamic_degree": (0.0, 1.0),
    "aesthetic_quality": (0.0, 1.0),
    "imaging_quality": (0.0, 1.0),
}
SEMANTIC = {
    "object_class": (0.0, 1.0),
    "multiple_objects": (0.0, 1.0),
    "human_action": (0.0, 1.0),
    "color": (0.0, 1.0),
    "spatial_relationship": (0.0, 1.0),
    "scene": (0.0, 0.8222),
    "appearance_style": (0.0009, 0.2855),
    "temporal_style": (0.0, 0.364),
    "overall_consistency": (0.0, 0.364),
}
WEIGHTS = {"dynamic_degree": 0.5}  # of all others: 1
QUALITY_WEIGHT = 4  # of the semantic score: 1

# What VBench-Long documents for videos of one's own.
CUSTOM = (
    "subject_consistency",
    "background_consistency",
    "motion_smoothness",
    "dynamic_degree",
    "aesthetic_quality",
    "imaging_quality",
)
LONG = 5.0  # seconds from which VBench's authors use VBench-Long
NAME = 180  # bytes of a longer prompt that its file's name keeps


@dataclasses.dataclass(frozen=True)
class Score:
    """VBench's aggregates, 1 at best.

    Attributes:
        quality: weighted mean of the normalised scores of `QUALITY`.
        semantic: mean of those of `SEMANTIC`.
        total: (4 quality + semantic) / 5.
    """

    quality: float
    semantic: float
    total: float


def aggregate(scores: Mapping[str, float]) -> Score:
    """Aggregates the scores of all 16 dimensions.

    Args:
        scores: by dimension, as VBench writes them, in [0, 1] (not in per cent).

    Returns:
        Quality, semantic and total score; total is (4 quality + semantic) / 5. The TokenTrim
        paper's "Final" is another figure: the plain mean of the two, which moreover don't follow
        from its own tables per dimension.

    Raises:
        ValueError: a dimension is missing, unknown, or not in [0, 1].
    """
    known = QUALITY | SEMANTIC
    for names, problem in (
        (known.keys() - scores.keys(), "without a score"),
        (scores.keys() - known.keys(), "unknown to VBench"),
        ({name for name, score in scores.items() if not 0 <= score <= 1}, "not between 0 and 1"),
    ):
        if names:
            raise ValueError(f"VBench dimensions {problem}: {', '.join(sorted(names))}.")
    quality, semantic = (_mean(scores, group) for group in (QUALITY, SEMANTIC))
    total = (QUALITY_WEIGHT * quality + semantic) / (QUALITY_WEIGHT + 1)
    return Score(quality, semantic, total)


def _mean(scores: Mapping[str, float], group: Mapping[str, tuple[float, float]]) -> float:
    """Weighted mean of a group's normalised scores."""
    weights = {name: WEIGHTS.get(name, 1.0) for name in group}
    normalised = {n: (scores[n] - worst) / (best - worst) for n, (worst, best) in group.items()}
    return sum(weights[n] * normalised[n] for n in group) / sum(weights.values())


def names(prompts: Sequence[str], mode: Mode) -> list[str]:
    """File names under which VBench finds videos, `{prompt}-{index}.mp4`.

    In standard mode VBench finds a video by its own prompt's exact words, so that nothing may be
    changed: a video made from an enhanced, longer prompt goes under the original one. In custom
    mode a prompt that is too long is cut, and characters that no file name has become spaces.

    Args:
        prompts: of each video.
        mode: "standard" where prompts are VBench's own, else "custom".

    Returns:
        A name for each video; the index counts equal prompts from 0.

    Raises:
        ValueError: in standard mode, a prompt that can't be a file's name.
    """
    found: list[str] = []
    count: dict[str, int] = {}
    for prompt in prompts:
        stem = prompt
        if mode == "custom":
            stem = re.sub(r"[/\\\x00-\x1f]", " ", prompt)
            if len(stem.encode()) > NAME:
                stem = stem.encode()[:NAME].decode(errors="ignore").rstrip()
        elif "/" in stem or len(stem.encode()) > 240:
            raise ValueError(
                f"{prompt[:60]!r}... can't be a file's name: VBench's standard mode takes its own "
                "original prompts; use custom mode for others."
            )
        index = count.get(stem, 0)
        count[stem] = index + 1
        found.append(f"{stem}-{index}.mp4")
    return found


@dataclasses.dataclass(frozen=True)
class Layout:
    """Videos as VBench reads them.

    Attributes:
        folder: where they go, into its folder `videos`.
        mode: "standard" where prompts are VBench's own, else "custom".
        files: by its name there, each video's file.
        prompts: by the same name, its prompt.
        long: whether VBench-Long is the one to judge them.
    """

    folder: Path
    mode: Mode
    files: dict[str, Path]
    prompts: dict[str, str]
    long: bool

    @property
    def videos(self) -> Path:
        """The folder that VBench gets. It must hold nothing but videos."""
        return self.folder / "videos"

    def write(self) -> None:
        """Copies the videos; in custom mode writes their whole prompts to `prompts.json` too."""
        self.videos.mkdir(parents=True, exist_ok=True)
        for name, source in self.files.items():
            with atomic(self.videos / name) as aside:
                shutil.copyfile(source, aside)
        if self.mode == "custom":
            save(self.folder / "prompts.json", self.prompts)

    @property
    def command(self) -> str:
        """Runs VBench where it is installed; VBench-Long, for 5 s and more, in its checkout."""
        videos = shlex.quote(str(self.videos.absolute()))
        if self.long and self.mode == "standard":
            return f"bash vbench2_beta_long/evaluate_long.sh {videos}"
        if self.long:
            return (
                f"python vbench2_beta_long/eval_long.py --videos_path {videos} "
                f"--dimension {' '.join(CUSTOM)} --mode long_custom_input --dev_flag"
            )
        dimensions, options = (*QUALITY, *SEMANTIC), ""
        if self.mode == "custom":
            prompts = shlex.quote(str((self.folder / "prompts.json").absolute()))
            dimensions, options = CUSTOM, f" --mode=custom_input --prompt_file {prompts}"
        return (
            f"for dimension in {' '.join(dimensions)}; do "
            f"vbench evaluate --videos_path {videos} --dimension $dimension{options}; done"
        )


def layout(videos: Mapping[Path, str], folder: Path, mode: Mode) -> Layout:
    """Plans the layout of video files with their prompts; writes nothing.

    Args:
        videos: the prompt of each file.
        folder: where copies will go; its folder `videos` must not exist.
        mode: "standard" where prompts are VBench's own, else "custom".

    Returns:
        The layout; it names VBench-Long if any video lasts 5 s or more.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file is no video or no mp4, a prompt can't be a name, or the folder already
            holds videos.
    """
    seconds = [open_video(path)[1] for path in videos]
    for path in videos:
        if path.suffix.lower() != ".mp4":
            raise ValueError(f"{path} is no mp4 file.")
    if (folder / "videos").exists():
        raise ValueError(f"{folder / 'videos'} exists already.")
    taken = names(list(videos.values()), mode)
    return Layout(
        folder=folder,
        mode=mode,
        files=dict(zip(taken, videos, strict=True)),
        prompts=dict(zip(taken, videos.values(), strict=True)),
        long=any(length is not None and length >= LONG for length in seconds),
    )
