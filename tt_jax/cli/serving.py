"""What `tt-jax serve` does: checks, loads, compiles, then listens until it is stopped."""

import argparse
import dataclasses
import ipaddress
import logging
import re
import secrets
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import cast

import uvicorn
from starlette.types import ASGIApp

from tt_jax import cache, pipeline
from tt_jax.cache.named import name_of
from tt_jax.checkpoint import default_dtype, find, read_config
from tt_jax.models.configs import ModelConfig
from tt_jax.planning import memory
from tt_jax.serve.app import create_app
from tt_jax.serve.engine import Engine
from tt_jax.serve.guard import LOOPBACK
from tt_jax.serve.protocol import LARGEST_PICTURE
from tt_jax.strategies.presets import own
from tt_jax.strategies.self_forcing import SelfForcing

TOKEN = re.compile(r"[\w.~-]{8,}", re.ASCII)  # as it stands in an address and in a cookie


def request(args: argparse.Namespace) -> Callable[[], None]:
    """Checks a request to serve.

    Args:
        args: the command's.

    Returns:
        The work: loads, compiles and serves.

    Raises:
        ValueError: the request can't be.
        OSError: the model's folder can't be read.
    """
    token = token_of(args.host, args.token)
    config, kind = read_config(find(args.model), vae=args.vae, quantize=args.quantize)
    strategies = strategies_of(args.cache, config)
    size = args.size or config.size
    pipeline.check_size(config, size)
    dtype = default_dtype()
    needs = [
        memory.estimate(config, dtype, strategy, size=size, frames=64, batch=1)
        for strategy in strategies.values()
    ]
    memory.check(max(needs, key=lambda memory: memory.device))
    listening = listen(args.host, args.port)

    def work() -> None:
        with listening:
            started = time.perf_counter()
            pipe = pipeline.load(
                args.model, dtype, allow_bidirectional=args.allow_bidirectional, vae=args.vae,
                quantize=args.quantize,
            )  # fmt: skip
            about = {"name": args.model, "kind": kind, "config": dataclasses.asdict(config)}
            engine = Engine(pipe, strategies, size, about)
            print(f"loading {args.model} and compiling its programs ...", flush=True)
            engine.warm()
            print(f"ready after {time.perf_counter() - started:.0f} s.", flush=True)
            print(f"open {address(listening, token)} (Ctrl-C ends it)", flush=True)
            serve(create_app(engine, token), listening)

    return work


def token_of(host: str, given: str | None) -> str | None:
    """What visitors must know: what was given, else something new unless only this machine can ask.

    Args:
        host: that is listened on.
        given: by the option.

    Returns:
        The token; None where none is needed.

    Raises:
        ValueError: the token is too short to be one, or can't be in an address.
    """
    if given is not None and not TOKEN.fullmatch(given):
        raise ValueError("a token is at least 8 letters, digits or any of ._~-")
    return given if given is not None or host in LOOPBACK else secrets.token_urlsafe(16)


def strategies_of(caches: list[str] | None, config: ModelConfig) -> dict[str, SelfForcing]:
    """The strategies that the page offers.

    Args:
        caches: names of cache policies; None for the model's own.
        config: of the model.

    Returns:
        The strategy with each of them, by its name.

    Raises:
        ValueError: there is no such policy, or the model is Rolling Forcing's.
    """
    if config.rollout.strategy == "rolling-forcing":
        raise ValueError(
            "the page steers a video from chunk to chunk, and this model makes several at once "
            "(Rolling Forcing): take a model of Self Forcing's kind."
        )
    if caches is None:
        base = cast(SelfForcing, own(config.rollout))
        return {name_of(base.policy): base}
    policies = {text: cache.parse(text, config.rollout.window) for text in caches}
    return {
        text: cast(SelfForcing, own(config.rollout, cache=policy))
        for text, policy in policies.items()
    }


def listen(host: str, port: int) -> socket.socket:
    """Takes the port before anything is loaded.

    Args:
        host: a name or an address of this machine.
        port: 0 for any that is free.

    Returns:
        The socket, which listens.

    Raises:
        ValueError: it can't be had.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise ValueError(f"{host}:{port} can't be listened on: {error.strerror}.") from None


def address(listening: socket.socket, token: str | None) -> str:
    """What to open in a browser.

    Args:
        listening: the server's socket.
        token: that visitors must know.

    Returns:
        The address, the token in it.
    """
    host, port = listening.getsockname()[:2]
    with suppress(ValueError):
        if ipaddress.ip_address(host).is_unspecified:
            host = socket.gethostname()
    host = f"[{host}]" if ":" in host else host
    return f"http://{host}:{port}/" + (f"?token={token}" if token else "")


def serve(app: ASGIApp, listening: socket.socket) -> None:
    """Answers until Ctrl-C or SIGTERM.

    Args:
        app: the application.
        listening: its socket.
    """
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    with suppress(KeyboardInterrupt):
        uvicorn.Server(configuration(app)).run(sockets=[listening])


def configuration(app: ASGIApp) -> uvicorn.Config:
    """How the server runs an application: messages are bounded, and dead connections found.

    Args:
        app: the application.

    Returns:
        The server's settings.
    """
    return uvicorn.Config(
        app, ws="websockets-sansio", ws_max_size=LARGEST_PICTURE + 1, ws_max_queue=4,
        ws_per_message_deflate=False, ws_ping_interval=10, ws_ping_timeout=10, log_level="warning",
        log_config=None, access_log=False, server_header=False, timeout_graceful_shutdown=1,
    )  # fmt: skip
