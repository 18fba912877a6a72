"""What all pictures share: colours, fonts for any script, and how they are written."""

import re
import unicodedata
import warnings
from pathlib import Path

import matplotlib
from matplotlib import font_manager
from matplotlib.figure import Figure

from tt_jax.files import atomic

INK, FAINT = "#333333", "#9A9A9A"
FAMILY = "sans-serif"  # matplotlib's own font first, which is always there


def drawable(text: str) -> tuple[str, list[str]]:
    """Finds fonts for a text of any script; warns of letters that no installed font has.

    Args:
        text: a prompt, a name.

    Returns:
        The text without those letters, and the families to draw it with, in matplotlib's order of
        fallback.
    """
    families = [FAMILY]
    own = font_manager.findfont(font_manager.FontProperties(family=families))
    missing = {c for c in text if not c.isspace()} - _letters(own)
    if missing:
        # Not matplotlib's others, which are for mathematics and to show that a letter is missing.
        regular = [
            font
            for font in font_manager.fontManager.ttflist
            if font.style == "normal" and not font.fname.startswith(matplotlib.get_data_path())
        ]
        letters = {font.name: _letters(font.fname) for font in regular}
        while missing and letters:
            best = max(letters, key=lambda name: len(letters[name] & missing))
            if not letters[best] & missing:
                break
            families.append(best)
            missing -= letters.pop(best)
    if missing:
        # Joiners and variation selectors are no letters of their own.
        lost = [c for c in dict.fromkeys(text) if c in missing and unicodedata.category(c) != "Cf"]
        if lost:
            said = f"no installed font has {''.join(lost)}: left out of the picture."
            warnings.warn(said, stacklevel=2)
        text = re.sub(" {2,}", " ", "".join(c for c in text if c not in missing)).strip()
    return text, families


def _letters(font: str) -> set[str]:
    """What a font file can draw; nothing for one of pixels, which matplotlib can't scale."""
    try:
        return {chr(code) for code in font_manager.get_font(font).get_charmap()}
    except (RuntimeError, OSError):
        return set()


def save(figure: Figure, path: Path | str) -> None:
    """Writes a picture, whole or not at all.

    Args:
        figure: the picture.
        path: the file, which is replaced; its suffix decides on the format.
    """
    with atomic(Path(path)) as aside:
        figure.savefig(aside)
