"""What the commands say on stderr."""

import sys


def say(message: str, code: int = 0) -> int:
    """One line on stderr; returns the exit code."""
    print(f"tt-jax: {' '.join(message.split())}", file=sys.stderr)
    return code
