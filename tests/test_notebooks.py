import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs(path):
    """`make notebooks` executes them; here, that nothing of an execution was committed."""
    notebook = json.loads(path.read_text())
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code)
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    opening = "".join(notebook["cells"][0]["source"])
    assert opening.startswith("# ") and "you will have learnt" in opening.lower()
