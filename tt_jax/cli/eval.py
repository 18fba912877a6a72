"""`tt-jax eval`: measures video files, or lays them out for VBench."""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FILES = ("eval.csv", "eval.png")


def add(commands: Any) -> None:
    """Registers the command."""
    parser = commands.add_parser("eval", help="measure flicker, drift, motion and sharpness")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="videos of one rate")
    parser.add_argument(
        "--out", type=Path, help="folder of the table and picture (default: a new one below runs)"
    )
    group = parser.add_argument_group("VBench")
    group.add_argument(
        "--vbench-layout", type=Path, metavar="DIR", help="copy the files here as VBench reads them"
    )
    group.add_argument(
        "--vbench-mode", choices=("custom", "standard"),
        help="standard: the prompts are VBench's own (default: custom)",
    )  # fmt: skip
    group.add_argument(
        "--prompts", type=Path, metavar="JSON",
        help="prompts by file name, where no record of `tt-jax generate` lies beside the video "
        "or it was made from a longer version of VBench's prompt",
    )  # fmt: skip
    parser.set_defaults(check=check)


def check(args: argparse.Namespace) -> Callable[[], None]:
    """Measures or plans; the work writes. Raises ValueError or FileNotFoundError."""
    from tt_jax.cli import output
    from tt_jax.evaluate import summary, vbench
    from tt_jax.evaluate.measures import measure_files
    from tt_jax.files import new_folder
    from tt_jax.plots import style

    if args.vbench_layout is not None:
        if args.out is not None:
            raise ValueError("--vbench-layout measures nothing: leave --out away.")
        prompts = summary.read_prompts(args.files, args.prompts)
        plan = vbench.layout(prompts, args.vbench_layout, args.vbench_mode or "custom")

        def lay_out() -> None:
            plan.write()
            print(plan.command)

        return lay_out

    if args.prompts is not None or args.vbench_mode is not None:
        raise ValueError("--prompts and --vbench-mode are for --vbench-layout: give that too.")
    folder = args.out or Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-eval"
    output.writable(folder)
    if args.out is not None:
        output.refuse_existing(folder / name for name in FILES)
    labels = summary.labels(args.files)
    summary.refuse_joined(args.files)
    measured = dict(zip(labels, measure_files(args.files), strict=True))

    def write() -> None:
        print(summary.table(measured))
        if args.out is None:
            where = new_folder(folder)
        else:
            where = folder
            where.mkdir(parents=True, exist_ok=True)
        table, picture = (where / name for name in FILES)
        summary.write_csv(table, measured)
        style.save(summary.picture(measured), picture)
        print(table, picture, sep="\n")

    return write
