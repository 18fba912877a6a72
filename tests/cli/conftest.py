"""What the tests of commands share."""

import pytest

from tt_jax.cli import progress


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Every command runs in an empty folder, and says nothing while it runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(progress, "EVERY", 1e9)
