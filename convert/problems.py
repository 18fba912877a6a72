"""One report of everything that is wrong with what was given."""

from collections.abc import Iterable


class BadInput(ValueError):
    """What was given can't be converted.

    Attributes:
        problems: A line for every reason.
    """

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = [printable(problem) for problem in problems]
        count = len(self.problems)
        title = f"{count} problem{'s' if count > 1 else ''}, nothing was written:"
        super().__init__("\n  ".join([title, *self.problems]))


def printable(text: str) -> str:
    """The text with whatever could move a terminal's cursor, or not be printed, as escapes."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
