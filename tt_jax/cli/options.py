"""Arguments that several commands share, and their types. Imports nothing heavy, so that help and
errors of arguments come at once."""

import argparse
import math
import re
from pathlib import Path
from typing import Any

# Labels of runs that no preset names: the plain strategy, and TokenTrim over it.
PLAIN, TRIMMED = "plain", "TokenTrim"
# Names that libraries know, too slow to import for a help text; the tests compare them.
POLICIES = (
    "top",
    "random",
    "bottom",
    "none",
    "adaptive",
    "per_frame",
    "motion",
    "novelty",
    "newest",
)
PRESETS = (
    "rolling-forcing",
    "rolling-forcing+flowmo",
    "rolling-forcing+tokentrim",
    "rolling-forcing+tokentrim-p05",
    "rolling-forcing+tokentrim-p20",
    "rolling-forcing+tokentrim-no-flowmo",
    "self-forcing",
    "self-forcing+flowmo",
    "self-forcing+tokentrim",
    "self-forcing+tokentrim-no-flowmo",
)
CACHES = (
    "window",
    "infinity-rope",
    "long-live",
    "mem-rope",
    "ema-sink",
    "rolling-sink",
    "relax-forcing",
    "deep-forcing",
    "tether-cache",
    "fade-mem",
)
UNWARPED = "none"  # a --shift for levels as they stand
VAES = ("full", "tiny")
STRATEGIES = ("self-forcing", "rolling-forcing")
DTYPES = ("float32", "bfloat16")
AXES = ("data", "sequence", "tensor")
BITS = ("int8",)
MODELS = ("wan2.1-1.3b", "wan2.1-14b", "shapes")
FETCHED = (
    "self-forcing",
    "self-forcing-sid",
    "rolling-forcing",
    "longlive",
    "causal-forcing",
    "causal-forcing-framewise",
    "causal-forcing-2step",
    "causal-forcing-1step",
    "reward-forcing",
    "infinite-forcing",
    "memflow",
    "krea-realtime-14b",
    "wave-forcing",
    "fastvideo-sfwan",
    "causvid",
    "wan2.1-1.3b",
    "wan2.1-14b",
    "taew2_1",
)
SWITCHES = ("none", "flush", "cut", "recache")  # what all cache policies know of
# TokenTrim's own, but for switches; a preset may have others.
TRIM = {
    "p": 0.1, "lam": 2.0, "warmup": 2, "retries": 1, "when": "final", "select": "top",
    "accept": "always", "statistics": "moments",
}  # fmt: skip


def add_request(parser: argparse.ArgumentParser, *, several: bool = False) -> Any:
    """Adds what generate and compare have in common.

    Args:
        parser: the command's.
        several: several caches can be given.

    Returns:
        The group of what says which video.
    """
    shown = parser.add_mutually_exclusive_group(required=True)
    shown.add_argument(
        "prompt", nargs="?",
        help="what the video should show; or scenes, 'a cat [10s] | a dog [5s#]', each with its "
        "length, and # where it begins with a cut",
    )  # fmt: skip
    shown.add_argument(
        "--script", type=Path, metavar="FILE",
        help="prompts from a file instead: a line SECONDS PROMPT for each, with the second at "
        "which it begins, the first at 0; SECONDS# for one that begins with a cut",
    )  # fmt: skip
    parser.add_argument(
        "--switch", choices=SWITCHES,
        help="what becomes of the past at a new prompt: nothing but the text changes; the past is "
        "flushed but for sinks and newest frames; the same as a cut in time; or the past's keys "
        "and values are made anew under the new prompt (default: the cache policy's own way)",
    )  # fmt: skip
    add_model(parser)
    parser.add_argument(
        "--seconds", type=float,
        help="length of the video (default: that of scenes which all have one, else 30)",
    )  # fmt: skip
    parser.add_argument("--seed", type=seed, default=0, help="of all noise, from 0 to 2^64 - 1")
    parser.add_argument("--batch", type=positive, default=1, help="videos made at once")
    parser.add_argument("--size", type=size, help="like 832x480 (default: the model's own)")
    parser.add_argument("--init", type=Path, metavar="FILE", help="start from a picture or video")
    parser.add_argument(
        "--init-seconds", type=finite, metavar="SECONDS",
        help="start from so much of the video's beginning (default: all of it)",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path,
        help="folder, or name of the mp4; what exists is never replaced (default: a new folder "
        "below runs)",
    )  # fmt: skip
    parser.add_argument(
        "--window", type=int, help="latent frames that attention spans (default: the model's own)"
    )
    parser.add_argument(
        "--sink",
        type=int,
        help="first latent frames that are never evicted (default: the model's own)",
    )
    parser.add_argument(
        "--cache", metavar="NAME[:KEY=VALUE,...]", action="append" if several else "store",
        help=f"what is kept of the past, instead of a window: {', '.join(CACHES)}"
        + ("; given several times, each is compared" if several else ""),
    )  # fmt: skip
    parser.add_argument(
        "--strategy", choices=STRATEGIES, help="how chunks are made (default: the model's own)"
    )
    parser.add_argument(
        "--chunk", type=positive,
        help="latent frames of a chunk, with Self Forcing (default: the model's own)",
    )  # fmt: skip
    parser.add_argument(
        "--steps", type=steps, help="like 1000,750,500,250 (default: the model's own)"
    )
    parser.add_argument(
        "--shift", type=shift,
        help="what warps the steps into noise levels, or 'none' (default: the model's own)",
    )  # fmt: skip
    parser.add_argument(
        "--text-device", choices=("cpu",),
        help="keep the text encoder in main memory (default: where the rest is)",
    )  # fmt: skip
    add_loading(parser)
    parser.add_argument(
        "--dtype", choices=DTYPES,
        help="of weights and cache (default: float32 on a CPU, else bfloat16)",
    )  # fmt: skip
    several_devices = parser.add_argument_group("several devices")
    several_devices.add_argument(
        "--mesh", type=mesh, metavar="MESH",
        help="how many devices, or how many for each axis, like data=2,tensor=4: videos of the "
        "batch (data), tokens of a pass (sequence), attention heads (tensor)",
    )  # fmt: skip
    several_devices.add_argument(
        "--coordinator", metavar="HOST:PORT",
        help="where several processes meet, each started by this command with its own --process; a "
        "TPU pod's find each other",
    )  # fmt: skip
    several_devices.add_argument("--processes", type=positive, help="how many there are")
    several_devices.add_argument(
        "--process", type=natural, help="which of them this is, from 0; that one writes"
    )
    trim = parser.add_argument_group(
        "TokenTrim", "Defaults are the method's; presets have their own."
    )

    def add(name: str, what: str, **settings: Any) -> None:
        trim.add_argument(f"--{name}", help=f"{what} (default: {TRIM[name]})", **settings)

    add("p", "share of tokens that are unstable", type=float)
    add("lam", "deviations above the mean at which a chunk is abnormal", type=finite)
    add("warmup", "severities before the first test", type=int)
    add("retries", "most further attempts at an abnormal chunk", type=int)
    add("when", "what is judged", choices=("final", "first_step"))
    add("select", "which tokens are dropped", choices=POLICIES)
    add("accept", "which attempt is kept", choices=("always", "better", "consistent"))
    add("statistics", "of the severities so far", choices=("moments", "robust"))
    flag = {"action": "store_const", "const": True}
    trim.add_argument("--resample-noise", **flag, help="fresh noise for a retry")
    trim.add_argument("--prune-sink", **flag, help="drop tokens of sink frames too")
    return shown


