"""`tt-jax fetch`: known models from the hub, converted."""

import dataclasses
import fnmatch
import importlib.util
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from convert.known import KNOWN, Published
from convert.lora import Wanted
from convert.model import convert
from convert.network import reason
from convert.plan import Request, existing
from convert.problems import BadInput
from convert.sources import Origin
from tt_jax.checkpoint import PARTS


@dataclasses.dataclass(frozen=True)
class Listing:
    """What is to be had of a repository.

    Attributes:
        published: The repository.
        commit: The commit there.
        files: The files wanted, with their SHA-256 where it is known.
        licence: As it is stated.
        cached: The folder of the hub's cache that has all of them, if the hub can't be reached.
    """

    published: Published
    commit: str
    files: Mapping[str, str | None]
    licence: str
    cached: Path | None = None


SETTINGS = "config.json"  # beside weights; not every repository has it


def fetch(name: str, folder: Path, revision: str, say: Callable[[str], object]) -> list[str]:
    """Downloads a known model and converts it.

    Its own parts replace those in `folder`; of its base come the parts that are then missing. What
    was downloaded stays in the hub's cache, and an interrupted download goes on where it stopped;
    without the hub, its cache is enough if everything is there. Licences are said before anything
    is downloaded.

    Args:
        name: A key of `KNOWN`.
        folder: The model's folder.
        revision: Of its own repository; a branch, tag or commit.
        say: Told what is happening, in lines.

    Returns:
        What was done, in lines.

    Raises:
        BadInput: It can't be fetched as asked for; nothing was written.
        OSError: The hub can't be reached, or writing failed; nothing was written.
    """
    try:
        import huggingface_hub
    except ImportError:
        raise BadInput(["fetch needs huggingface_hub: pip install 'tt-jax[convert]'."]) from None
    known = KNOWN[name]
    main, there = known.published, set(existing(folder).parts)
    wanted = [(main, revision, set(main.files))]
    if known.base is not None and (missing := set(PARTS) - set(main.files) - there):
        wanted.append((KNOWN[known.base].published, "main", missing))
    _check_torch(wanted)

    listed = [_list(huggingface_hub, *one, say) for one in wanted]
    for listing in listed:
        one = next(one for one in KNOWN.values() if one.published is listing.published)
        say(
            f"{listing.published.repository} at {listing.commit}: licence {listing.licence}; known "
            f"as {one.licence}"
        )
    origins = {}
    for (_, asked, _), listing in zip(wanted, listed, strict=True):
        for path, sha256 in _download(huggingface_hub, listing, asked, say):
            origins[path] = Origin(listing.published.repository, listing.commit, sha256)
    added = [p for p in origins if any(fnmatch.fnmatch(p.as_posix(), f"*/{x}") for x in main.lora)]
    weights = [path for path in origins if path.name != SETTINGS and path not in added]
    request = Request(
        kind=known.kind if "dit" in main.files else None,
        ema=False if known.ema is False else None,  # an average is taken wherever there is one
        loras=tuple(map(Wanted, added)),
        rollout=known.rollout,
    )
    return convert(weights, folder, request, origins)


def _check_torch(wanted: Iterable[tuple[Published, str, set[str]]]) -> None:
    """Raises BadInput if a file will be there that can't be read; before it is downloaded."""
    pickled = [
        pattern
        for published, _, parts in wanted
        for part in parts & set(published.files)
        for pattern in _patterns(published, {part})
        if pattern.endswith((".pt", ".pth"))
    ]
    if pickled and importlib.util.find_spec("torch") is None:
        raise BadInput(
            [f"reading {', '.join(sorted(pickled))} needs torch: pip install 'tt-jax[convert]'."]
        )


def _patterns(published: Published, parts: set[str]) -> list[str]:
    """Of the files of these parts."""
    patterns = [x for part in published.files if part in parts for x in published.files[part]]
    return patterns + [x for x in published.lora if "dit" in parts]


def _list(
    hub: Any, published: Published, revision: str, parts: set[str], say: Callable[[str], object]
) -> Listing:
    """What the hub says of a repository, or what its cache has. Raises BadInput, OSError."""
    name = published.repository
    patterns = _patterns(published, parts)
    try:
        info = hub.HfApi().model_info(name, revision=revision, files_metadata=True)
        hashes = {file.rfilename: file.lfs.sha256 if file.lfs else None for file in info.siblings}
        return Listing(published, info.sha, _matching(name, hashes, patterns), _licence(info))
    except BadInput:
        raise
    except hub.errors.RevisionNotFoundError:
        raise BadInput([f"{name} has no revision {revision!r}."]) from None
    except Exception as error:  # of whichever HTTP client the hub's package uses
        why = reason(hub, error, name)
        cached = _cached(hub, published, revision, patterns)
        if cached is None:
            cache = hub.constants.HF_HUB_CACHE
            raise OSError(f"{why} And {cache} doesn't have all of {name} at {revision}.") from None
        say(f"{why} {name} is taken from {hub.constants.HF_HUB_CACHE}.")
        return cached


def _cached(hub: Any, published: Published, revision: str, patterns: list[str]) -> Listing | None:
    """What the hub's cache has of a repository; None if that isn't everything."""
    try:
        folder = Path(
            hub.snapshot_download(
                published.repository,
                revision=revision,
                allow_patterns=patterns,
                local_files_only=True,
            )
        )
    except Exception:  # of many kinds, and all of them mean that it isn't there
        return None
    files = {}
    for path in folder.rglob("*"):
        if path.is_file():
            # The cache names the content of a large file by its hash, and links to it.
            blob = path.resolve().name
            hashed = re.fullmatch("[0-9a-f]{64}", blob)
            files[path.relative_to(folder).as_posix()] = blob if hashed else None
    try:
        matching = _matching(published.repository, files, patterns)
    except BadInput:
        return None
    return Listing(published, folder.name, matching, "as when it was downloaded", folder)


def _matching(
    repository: str, hashes: Mapping[str, str | None], patterns: list[str]
) -> dict[str, str | None]:
    """The files that match, with their hashes. Raises BadInput if some pattern has none."""
    files = {}
    for pattern in patterns:
        found = fnmatch.filter(hashes, pattern)
        if not found and not pattern.endswith(SETTINGS):
            raise BadInput([f"{repository} has no {pattern}."])
        if pattern.endswith(".*"):  # one of several formats
            found = sorted(found, key=lambda file: not file.endswith(".safetensors"))[:1]
        files |= {file: hashes[file] for file in found}
    return files


def _download(
    hub: Any, listing: Listing, revision: str, say: Callable[[str], object]
) -> Iterable[tuple[Path, str | None]]:
    """Brings the files, each with its SHA-256. Raises BadInput, OSError."""
    name = listing.published.repository
    for file, sha256 in listing.files.items():
        if listing.cached:
            yield listing.cached / file, sha256
            continue
        say(f"downloading {name}/{file}")
        try:
            # By the name of the revision: so the cache knows it, should the hub be away next time.
            path = Path(hub.hf_hub_download(name, file, revision=revision))
        except Exception as error:  # as above
            raise OSError(f"{file} can't be downloaded: {reason(hub, error, name)}") from None
        if listing.commit not in path.parts:
            raise BadInput([f"{name} was changed while it was downloaded: fetch it again."])
        yield path, sha256


def _licence(info: Any) -> str:
    """As the model card states it."""
    card = info.card_data or {}
    stated = [card.get(key) for key in ("license", "license_name", "license_link")]
    return ", ".join(str(x) for x in stated if x) or "not stated; read the model card"
