"""A visitor: what the page asks for, and the loop that makes its video in its turn."""

import asyncio
import dataclasses
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from tt_jax.errors import NonFiniteError
from tt_jax.models.configs import FPS
from tt_jax.serve.metrics import Counts
from tt_jax.serve.picture import read_picture
from tt_jax.serve.protocol import Branch, Message, ProtocolError, Shown, Start, Steer, Stop
from tt_jax.serve.recording import Recording
from tt_jax.serve.take import Engine, Take, advance, new_name
from tt_jax.serve.turns import Turns

AHEAD = 1.5  # seconds of video that a page may have and not have shown
UNWATCHED = 60.0  # seconds without anything shown, after which a visitor's turn ends
OWN = 4  # videos that a visitor has at once
LEFT = 8  # videos of visitors who have left that can still be fetched

log = logging.getLogger("tt_jax.serve")


class Gone(Exception):
    """The visitor has left."""


class Hall:
    """What all visitors share: the device, the line before it, and the videos.

    Attributes:
        engine: makes chunks.
        folder: of recordings.
        turns: the line.
        counts: for `/metrics`.
        takes: all videos by their names.
        unwatched: seconds, see `UNWATCHED`.
    """

    def __init__(self, engine: Engine, folder: Path, unwatched: float = UNWATCHED) -> None:
        self.engine, self.folder, self.unwatched = engine, folder, unwatched
        self.turns, self.counts = Turns(), Counts()
        self.takes: dict[str, Take] = {}
        self._left: deque[Take] = deque()
        self._latest: Visitor | None = None
        # One thread, so that the device is asked for one thing at a time.
        self._device = ThreadPoolExecutor(1, thread_name_prefix="device")

    async def advance(self, take: Take, steer: Steer) -> bytes:
        """`take.advance` on the device's thread, counted."""
        before, began = take.recording.frames, time.perf_counter()
        loop = asyncio.get_running_loop()
        message = await loop.run_in_executor(self._device, advance, self.engine, take, steer)
        made = take.recording.frames - before
        self.counts.chunks += 1
        self.counts.frames += made
        self.counts.interventions += bool(take.rows[-1]["triggered"] and steer.trim)
        self.counts.rate = made / (time.perf_counter() - began)
        return message

    def enter(self, visitor: "Visitor") -> None:
        """Gives the device to a visitor: the one before can't go on, since a state fills memory."""
        if self._latest is not None and self._latest is not visitor:
            self._latest.forget()
        self._latest = visitor

    def leave(self, visitor: "Visitor") -> None:
        """Lets a visitor go; the videos can still be fetched for a while."""
        # After the chunk that may still be in the making.
        self._device.submit(visitor.forget)
        if self._latest is visitor:
            self._latest = None
        self._left.extend(visitor.takes)
        while len(self._left) > LEFT:
            self.remove(self._left.popleft())

    def finish(self, take: Take) -> None:
        """Ends a video, after the chunk that may still be in the making."""
        self._device.submit(take.recording.finish)

    def remove(self, take: Take) -> None:
        """Deletes a video."""
        self.takes.pop(take.name, None)
        self._device.submit(take.recording.remove)  # likewise

    def close(self) -> None:
        """Ends the device's thread."""
        self._device.shutdown(cancel_futures=True)


