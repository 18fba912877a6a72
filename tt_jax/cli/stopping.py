"""Ctrl-C and SIGTERM, as a spot machine sends it, while a video is made: heeded between chunks."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tt_jax.cli.console import say

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def heeded(begun: Callable[[], bool], clear: Callable[[], None]) -> Iterator[Callable[[], None]]:
    """Takes the process's way of ending, if it has one, to between chunks.

    An exception in the middle of a chunk would be lost, or worse, in XLA's callbacks. A second
    signal ends the process at once, as does the first one before there is anything to keep. Where
    no handler was set, as in a process that does other things too, nothing is changed.

    Args:
        begun: whether there is anything to keep.
        clear: removes what was written, when there isn't.

    Yields:
        A function to call between chunks; it raises KeyboardInterrupt if that was asked for.
    """
    asked = threading.Event()
    set_by_python = signal.getsignal(signal.SIGINT) in (signal.default_int_handler, None)
    if set_by_python or threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return

    def ask(number: int, frame: Any) -> None:
        if not begun():
            clear()
        handler = before[number]
        if (asked.is_set() or not begun()) and callable(handler):
            handler(number, frame)
        asked.set()
        say("stopping after this chunk; once more to stop at once.")

    def check() -> None:
        if asked.is_set():
            raise KeyboardInterrupt

    before: dict[int, Any] = {number: signal.signal(number, ask) for number in SIGNALS}
    try:
        yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
