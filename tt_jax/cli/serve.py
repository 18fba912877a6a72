"""`tt-jax serve`: a page on which an endless video is watched and steered while it is made."""

import argparse
from collections.abc import Callable
from typing import Any

from tt_jax.cli.options import CACHES, add_loading, add_model, port, size


def add(commands: Any) -> None:
    """Registers the command."""
    parser = commands.add_parser("serve", help="watch and steer an endless video in a browser")
    add_model(parser)
    parser.add_argument(
        "--host", default="127.0.0.1",
        help="address to listen on; any but this machine's own needs a token",
    )  # fmt: skip
    parser.add_argument("--port", type=port, default=8000, help="0 for any that is free")
    parser.add_argument(
        "--token", help="what visitors must know (default: none on this machine, else a new one)"
    )
    parser.add_argument("--size", type=size, help="like 832x480 (default: the model's own)")
    parser.add_argument(
        "--cache", metavar="NAME[:KEY=VALUE,...]", action="append",
        help=f"a cache policy that the page offers, several times for several: {', '.join(CACHES)} "
        "(default: the model's own)",
    )  # fmt: skip
    add_loading(parser)
    parser.set_defaults(check=check, cleans_up=True)


def check(args: argparse.Namespace) -> Callable[[], None]:
    """Checks the request; the work loads the model and serves. Raises ValueError or OSError."""
    try:
        from tt_jax.cli.serving import request
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn", "websockets"):
            raise
        raise ValueError("tt-jax serve needs more packages: pip install 'tt-jax[serve]'.") from None
    return request(args)
