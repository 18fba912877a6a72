"""`python -m convert`: published checkpoints to a model's folder, and back.

Exit codes: 0 done, 1 failed on the way, 2 bad input (nothing was written), 130 interrupted.
"""

import argparse
import sys
from pathlib import Path

import jax
import ml_dtypes
import numpy as np

from convert.bits import to_bits
from convert.checkpoints import BIDIRECTIONAL, CAUSAL
from convert.lora import parse
from convert.model import convert
from convert.native import to_native
from convert.plan import Request
from convert.problems import BadInput, printable
from convert.sizes import LONGEST_TEXT
from tt_jax.checkpoint import HELD
from tt_jax.nn import int8

DTYPES = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}
ASKED_KINDS = {"causal": CAUSAL, "bidirectional": BIDIRECTIONAL}


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m convert",
        description="Converts published Wan checkpoints into one folder that tt_jax.load takes. A "
        "folder that is a model already keeps the parts that the sources don't have.",
    )
    parser.add_argument("src", nargs="+", type=Path, help="files and folders of checkpoints")
    parser.add_argument("dst", type=Path, help="the model's folder")
    parser.add_argument("--component", choices=(*HELD, "all"), default="all", help="only this")
    parser.add_argument("--dtype", choices=DTYPES, help="of the result; default: the source's")
    parser.add_argument(
        "--ema", action=argparse.BooleanOptionalAction, default=None,
        help="take generator_ema, or generator; default: generator_ema where there is one",
    )  # fmt: skip
    parser.add_argument("--num-heads", type=int, help="default: width / 128, where it divides")
    parser.add_argument("--text-len", type=int, help="tokens of a text; default: 512")
    parser.add_argument(
        "--kind", choices=ASKED_KINDS,
        help="what the transformer was trained to be; default: what its settings say",
    )  # fmt: skip
    parser.add_argument(
        "--lora", action="append", type=parse, default=[], metavar="FILE[:SCALE]",
        help="add a LoRA to the transformer's weights; may be given several times",
    )  # fmt: skip
    parser.add_argument(
        "--to-native", action="store_true",
        help="write the model's folder SRC back to safetensors with Wan's own names, bit for bit",
    )  # fmt: skip
    parser.add_argument(
        "--quantize", choices=int8.KINDS,
        help="write the model's folder SRC anew, with weights of 8 bits in transformer and text "
        "encoder",
    )  # fmt: skip
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs one conversion.

    Args:
        argv: The arguments; those of the process if None.

    Returns:
        The exit code, see above.
    """
    parser = arguments()
    args = parser.parse_args(argv)
    if args.num_heads is not None and args.num_heads < 1:
        parser.error("--num-heads must be at least 1")
    if args.text_len is not None and not 1 <= args.text_len <= LONGEST_TEXT:
        parser.error(f"--text-len must be from 1 to {LONGEST_TEXT}")
    if args.to_native and (len(args.src) > 1 or args.lora):
        parser.error("--to-native takes one model's folder, and no --lora")
    if args.quantize and (len(args.src) > 1 or args.lora or args.dtype or args.to_native):
        parser.error("--quantize takes one model's folder, and no --lora, --dtype or --to-native")
    try:
        if args.quantize:
            done = to_bits(args.src[0], args.dst, args.quantize)
        elif args.to_native:
            done = to_native(args.src[0], args.dst)
        else:
            dtype = DTYPES[args.dtype] if args.dtype else None
            request = Request(
                args.component, dtype, args.ema, args.num_heads, args.text_len,
                ASKED_KINDS.get(args.kind), tuple(args.lora),
            )  # fmt: skip
            done = convert(args.src, args.dst, request, {})
    except BadInput as error:
        print(f"convert: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"convert: {printable(where + (error.strerror or str(error)))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("convert: interrupted, nothing was written.", file=sys.stderr)
        return 130
    print(*done, f"wrote {args.dst}", sep="\n")
    return 0


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")  # an accelerator would only lend its memory
    sys.exit(main())
