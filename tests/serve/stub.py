"""An engine without a model, and the page's side of the protocol."""

import json
import time

import numpy as np

from tt_jax.models.configs import FPS
from tt_jax.serve.engine import Made

ORIGIN = {"origin": "http://127.0.0.1:8000", "host": "127.0.0.1:8000"}
START = {
    "type": "start", "prompt": "a cat", "seed": 0, "trim": True, "lam": 2.0, "p": 0.1,
    "switch": "none", "cache": "window", "picture": False,
}  # fmt: skip


class Stub:
    """Makes 12 frames at a time, each of one shade, which tells its number."""

    size = (32, 32)

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds, self.asked = seconds, []

    @property
    def offer(self):
        return {
            "model": "stub", "size": [32, 32], "fps": FPS, "chunk": 12, "caches": ["window"],
            "switches": {"window": ["none", "flush"]}, "shares": [0.1, 0.2], "lam": 2.0,
            "prompt": "",
        }  # fmt: skip

    def record(self, start):
        return {"command": "tt-jax serve"}

    def memory(self):
        return None

    def make(self, start, steer, state, *, changed, seed, picture):
        time.sleep(self.seconds)
        if "unspeakable" in steer.prompt:
            raise ValueError("the prompt can't be.")
        if "crash" in steer.prompt:
            raise RuntimeError("a secret: /etc/passwd")
        self.asked.append((steer, state, changed, seed, None if picture is None else picture.shape))
        number = 0 if state is None else state
        shades = (np.arange(number, number + 12) % 64 * 4).astype(np.uint8)
        frames = np.broadcast_to(shades[:, None, None, None], (12, 32, 32, 3))
        row = {
            "severity": 1.0, "accepted_severity": 1.0, "threshold": 2.0, "triggered": False,
            "kept_fraction": 1.0, "dropped": 0.0,
        }  # fmt: skip
        grid = np.zeros((4, 4), np.float32)
        how = steer.switch if changed else None
        return Made(np.ascontiguousarray(frames), grid, grid, row, how, number + 12)


def unpack(message: bytes):
    """The header and the parts of a chunk, as the page reads them."""
    at = 4 + int.from_bytes(message[:4], "little")
    header, parts = json.loads(message[4:at]), []
    for length in header["parts"]:
        parts.append(message[at : at + length])
        at += length
    assert at == len(message)
    return header, parts
