"""The pages of the docs: every public name is there, and every link of theirs leads somewhere."""

import re
import tomllib
from pathlib import Path

import pytest

import tt_jax

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / ".docs" / "pages"
WRITTEN = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "notebooks" / "README.md",
           *sorted(PAGES.rglob("*.md")))  # fmt: skip


def test_every_public_name_is_on_the_api_page():
    shown = re.findall(r"^::: tt_jax\.(\w+)$", (PAGES / "api.md").read_text(), re.MULTILINE)
    assert sorted(shown) == sorted(tt_jax.__all__)


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    links = re.findall(r"\]\(([^)#\s]+)\)", path.read_text(encoding="utf-8"))
    lost = [link for link in links if "://" not in link and not (path.parent / link).exists()]
    assert not lost


def test_every_notebook_has_a_badge():
    text = (ROOT / "notebooks" / "README.md").read_text()
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        address = rf"^\[{path.stem[:2]}\]: https://colab\S+/notebooks/{path.name}$"
        assert re.search(address, text, re.MULTILINE), path.name
        assert f"][{path.stem[:2]}] | [{path.stem}]({path.name})" in text


def test_a_version_is_the_same_wherever_it_stands():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == tt_jax.__version__
    cited = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert cited[1] == tt_jax.__version__
    assert f"\n## {tt_jax.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