def add_model(parser: argparse.ArgumentParser) -> None:
    """Adds which model is taken."""
    parser.add_argument(
        "--model", default="shapes",
        help="'shapes', which is embedded, or the folder of a model that `tt-jax fetch` or "
        "`python -m convert` has made",
    )  # fmt: skip


def add_loading(parser: argparse.ArgumentParser) -> None:
    """Adds how a model is loaded."""
    parser.add_argument(
        "--vae", choices=VAES, default="full",
        help="what decodes: the model's VAE, or a tiny one, much faster and less exact",
    )  # fmt: skip
    parser.add_argument(
        "--quantize", choices=BITS,
        help="round the weights of text encoder and transformer, to take half the memory",
    )  # fmt: skip
    parser.add_argument(
        "--allow-bidirectional", action="store_true",
        help="use a model that wasn't trained to generate chunk by chunk",
    )  # fmt: skip


def seed(text: str) -> int:
    """Type of --seed: 64 bits."""
    if not 0 <= int(text) < 2**64:
        raise argparse.ArgumentTypeError(f"a seed is between 0 and {2**64 - 1}, not {text}")
    return int(text)


def finite(text: str) -> float:
    """Type of a number that goes into the record."""
    if not math.isfinite(float(text)):
        raise argparse.ArgumentTypeError(f"a finite number is needed, not {text}")
    return float(text)


def positive(text: str) -> int:
    """Type of a count."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"at least 1 is needed, not {text}")
    return int(text)


def natural(text: str) -> int:
    """Type of a number that may be 0."""
    if int(text) < 0:
        raise argparse.ArgumentTypeError(f"at least 0 is needed, not {text}")
    return int(text)


def steps(text: str) -> tuple[int, ...]:
    """Type of --steps."""
    return tuple(int(step) for step in text.split(","))


def shift(text: str) -> float | str:
    """Type of --shift."""
    return UNWARPED if text == UNWARPED else finite(text)


def size(text: str) -> tuple[int, int]:
    """Type of --size: WIDTHxHEIGHT to (height, width)."""
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"a size is WIDTHxHEIGHT, like 832x480, not {text}")
    return int(match[2]), int(match[1])


def mesh(text: str) -> int | dict[str, int]:
    """Type of --mesh: how many devices, or how many for each axis."""
    if re.fullmatch(r"\d+", text):
        return positive(text)
    axes = dict(part.split("=", 1) for part in text.split(",") if "=" in part)
    if len(axes) != text.count(",") + 1 or axes.keys() - set(AXES):
        raise argparse.ArgumentTypeError(
            f"a mesh is a number of devices, or of each axis of {', '.join(AXES)}, like "
            f"data=2,tensor=4, not {text}"
        )
    return {axis: positive(count) for axis, count in axes.items()}


def port(text: str) -> int:
    """Type of --port."""
    if not 0 <= int(text) < 2**16:
        raise argparse.ArgumentTypeError(f"a port is between 0 and {2**16 - 1}, not {text}")
    return int(text)
