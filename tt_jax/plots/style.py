"""What all pictures share: colours, and how they are written."""

import warnings
from pathlib import Path

from matplotlib.figure import Figure

from tt_jax.files import atomic

INK, FAINT = "#333333", "#9A9A9A"


def save(figure: Figure, path: Path | str) -> None:
    """Writes a picture, whole or not at all; the suffix decides on the format."""
    with atomic(Path(path)) as aside, warnings.catch_warnings():
        # A prompt may be in any script; matplotlib's font draws a box for what it lacks.
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        figure.savefig(aside)
