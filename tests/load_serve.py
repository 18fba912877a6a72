"""Many visitors at random: `python tests/load_serve.py --clients 50 --seconds 120`.

They connect to a server on loopback, start, steer, branch, stop, send what is no message, or vanish
without a word. Afterwards the line must be empty, tasks and files as before, memory hardly more,
and nothing logged as an error; one well-behaved visitor among them must have had unbroken videos.
Chunks come from a stand-in, or from a model with `--model shapes`.
"""

import argparse
import asyncio
import ctypes
import gc
import json
import logging
import random
import re
import socket
import sys
import tempfile
import threading
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import uvicorn
import websockets

sys.path.insert(0, str(Path(__file__).parent / "serve"))

from stub import START, Stub, unpack
from test_protocol import damaged

from tt_jax import pipeline
from tt_jax.cli import serving
from tt_jax.serve.app import create_app
from tt_jax.serve.engine import Engine

SETTLING = 10.0  # seconds within which everything is as before
GROWTH = 20 * 2**20  # bytes that a process may have more, of whatever its libraries keep


class Errors(logging.Handler):
    """Collects what is logged as an error."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(self.format(record))


class Tally:
    """What visitors have seen."""

    def __init__(self) -> None:
        self.visits = self.turns = self.chunks = self.refused = 0


def made_with(model: str | None):
    """What makes chunks."""
    if model is None:
        return Stub(0.02)
    pipe = pipeline.load(model)
    engine = Engine(
        pipe, serving.strategies_of(None, pipe.config), pipe.config.size, {"name": model}
    )
    engine.warm()
    return engine


async def visitor(address: str, rng: random.Random, until: float, tally: Tally) -> None:
    """Visits again and again, and leaves in every way there is."""
    bad = damaged(50)
    while time.monotonic() < until:
        tally.visits += 1
        ws = await websockets.connect(
            address.replace("http", "ws") + "live", origin=address.rstrip("/"), compression=None,
            max_size=None, close_timeout=1,
        )  # fmt: skip
        try:
            async with asyncio.timeout(rng.uniform(0.1, 4)):
                await behave(ws, rng, bad, tally)
        except (TimeoutError, websockets.ConnectionClosed):
            pass
        if rng.random() < 0.5:
            ws.transport.abort()  # a tab that is gone
        else:
            await ws.close()
        await asyncio.sleep(rng.uniform(0, 0.3))


async def behave(ws, rng: random.Random, bad: list[str], tally: Tally) -> None:
    """Does something at random for every message that comes."""
    await ws.send(json.dumps(START | {"seed": rng.randrange(1000)}))
    async for message in ws:
        if isinstance(message, bytes):
            header, parts = unpack(message)
            tally.chunks += 1
            tally.turns += header["frame"] == 0
            seen = header["frame"] + len(parts) - 2
            if rng.random() < 0.95:  # else it isn't looked at any more
                await ws.send(json.dumps({"type": "shown", "frames": seen}))
        else:
            tally.refused += json.loads(message)["type"] == "error"
        match rng.randrange(12):
            case 0:
                other = {"prompt": rng.choice(["a cat", "a dog"]), "trim": True, "lam": 1}
                await ws.send(json.dumps({"type": "steer", "switch": "none", **other}))
            case 1:
                await ws.send(json.dumps({"type": "branch", "seed": rng.randrange(9)}))
            case 2:
                await ws.send(json.dumps({"type": "stop"}))
            case 3:
                await ws.send(rng.choice(bad))
            case 4:
                await ws.send(rng.randbytes(rng.randrange(4000)))
            case 5:
                await ws.send(json.dumps(START))


async def steady(address: str, until: float) -> int:
    """Watches one video for as long as it is there, waiting like everybody; returns its frames."""
    expected = 0
    async with websockets.connect(
        address.replace("http", "ws") + "live", origin=address.rstrip("/"), compression=None
    ) as ws:
        await ws.send(json.dumps(START))
        while time.monotonic() < until:
            try:
                message = await asyncio.wait_for(ws.recv(), 1)
            except TimeoutError:
                continue
            if isinstance(message, bytes):
                header, parts = unpack(message)
                assert header["frame"] == expected, (header["frame"], expected)
                expected += len(parts) - 2
                await ws.send(json.dumps({"type": "shown", "frames": expected}))
                if expected >= 160:  # ten seconds: the others' turn
                    break
    return expected


def metrics(address: str) -> dict[str, float]:
    """What the server says of itself."""
    with urllib.request.urlopen(address + "metrics") as answer:
        text = answer.read().decode()
    return {name: float(value) for name, value in re.findall(r"^tt_jax_(\w+) (\S+)$", text, re.M)}


def main() -> int:
    """Runs the visitors; 0 if all is as before."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", help="a model instead of the stand-in")
    args = parser.parse_args()
    errors = Errors()
    logging.getLogger().addHandler(errors)
    logging.getLogger("tt_jax.serve").setLevel(logging.ERROR)
    listening = socket.create_server(("127.0.0.1", 0), backlog=args.clients)
    address = serving.address(listening, None)
    server = uvicorn.Server(serving.configuration(create_app(made_with(args.model))))
    loops: list[asyncio.AbstractEventLoop] = []

    async def run() -> None:
        loops.append(asyncio.get_running_loop())
        await server.serve([listening])

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    while not server.started:
        time.sleep(0.05)

    def state() -> dict[str, float]:
        gc.collect()
        with suppress(AttributeError):  # else the allocator keeps what it was given back
            ctypes.CDLL(None).malloc_trim(0)
        told = metrics(address)
        return {
            "visitors": told["visitors"], "streams": told["streams"], "queue": told["queue"],
            "tasks": len(asyncio.all_tasks(loops[0])), "memory": told["resident_memory_bytes"],
        }  # fmt: skip

    async def visits(seconds: float, clients: int, tally: Tally) -> list[int]:
        until = time.monotonic() + seconds
        others = [
            visitor(address, random.Random(args.seed + i), until, tally) for i in range(clients)
        ]
        videos = []

        async def watch() -> None:
            while time.monotonic() < until:
                videos.append(await steady(address, until))

        await asyncio.gather(watch(), *others)
        return videos

    tally = Tally()
    asyncio.run(visits(min(5.0, args.seconds / 4), args.clients, Tally()))  # libraries settle
    time.sleep(1)
    before = state()
    videos = asyncio.run(visits(args.seconds, args.clients, tally))
    began = time.monotonic()
    while True:
        after = state()
        same = all(after[name] <= before[name] for name in before if name != "memory")
        if same and after["memory"] < before["memory"] + GROWTH:
            break
        if time.monotonic() - began > SETTLING:
            print(f"not as before: {before} {after}")
            return 1
        time.sleep(0.1)
    files = sum(path.is_file() for path in Path(tempfile.gettempdir()).rglob("*"))
    told = metrics(address)
    server.should_exit = True
    thread.join(10)
    print(
        f"{args.clients} clients, {args.seconds:g} s: {tally.visits} visits, {tally.turns} turns, "
        f"{tally.chunks} chunks seen, {told['chunks_total']:.0f} made, {tally.refused} refused"
    )
    print(f"the steady visitor's videos: {videos} frames, none missing")
    print(f"before {before}\nafter  {after}")
    print(f"{files} files of the latest videos, {len(errors.found)} errors")
    for error in errors.found[:3]:
        print(error)
    return int(
        bool(errors.found) or files > 8 or thread.is_alive() or not tally.turns or not any(videos)
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as tempfile.tempdir:  # nobody else's files are counted
        sys.exit(main())
