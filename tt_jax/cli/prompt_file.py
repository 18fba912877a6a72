"""`tt-jax generate --prompts FILE`: the videos that a file asks for, line by line."""

import csv
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tt_jax.prompts import check_prompts
from tt_jax.scenes import Changes, read_file, read_script

COLUMNS = ("prompt", "seed", "name", "script")
LONGEST = 100  # characters of a name
NAME = re.compile(r"\w(?:[\w .+=@()-]*[\w+=@()-])?")  # no path, not hidden, nothing cut off
TAKEN = ("index", "batch", "unfinished")  # the folder's own files


class Item(NamedTuple):
    """One video.

    Attributes:
        line: of the file, from 1.
        name: of its files, without suffix; no other item has it, in whatever case.
        script: its prompts, the first at 0 seconds.
        seconds: its length, if its scenes say so.
        seed: of all noise.
    """

    line: int
    name: str
    script: Changes
    seconds: float | None
    seed: int


def read(path: Path, seed: int) -> tuple[list[Item], list[str]]:
    """Reads a list of prompts.

    Args:
        path: a table with a header (`.csv`) or objects line by line (`.jsonl`), of `COLUMNS`, of
            which `prompt` or `script`, a file as `--script` takes it, must be there; any other
            file has one prompt a line.
        seed: of what has none of its own.

    Returns:
        The items, and a sentence for each line that can't be one.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it isn't UTF-8, or its header is wrong.
    """
    items: list[Item] = []
    wrong: list[str] = []
    names: dict[str, int] = {}
    same: dict[Any, int] = {}
    for line, entry in _entries(path):
        try:
            if isinstance(entry, str):
                raise ValueError(entry)
            item = _item(line, entry, path.parent, seed)
            if item.name.casefold() in names and not entry.get("name"):
                before = names[item.name.casefold()]
                raise ValueError(f"it asks for the video of line {before}: give it another seed.")
            if item.name.casefold() in names:
                before = names[item.name.casefold()]
                raise ValueError(f"the name {item.name!r} is that of line {before}.")
            what = item.script, item.seconds, item.seed
            if what in same:
                raise ValueError(f"it asks for the video of line {same[what]}: another seed?")
        except (ValueError, OSError) as error:
            wrong.append(f"line {line} of {path}: {error}")
            continue
        names[item.name.casefold()] = same[what] = line
        items.append(item)
    if not items and not wrong:
        raise ValueError(f"{path} is empty: give it one prompt a line.")
    return items, wrong


def _entries(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Each line's number and what it says, or what is wrong with it."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise FileNotFoundError(f"there is no file {path}.") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} isn't a text file in UTF-8.") from None
    lines = text.splitlines()
    if path.suffix.lower() == ".csv":
        table = csv.DictReader(lines, strict=True)
        header = table.fieldnames or []
        if not {"prompt", "script"} & set(header) or set(header) - set(COLUMNS):
            raise ValueError(f"the first line of {path} must name columns of {', '.join(COLUMNS)}.")
        try:
            for row in table:
                fits = None not in row and None not in row.values()
                yield table.line_num, row if fits else f"it hasn't {len(header)} values."
        except csv.Error as error:
            raise ValueError(f"line {table.line_num} of {path}: {error}.") from None
        return
    objects = path.suffix.lower() in (".jsonl", ".ndjson")
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield number, _object(line) if objects else {"prompt": line}


def _object(line: str) -> dict[str, Any] | str:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return "it is no JSON."
    if not isinstance(entry, dict):
        return 'it must be an object like {"prompt": "a cat"}.'
    if strange := entry.keys() - set(COLUMNS):
        return f"there is no {min(strange)!r}, only {', '.join(COLUMNS)}."
    return {name: value for name, value in entry.items() if value is not None}


def _item(line: int, entry: dict[str, Any], folder: Path, seed: int) -> Item:
    """Raises ValueError or OSError."""
    for column in ("prompt", "name", "script"):
        if not isinstance(entry.get(column, ""), str):
            raise ValueError(f"its {column} is no text.")
    prompt, file = entry.get("prompt", ""), entry.get("script", "")
    if prompt.strip() and file:
        raise ValueError("it has a prompt and a script: give either.")
    script, seconds = (read_file(folder / file), None) if file else read_script(prompt.strip())
    check_prompts([change.prompt for change in script])
    given = entry.get("seed", "")
    if given != "":
        digits = isinstance(given, str) and re.fullmatch(r"\d+", given.strip(), re.ASCII)
        if not digits and (isinstance(given, bool) or not isinstance(given, int)):
            raise ValueError(f"its seed is a whole number, not {given!r}.")
        seed = int(given)
        if not 0 <= seed < 2**64:
            raise ValueError(f"a seed is between 0 and {2**64 - 1}, not {seed}.")
    name = entry.get("name", "").strip()
    if not name:
        words = re.sub(r"[^\w]+", "-", script[0].prompt.lower()).strip("-")[:40].rstrip("-")
        told = json.dumps([[list(change[:3]) for change in script], seconds, seed])
        name = f"{words or 'video'}-{hashlib.sha256(told.encode()).hexdigest()[:8]}"
    elif not NAME.fullmatch(name) or len(name) > LONGEST or name.lower() in TAKEN:
        raise ValueError(f"{name!r} is no name for files: letters, digits, spaces, any of _.+=@()-")
    return Item(line, name, script, seconds, seed)
