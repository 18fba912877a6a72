"""What the commands say on stderr."""

import sys


def say(message: str, code: int = 0) -> int:
    """Writes one line on stderr.

    Args:
        message: line breaks in it become spaces.
        code: the exit code.

    Returns:
        The exit code.
    """
    print(f"tt-jax: {' '.join(message.split())}", file=sys.stderr)
    return code
