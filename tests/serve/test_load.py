"""A short run of `tests/load_serve.py`, as it is run for minutes by hand."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "load_serve.py"


@pytest.mark.slow
def test_visitors_who_come_and_vanish_leave_nothing_behind():
    command = [sys.executable, str(SCRIPT), "--clients", "8", "--seconds", "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
