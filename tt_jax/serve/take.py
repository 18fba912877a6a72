"""A video as the server keeps it, and its next chunk."""

import dataclasses
import io
import secrets
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from tt_jax.media.write import SMALLEST
from tt_jax.models.configs import FPS
from tt_jax.serve.protocol import Start, Steer, pack
from tt_jax.serve.recording import Recording

# Small frames are seen enlarged: their colours keep their full resolution.
SMALL: dict[str, Any] = {"format": "JPEG", "quality": 92, "subsampling": "4:4:4"}
LARGE: dict[str, Any] = {"format": "JPEG", "quality": 85, "subsampling": "4:2:0"}


@runtime_checkable
class Engine(Protocol):
    """What makes chunks: `engine.Engine`, or something cheaper in tests."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of its videos."""
        ...

    @property
    def offer(self) -> dict[str, Any]:
        """What the page is told, as JSON has it."""
        ...

    def record(self, start: Start) -> dict[str, Any]:
        """What is known of a video from its beginning.

        Args:
            start: how it begins.

        Returns:
            Settings, model, versions and device, as JSON has them.
        """
        ...

    def memory(self) -> int | None:
        """Bytes in use on the device; None where it doesn't say."""
        ...

    def make(
        self,
        start: Start,
        steer: Steer,
        state: Any,
        *,
        changed: bool,
        seed: int | None,
        picture: Any,
    ) -> Any:
        """Makes a video's next chunk.

        Args:
            start: how the video began.
            steer: what holds from here on.
            state: to continue from; None for the first chunk.
            changed: whether the prompt is new.
            seed: of a branch that begins here; None else.
            picture: what the first chunk starts from; None for nothing.

        Returns:
            The chunk, an `engine.Made`.
        """
        ...


def new_name() -> str:
    """A name that nobody can guess."""
    return secrets.token_urlsafe(12)


@dataclasses.dataclass(eq=False)
class Take:
    """A video that is or was made.

    Attributes:
        start: how it began.
        recording: its frames.
        picture: what it started from.
        prompt: of the newest chunk; None before the first.
        state: to continue from; None before the first chunk, and where it was let go.
        seed: of a branch whose first chunk isn't made yet.
        rows: of the record, one for each chunk.
        switches: likewise for each new prompt.
        steering: likewise for each change of TokenTrim's settings.
        branches: likewise for each other seed.
        name: in its address.
    """

    start: Start
    recording: Recording
    picture: UInt8[np.ndarray, "1 h w 3"] | None = None
    prompt: str | None = None
    state: Any = None
    seed: int | None = None
    rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    switches: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    steering: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    branches: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    name: str = dataclasses.field(default_factory=new_name)

    def branch(self, folder: Path, seed: int) -> "Take":
        """A video that has this one's frames so far and goes on with other noise.

        Args:
            folder: of recordings.
            seed: of that noise.

        Returns:
            The other video.
        """
        at = {"chunk": len(self.rows) + 1, "start": self.recording.frames / FPS, "seed": seed}
        name = new_name()
        return dataclasses.replace(
            self,
            recording=Recording(folder / name, like=self.recording),
            seed=seed,
            rows=[*self.rows],
            switches=[*self.switches],
            steering=[*self.steering],
            branches=[*self.branches, at],
            name=name,
        )

    def record(self, engine: Engine) -> dict[str, Any]:
        """Everything that is needed to make it again, and what was measured.

        Args:
            engine: that made it.

        Returns:
            The record, as JSON has it.
        """
        rows = [*self.rows]
        frames = round(rows[-1]["end"] * FPS) if rows else 0
        return {
            **engine.record(self.start),
            "prompt": self.start.prompt,
            "seed": self.start.seed,
            "picture": self.picture is not None,
            "frames": frames,
            "seconds": frames / FPS,
            "fps": FPS,
            "size": list(engine.size),
            "switches": self.switches,
            "steering": self.steering,
            "branches": self.branches,
            "samples": [{"video": f"{self.name}.mp4", "live": rows}],
        }


def advance(engine: Engine, take: Take, steer: Steer) -> bytes:
    """Makes a take's next chunk and keeps it.

    Args:
        engine: makes it.
        take: gets it, as a whole or not at all.
        steer: what holds from here on.

    Returns:
        The message for the page: in its header numbers and a picture's place, then the drift
        (float32) and what was dropped (uint8, of 255) by token, then a JPEG for each frame.

    Raises:
        ValueError: the request can't be.
        NonFiniteError: the chunk's latents aren't finite.
        OSError: it can't be kept.
    """
    changed = take.prompt is not None and steer.prompt != take.prompt
    made = engine.make(
        take.start, steer, take.state, changed=changed, seed=take.seed, picture=take.picture
    )
    first = take.recording.frames
    take.recording.add(made.frames)
    at = {"chunk": len(take.rows) + 1, "start": first / FPS}
    row = {**at, "end": take.recording.frames / FPS, **made.row}
    take.rows.append(row)
    if changed:
        take.switches.append({**at, "prompt": steer.prompt, "how": made.switched})
    lam = steer.lam if steer.trim else None  # None: off
    if not take.steering or take.steering[-1]["lam"] != lam:
        take.steering.append({**at, "lam": lam})
    take.prompt, take.state, take.seed = steer.prompt, made.state, None
    header = {
        "frame": first,
        "grid": list(made.drift.shape),
        "prompt": steer.prompt if changed else None,
        "trim": steer.trim,
        **row,
    }
    drift = made.drift.astype("<f4").tobytes()
    dropped = np.rint(made.dropped * 255).astype(np.uint8).tobytes()
    return pack(header, [drift, dropped, *map(jpeg, made.frames)])


def jpeg(frame: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """A frame as the page draws it.

    JPEGs on a canvas and no H.264 through Media Source: each frame is drawn when it is due, none
    waits in a decoder, frame numbers are exact, and every browser can do it. At 832x480 they are
    two to five times as many bytes (0.2 to 2 MB/s) at a sixth of the work of an encoder that holds
    nothing back; at 64x64 as many: `benchmarks/live_transport.py`.

    Args:
        frame: RGB.

    Returns:
        The file's bytes.
    """
    file = io.BytesIO()
    small = min(frame.shape[:2]) < SMALLEST
    Image.fromarray(frame).save(file, **(SMALL if small else LARGE))
    return file.getvalue()
