"""Where arrays and videos lie that were recorded from the originals, too large to commit."""

from pathlib import Path

SHARED = Path(__file__).resolve().parents[2] / "shared"
