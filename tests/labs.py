"""What laboratories leave behind, read for comparison."""

import csv


def table(folder):
    """The rows of a laboratory's results."""
    with (folder / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def contents(folder):
    """Every file of a folder, by its path inside."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
