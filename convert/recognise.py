"""What a file is that was taken for weights: told by its first bytes, with what to do about it."""

import re
from pathlib import Path

HEAD = 4096  # bytes that are looked at

LFS = b"version https://git-lfs"
APPLE_DOUBLE = b"\x00\x05\x16\x07"  # what macOS keeps of a file where a disk has no place for it
GGUF = b"GGUF"
ARCHIVES = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"(\xb5/\xfd": "zstd",
    b"7z\xbc\xaf": "7z",
    b"Rar!": "rar",
}
PAGE = re.compile(r"\s*<(!doctype|html|head|body|script|\?xml|error|!--)", re.IGNORECASE)
TITLE = re.compile(r"<title[^>]*>(.*?)</title>", re.IGNORECASE | re.DOTALL)


def mistaken(path: Path, head: bytes) -> str | None:
    """Says what a file is if it can't be weights.

    Args:
        path: The file, for the sentence.
        head: Its first `HEAD` bytes.

    Returns:
        A sentence with what to do; None for what may be weights.
    """
    if not head:
        return f"{path} is empty: download it again."
    if head.startswith(LFS):
        size = re.search(rb"size (\d{1,15})", head)
        of = f" ({int(size[1]) / 1e9:.2f} GB)" if size else ""
        return (
            f"{path} is a Git LFS pointer, which only names the weights{of}: run `git lfs pull` in "
            "its folder, or download the file itself."
        )
    if head.startswith(APPLE_DOUBLE):
        return f"{path} is what macOS left beside a file: give the one without ._ before its name."
    if head.startswith(GGUF):
        return (
            f"{path} is a GGUF file, whose weights are quantised: take the checkpoint in "
            "safetensors or torch's format."
        )
    for magic, name in ARCHIVES.items():
        if head.startswith(magic):
            return f"{path} is a {name} archive: unpack it, and give what was in it."
    if head[257:262] == b"ustar":
        return f"{path} is a tar archive: unpack it, and give what was in it."
    text = as_text(head)
    if text is None:
        return None
    if PAGE.match(text):
        return (
            f"{path} is {page(text)}, not weights: the server wanted a login, or the link wasn't "
            "the file's own. Log in, accept the licence if there is one, and download it again."
        )
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return f"{path} is text that begins {line[:80]!r}, not weights: download it again."


def as_text(head: bytes) -> str | None:
    """The bytes as text, None if they aren't; a character cut off at the end doesn't matter."""
    for cut in range(4):
        try:
            text = head[: len(head) - cut].decode("utf-8-sig")
        except UnicodeDecodeError:
            continue
        return text if all(c.isprintable() or c in "\r\n\t\f" for c in text) else None
    return None


def page(text: str) -> str:
    """A web page in words: "a web page ('Sign in')"."""
    title = TITLE.search(text)
    return f"a web page ({' '.join(title[1].split())[:80]!r})" if title else "a web page"
