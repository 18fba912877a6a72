"""`tt-jax fetch`: known models from the hub, converted."""

import dataclasses
import fnmatch
from collections.abc import Callable
from pathlib import Path
from typing import Any

from convert.model import Wish, convert, existing
from convert.problems import BadInput
from convert.sources import Origin
from tt_jax.checkpoint import PARTS


@dataclasses.dataclass(frozen=True)
class Published:
    """Files of a repository: for each part, patterns of their names."""

    repository: str
    files: dict[str, tuple[str, ...]]


TOKENIZER = "google/umt5-xxl/spiece.model"
WAN = {
    "dit": ("diffusion_pytorch_model*.safetensors*", "config.json"),
    "vae": ("Wan2.1_VAE.pth",),
    "text": ("models_t5_umt5-xxl-enc-bf16.pth", TOKENIZER),
}
WAN_1_3B = Published("Wan-AI/Wan2.1-T2V-1.3B", WAN)
# A generator is a transformer alone: its other parts are those of the model it was made from.
KNOWN = {
    "wan2.1-1.3b": (WAN_1_3B,),
    "wan2.1-14b": (Published("Wan-AI/Wan2.1-T2V-14B", WAN),),
    "self-forcing": (
        Published("gdhe17/Self-Forcing", {"dit": ("checkpoints/self_forcing_dmd.pt",)}),
        WAN_1_3B,
    ),
    "rolling-forcing": (
        Published("TencentARC/RollingForcing", {"dit": ("*.pt",)}),
        WAN_1_3B,
    ),
}


def fetch(name: str, folder: Path, revision: str, say: Callable[[str], object]) -> list[str]:
    """Downloads a known model and converts it into `folder`; returns what was done, in lines.

    The first repository of `KNOWN` replaces its parts in `folder`; of the others come the parts
    that are then missing. revision: of the first repository; a branch, tag or commit. What was
    downloaded stays in the hub's cache, and an interrupted download goes on where it stopped.
    Licences are said before anything is downloaded. Raises BadInput, OSError.
    """
    try:
        import huggingface_hub
    except ImportError:
        raise BadInput(["fetch needs huggingface_hub: pip install 'tt-jax[convert]'."]) from None
    main, *others = KNOWN[name]
    there = set(existing(folder).parts)
    wanted = [(main, revision, set(main.files))]
    for other in others:
        missing = set(PARTS) - set(main.files) - there
        wanted += [(other, "main", missing)] if missing else []

    paths, origins = [], {}
    try:
        listed = [_list(huggingface_hub, *one) for one in wanted]
        for (published, _, _), (info, _) in zip(wanted, listed, strict=True):
            say(f"{published.repository} at {info.sha}: licence {_licence(info)}")
        for (published, _, _), (info, files) in zip(wanted, listed, strict=True):
            for file, sha256 in files.items():
                say(f"downloading {published.repository}/{file}")
                path = Path(
                    huggingface_hub.hf_hub_download(published.repository, file, revision=info.sha)
                )
                paths.append(path)
                origins[path] = Origin(published.repository, info.sha, sha256)
    except BadInput:
        raise
    except huggingface_hub.errors.RevisionNotFoundError:
        raise BadInput([f"{main.repository} has no revision {revision!r}."]) from None
    except Exception as error:  # of whichever HTTP client the hub's package uses
        raise OSError(f"downloading {name} failed: {str(error) or type(error).__name__}") from None
    weights = [path for path in paths if path.name != "config.json"]
    return convert(weights, folder, Wish(), origins)


def _list(hub: Any, published: Published, revision: str, parts: set[str]) -> tuple[Any, dict]:
    """What the hub says of a repository; the files wanted with their SHA-256. Raises BadInput."""
    info = hub.HfApi().model_info(published.repository, revision=revision, files_metadata=True)
    hashes = {file.rfilename: file.lfs.sha256 if file.lfs else None for file in info.siblings}
    files = {}
    for part, patterns in published.files.items():
        if part in parts:
            for pattern in patterns:
                found = fnmatch.filter(hashes, pattern)
                if not found and pattern != "config.json":
                    raise BadInput([f"{published.repository} has no {pattern} at {info.sha}."])
                if pattern == "*.pt" and len(found) > 1:
                    raise BadInput(
                        [
                            f"{published.repository} has several generators, download and convert "
                            f"one of them: {', '.join(found)}."
                        ]
                    )
                files |= {file: hashes[file] for file in found}
    return info, files


def _licence(info: Any) -> str:
    """As the model card states it."""
    card = info.card_data or {}
    stated = [card.get(key) for key in ("license", "license_name", "license_link")]
    return ", ".join(str(x) for x in stated if x) or "not stated; read the model card"
