"""`tt-jax plan`: memory and roofline of a model on a machine that isn't here."""

import argparse
import time
from collections.abc import Callable
from typing import Any

from tt_jax.cli.options import BITS, CACHES, MODELS, PRESETS, VAES, positive, size
from tt_jax.planning.machines import MACHINES, machine


def add(commands: Any) -> None:
    """Registers the command."""
    parser = commands.add_parser("plan", help="whether a model fits a machine, and how fast")
    names = ", ".join(MODELS)
    parser.add_argument("--model", default="wan2.1-1.3b", help=f"{names}, or a model's folder")
    parser.add_argument(
        "--device", required=True, help=f"{', '.join(MACHINES)}, or the memory of a GPU, like 24gb"
    )
    parser.add_argument("--seconds", type=float, default=30.0, help="of the video")
    parser.add_argument("--batch", type=positive, default=1, help="videos made at once")
    parser.add_argument("--size", type=size, help="like 832x480 (default: the model's own)")
    parser.add_argument(
        "--window", type=int, help="latent frames that attention spans (default: the model's own)"
    )
    parser.add_argument(
        "--cache",
        metavar="NAME[:KEY=VALUE,...]",
        help=f"what is kept of the past, instead of a window: {', '.join(CACHES)}",
    )
    parser.add_argument("--vae", choices=VAES, default="full", help="what decodes")
    parser.add_argument("--quantize", choices=BITS, help="what weights are rounded to")
    parser.add_argument("--preset", help=f"a row of the paper's tables: {', '.join(PRESETS)}")
    parser.set_defaults(check=check, computes=False)  # nothing runs


def check(args: argparse.Namespace) -> Callable[[], int]:
    """Checks the request; the work prints the table and, where it doesn't fit, what would help."""
    there = machine(args.device)

    from tt_jax import cache
    from tt_jax.checkpoint import find, read_config
    from tt_jax.frames import check_size, frame_count
    from tt_jax.models.configs import CONFIGS, with_bits, with_tiny_vae
    from tt_jax.planning import compiler, fit
    from tt_jax.strategies.presets import preset

    known = CONFIGS.get(args.model)
    if known is None:
        config = read_config(find(args.model), vae=args.vae, quantize=args.quantize)[0]
    else:
        config = with_tiny_vae(known) if args.vae == "tiny" else known
        config = with_bits(config, args.quantize)
    size = args.size or config.size
    check_size(config, size)
    name = args.preset or f"{config.rollout.strategy}+tokentrim-no-flowmo"
    span: dict[str, Any] = {} if args.window is None else {"window": args.window}
    if (span or args.cache) and name.startswith("rolling-forcing"):
        raise ValueError(
            "Rolling Forcing has a window of its own: leave --window out, and --cache."
        )
    if span and args.cache:
        raise ValueError("a cache policy has a window of its own: give --window or --cache.")
    if args.cache:
        span = {"cache": cache.parse(args.cache, config.rollout.window)}
    strategy, trim = preset(name, config.rollout, **span)
    frames = frame_count(args.seconds)
    asked = fit.Request(config, there, strategy, trim, size, frames, args.batch)
    strategy.check(asked.chunks, trim, 0)
    if there.topology is not None:
        compiler.devices(there)  # says what is missing

    def work() -> int:
        guess = fit.estimate(asked)
        started = time.perf_counter()
        need = guess if there.topology is None else fit.compiled(asked, guess)
        spent = None if there.topology is None else time.perf_counter() - started
        videos = "" if args.batch == 1 else f"{args.batch} videos of "
        print(f"{args.model} on {args.device}, {videos}{args.seconds:g} s of {size[1]}x{size[0]}")
        own = f"{config.rollout.strategy}, window {strategy.slots + strategy.chunk}"
        if args.cache:
            own = f"{args.preset or config.rollout.strategy}, {cache.describe(span['cache'])}"
        print(own if args.cache else args.preset or own)
        print(*fit.table(asked, need, spent), sep="\n")
        if need.device <= there.memory:
            return 0
        scale = need.generating / guess.generating
        settings = " or ".join(fit.remedies(asked, scale)) or "a smaller model"
        print(f"It doesn't fit; it would, as far as shapes tell, with {settings}.")
        return 1

    return work
