"""A picture that somebody sent, as the frame that a video starts from."""

import io
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from tt_jax.media.read import upright
from tt_jax.serve.protocol import LARGEST_PICTURE, ProtocolError

FORMATS = ("JPEG", "PNG", "WEBP")  # whose decoders read nothing but what they are given
MOST_PIXELS = 40_000_000


def read_picture(data: bytes, size: tuple[int, int]) -> UInt8[np.ndarray, "1 h w 3"]:
    """Decodes, resizes and crops a picture.

    Args:
        data: the file's bytes, from anybody.
        size: height and width that it is resized to cover, and cropped to around the centre.

    Returns:
        One frame.

    Raises:
        ProtocolError: it is no picture, or too large.
    """
    if len(data) > LARGEST_PICTURE:
        raise ProtocolError(f"a picture has at most {LARGEST_PICTURE // 2**20} MB.")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                raise ProtocolError("the picture has too many pixels: make it smaller.")
            whole = upright(image, Path("the picture"))
    except ProtocolError:
        raise
    # Pillow's decoders raise nearly anything at damaged data.
    except Exception:
        raise ProtocolError(
            "this is no picture that can be read: send PNG, JPEG or WebP."
        ) from None
    fitted = ImageOps.fit(whole, (size[1], size[0]), Image.Resampling.LANCZOS)
    return np.asarray(fitted)[None]
