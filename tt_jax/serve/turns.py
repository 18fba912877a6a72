"""Whose turn it is: a device makes one video at a time, everybody else stands in line."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager


class Turns:
    """A line of visitors; the first of them has the device."""

    def __init__(self) -> None:
        self._line: list[asyncio.Event] = []

    @property
    def waiting(self) -> int:
        """How many stand behind the first."""
        return max(0, len(self._line) - 1)

    @asynccontextmanager
    async def turn(self, tell: Callable[[int, int], Awaitable[None]]) -> AsyncIterator[None]:
        """Waits for one's turn and has it until the block ends, however it ends.

        Args:
            tell: is awaited with one's place among those who wait, from 1, and their number, at the
                beginning and whenever either changes; never for who needn't wait.
        """
        changed = asyncio.Event()
        self._line.append(changed)
        self._wake()
        try:
            told = None
            while True:
                changed.clear()  # before looking: what changes while we tell isn't missed
                standing = self._line.index(changed), self.waiting
                if standing[0] == 0:
                    break
                if standing != told:
                    told = standing
                    await tell(*standing)
                await changed.wait()
            yield
        finally:
            self._line.remove(changed)
            self._wake()

    def _wake(self) -> None:
        for changed in self._line:
            changed.set()