class Visitor:
    """One connection.

    Attributes:
        takes: this visitor's videos, the newest last.
        on_stage: whether it is this visitor's turn.
    """

    def __init__(
        self,
        hall: Hall,
        say: Callable[[dict[str, Any]], Awaitable[None]],
        send: Callable[[bytes], Awaitable[None]],
    ) -> None:
        """A visitor that has just come.

        Args:
            hall: what all share.
            say: sends a text; raises Gone.
            send: sends bytes, and returns once they are on their way; raises Gone.
        """
        self._hall, self._say, self._send = hall, say, send
        self.takes: deque[Take] = deque()
        self._playing: asyncio.Task[None] | None = None
        self._picture: Any = None
        self._steer: Steer | None = None
        self._branch: int | None = None
        self._stopping = self.on_stage = False
        self._shown = 0
        self._moved = asyncio.Event()

    @property
    def busy(self) -> bool:
        """Whether a video of this visitor is made, or waits for its turn."""
        return self._playing is not None and not self._playing.done()

    async def picture(self, data: bytes) -> None:
        """Keeps a picture to start from. Raises ProtocolError."""
        self._picture = await asyncio.to_thread(read_picture, data, self._hall.engine.size)
        await self._say({"type": "picture"})

    async def refuse(self, error: ProtocolError) -> None:
        """Says what was wrong with a message."""
        self._hall.counts.refused += 1
        await self._say({"type": "error", "message": str(error)})

    def handle(self, message: Message) -> None:
        """Does what the page asks for. Raises ProtocolError if it can't be."""
        match message:
            case Start():
                self._begin(message)
            case Steer():
                if not self.takes:
                    raise ProtocolError("there is no video to steer: start one.")
                self._check_switch(message.switch, self.takes[-1].start.cache)
                self._steer = message
            case Branch(seed):
                self._ask_branch(seed)
            case Stop():
                self._stop()
            case Shown(frames):
                if not self.takes or frames > self.takes[-1].recording.frames:
                    raise ProtocolError("no such frame was sent.")
                self._shown = max(self._shown, frames)
        self._moved.set()

    def _begin(self, start: Start) -> None:
        offer = self._hall.engine.offer
        if self.busy:
            raise ProtocolError("a video is being made: stop it first.")
        if start.p not in offer["shares"]:
            raise ProtocolError(f"p is one of {', '.join(map(str, offer['shares']))}.")
        if start.cache not in offer["caches"]:
            raise ProtocolError(f"cache is one of {', '.join(offer['caches'])}.")
        self._check_switch(start.switch, start.cache)
        if start.picture and self._picture is None:
            raise ProtocolError("there is no picture to start from: send one.")
        name = new_name()
        recording = Recording(self._hall.folder / name)
        picture = self._picture if start.picture else None
        self._shown, self._steer = 0, start
        self._play(Take(start, recording, picture, name=name))

    def _check_switch(self, switch: str, cache: str) -> None:
        known = self._hall.engine.offer["switches"][cache]
        if switch not in known:
            raise ProtocolError(f"the switch of {cache} is one of {', '.join(known)}.")

    def _stop(self) -> None:
        self._stopping = True
        if self.busy and not self.on_stage:  # who only waits needn't do so any longer
            assert self._playing is not None
            self._playing.cancel()
            self._playing = asyncio.create_task(self._end(None))

    def _ask_branch(self, seed: int) -> None:
        if self.busy:
            self._branch = seed
        elif not self.takes or self.takes[-1].state is None:
            raise ProtocolError("there is nothing to continue from: start a video.")
        else:
            self._play(self.takes[-1].branch(self._hall.folder, seed))

    def _play(self, take: Take) -> None:
        self._stopping, self._branch = False, None
        self._add(take)
        self._playing = asyncio.create_task(self._perform(take))

    def _add(self, take: Take) -> None:
        self._hall.takes[take.name] = take
        self.takes.append(take)
        if len(self.takes) > OWN:
            self._hall.remove(self.takes.popleft())

    async def _perform(self, take: Take) -> None:
        """Makes a video, and its branches, from the turn's beginning to its end."""
        reason = None
        try:
            async with self._hall.turns.turn(self._tell_place):
                self.on_stage = True
                self._hall.enter(self)
                if take.seed is not None and take.state is None:
                    raise ProtocolError("another video was made meanwhile: start a new one.")
                following: Take | None = take
                while following is not None:
                    self._hall.counts.streams += 1
                    following = await self._film(following)
        except Gone:
            return
        except TimeoutError:
            reason = "Nobody watched for a while, so the device was given to others."
        except OSError as error:
            log.warning("a video ended: %s", error)
            reason = f"The video can't be kept: {error.strerror}."
        except (ValueError, NonFiniteError) as error:
            log.warning("a video ended: %s", error)
            reason = str(error)
        except Exception:
            self._hall.counts.errors += 1
            log.exception("a video ended by an error")
            reason = "Something went wrong; the server's log says what."
        finally:
            self.on_stage = False
        await self._end(reason)

    async def _end(self, reason: str | None) -> None:
        last = self.takes[-1]
        ending = {"frames": last.recording.frames, "branch": last.state is not None}
        with suppress(Gone):
            await self._say({"type": "stopped", "reason": reason, **ending})

    async def _film(self, take: Take) -> Take | None:
        """Makes a video until it is stopped or branches; returns the branch."""
        try:
            return await self._go_on(take)
        finally:
            self._hall.finish(take)

    async def _go_on(self, take: Take) -> Take | None:
        begun = {"take": take.name, "frame": take.recording.frames, "seed": take.seed}
        await self._say({"type": "started", **begun})
        while not self._stopping:
            if self._branch is not None and take.state is not None:
                child = take.branch(self._hall.folder, self._branch)
                self._branch = None
                take.state = None  # it is the branch's now
                self._add(child)
                return child
            self._moved.clear()
            if take.recording.frames - self._shown > AHEAD * FPS:
                await asyncio.wait_for(self._moved.wait(), self._hall.unwatched)
                continue
            assert self._steer is not None  # since there is a Start
            try:
                message = await self._hall.advance(take, self._steer)
            except ValueError as error:
                if take.prompt in (None, self._steer.prompt):
                    raise
                # A prompt that can't be encoded: the video goes on with the one it has.
                self._steer = dataclasses.replace(self._steer, prompt=take.prompt)
                await self._say({"type": "error", "message": str(error)})
                continue
            await asyncio.wait_for(self._send(message), self._hall.unwatched)
        return None

    async def _tell_place(self, place: int, waiting: int) -> None:
        await self._say({"type": "queue", "place": place, "waiting": waiting})

    def forget(self) -> None:
        """Lets go of the memory with which videos could go on."""
        for take in self.takes:
            take.state = None

    async def leave(self) -> None:
        """Ends what this visitor has begun; the place is free when this returns."""
        if self._playing is not None:
            self._playing.cancel()
            await asyncio.wait([self._playing])
        self._hall.leave(self)
