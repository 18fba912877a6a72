"""A video on disk while it is made: it can be read, copied and added to at any time."""

import itertools
import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from jaxtyping import UInt8

from tt_jax.media.write import converted, settle
from tt_jax.models.configs import FPS

# No frame waits in the encoder for others, so that the file always holds all of them.
AT_ONCE = {"tune": "zerolatency", "preset": "veryfast", "crf": "18", "threads": "1"}
KEY_EVERY = 3 * FPS  # frames from one that stands alone to the next, to which players can jump


class Recording:
    """An H.264 stream without a container, frame by frame.

    Attributes:
        frames: how many it has.
    """

    def __init__(self, path: Path, like: "Recording | None" = None) -> None:
        """Begins a file.

        Args:
            path: the file, which doesn't exist yet.
            like: another one whose frames so far are this one's first.
        """
        self.frames = 0
        self._path = path
        self._encoder: av.VideoCodecContext | None = None
        self._reformatter = VideoReformatter()
        if like is None:
            path.touch()
        else:
            shutil.copyfile(like._path, path)
            self.frames = like.frames

    def add(self, frames: UInt8[np.ndarray, "t h w 3"]) -> None:
        """Appends frames.

        Args:
            frames: of one size, always the same.

        Raises:
            OSError: the disk is full.
        """
        if self._encoder is None:
            self._encoder = av.VideoCodecContext.create("libx264", "w")
            settle(self._encoder, *frames.shape[1:3])
            self._encoder.time_base, self._encoder.framerate = Fraction(1, FPS), Fraction(FPS)
            self._encoder.gop_size, self._encoder.options = KEY_EVERY, AT_ONCE
        made = bytearray()
        for number, frame in enumerate(frames, self.frames):
            image = converted(self._encoder, frame, self._reformatter)
            image.pts = number
            for packet in self._encoder.encode(image):
                made += bytes(packet)
        with self._path.open("ab") as file:
            file.write(made)
        self.frames += len(frames)  # now, so that nobody reads what is half written

    def finish(self) -> None:
        """Lets go of the encoder; no frame comes any more."""
        self._encoder = None

    def remove(self) -> None:
        """Deletes the file."""
        self._path.unlink(missing_ok=True)

    def save(self, path: Path) -> None:
        """Writes what is there as mp4, without encoding again.

        Args:
            path: the file.

        Raises:
            ValueError: there is no frame yet.
        """
        frames = self.frames
        if not frames:
            raise ValueError("there is no frame to save yet.")
        options: Any = {"movflags": "+faststart"}
        with (
            av.open(self._path, format="h264") as file,
            av.open(path, "w", format="mp4", options=options) as target,
        ):
            source = file.streams.video[0]
            stream = target.add_stream_from_template(source)
            packets = (packet for packet in file.demux(source) if packet.size)
            for number, packet in enumerate(itertools.islice(packets, frames)):
                packet.stream, packet.time_base = stream, Fraction(1, FPS)
                packet.pts = packet.dts = number
                packet.duration = 1
                target.mux(packet)
