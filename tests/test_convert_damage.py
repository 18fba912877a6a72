"""A slice of the converter's fuzzing and killing; the scripts do the rest."""

import pytest

pytest.importorskip("torch")

from fuzz_convert import fuzz
from kill_convert import kills


@pytest.mark.slow
def test_damaged_inputs():
    assert len(list(fuzz(range(40)))) == 40


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path):
    assert len(list(kills(5, tmp_path))) == 5
