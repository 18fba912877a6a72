"""What page and server tell each other over the WebSocket: pure parsing and packing.

The page sends short JSON texts, one `Message` each, and a picture to start from as bytes. The
server sends JSON texts too, and each chunk as bytes: the length of a JSON header as 4 bytes,
little-endian, the header, padded with spaces to a multiple of 4, and the parts whose lengths it
gives in `parts`.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

LONGEST_PROMPT = 2000  # characters
LONGEST_TEXT = 16_384  # bytes of a message: such a prompt in any script, escaped or not
LARGEST_PICTURE = 8 * 2**20  # bytes
LARGEST_LAM = 100.0
LARGEST_SEED = 2**64 - 1


class ProtocolError(ValueError):
    """A message that isn't one; the sentence may be shown to who sent it."""


@dataclasses.dataclass(frozen=True)
class Steer:
    """What holds from the next chunk on.

    Attributes:
        prompt: what is to be seen.
        trim: whether TokenTrim intervenes.
        lam: deviations above the mean at which it does.
        switch: what becomes of the cache where the prompt is another one.
    """

    prompt: str
    trim: bool
    lam: float
    switch: str


@dataclasses.dataclass(frozen=True)
class Start(Steer):
    """A new video.

    Attributes:
        seed: of all noise.
        p: TokenTrim's share of unstable tokens, which stays.
        cache: name of the cache policy.
        picture: whether it starts from the picture that was sent.
    """

    seed: int
    p: float
    cache: str
    picture: bool


@dataclasses.dataclass(frozen=True)
class Branch:
    """The same video from its newest chunk on, with noise of another seed."""

    seed: int


@dataclasses.dataclass(frozen=True)
class Stop:
    """No further chunk."""


@dataclasses.dataclass(frozen=True)
class Shown:
    """How many of the video's frames the page has shown."""

    frames: int


Message = Start | Steer | Branch | Stop | Shown
KINDS: dict[str, type[Message]] = {
    "start": Start, "steer": Steer, "branch": Branch, "stop": Stop, "shown": Shown,
}  # fmt: skip


def parse(text: str) -> Message:
    """Reads a text from the page.

    Args:
        text: as it came, from anybody.

    Returns:
        The message.

    Raises:
        ProtocolError: it isn't one.
    """
    # Each character is at least a byte: nothing much longer is even encoded.
    if len(text) > LONGEST_TEXT or len(text.encode(errors="replace")) > LONGEST_TEXT:
        raise ProtocolError(f"a message has at most {LONGEST_TEXT} bytes.")
    try:
        given = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise ProtocolError("a message must be JSON.") from None
    if not isinstance(given, dict) or not isinstance(given.get("type"), str):
        raise ProtocolError("a message must be an object with a type.")
    name = given.pop("type")
    if name not in KINDS:
        raise ProtocolError(f"a message is one of {', '.join(KINDS)}.")
    kind = KINDS[name]
    wanted = [field.name for field in dataclasses.fields(kind)]
    if set(given) != set(wanted):
        raise ProtocolError(f"{name} needs {', '.join(wanted) or 'nothing else'}, exactly.")
    return kind(**{field: FIELDS[field](field, given[field]) for field in wanted})


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def _prompt(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ProtocolError("the prompt is empty: say what the video should show.")
    if len(value) > LONGEST_PROMPT:
        raise ProtocolError(f"a prompt has at most {LONGEST_PROMPT} characters.")
    if any("\ud800" <= letter <= "\udfff" for letter in value):  # JSON can say it
        raise ProtocolError("the prompt isn't Unicode text.")
    return value.strip()


def _truth(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ProtocolError(f"{name} is true or false.")
    return value


def _number(least: float, most: float) -> Callable[[str, Any], float]:
    def check(name: str, value: Any) -> float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not least <= value <= most or not math.isfinite(value):
            raise ProtocolError(f"{name} is a number from {least:g} to {most:g}.")
        return float(value)

    return check


def _whole(most: int) -> Callable[[str, Any], int]:
    def check(name: str, value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
            raise ProtocolError(f"{name} is a whole number from 0 to {most}.")
        return value

    return check


def _name(name: str, value: Any) -> str:
    if not isinstance(value, str) or len(value) > LONGEST_PROMPT:
        raise ProtocolError(f"{name} is a name.")
    return value


FIELDS: dict[str, Callable[[str, Any], Any]] = {
    "prompt": _prompt,
    "trim": _truth,
    "lam": _number(0, LARGEST_LAM),
    "switch": _name,
    "seed": _whole(LARGEST_SEED),
    "p": _number(0, 1),
    "cache": _name,
    "picture": _truth,
    "frames": _whole(2**53),  # the largest that a page can count to
}


def pack(header: Mapping[str, Any], parts: Sequence[bytes]) -> bytes:
    """A chunk as the page takes it.

    Args:
        header: for JSON; without NaN and infinities.
        parts: what follows it.

    Returns:
        One binary message.
    """
    full = {**header, "parts": [len(part) for part in parts]}
    text = json.dumps(full, allow_nan=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)  # so that a part of float32 that comes first is aligned
    return b"".join([len(text).to_bytes(4, "little"), text, *parts])
