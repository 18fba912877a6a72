"""What all tests share: checked annotations, strict promotion, recorded arrays, parity figures."""

import contextlib
import dataclasses
import os
from pathlib import Path

from quick import FLAGS, usual_fusions

os.environ["XLA_FLAGS"] = f"{FLAGS} {os.environ.get('XLA_FLAGS', '')}"

import jax
import jaxtyping
import pytest


def _jaxtyped(fn=None, **options):
    """The hook's decorator, which leaves classes alone: JAX makes records anew with placeholders
    (`tt_jax.contracts` looks at them where they are made), and settings look at themselves."""
    if fn is not None:
        return _decorate(fn, **options)
    return lambda ours: ours if isinstance(ours, type) else _decorate(ours, **options)


_decorate, jaxtyping.jaxtyped = jaxtyping.jaxtyped, _jaxtyped

# Every annotation of ours is checked whenever a function is called; an int is a float, as it is to
# type checkers.
jaxtyping.install_import_hook(
    ["tt_jax", "convert"], "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
)

from models import write_tiny_model  # noqa: E402
from recorded import SHARED  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

_figures: list[tuple[str, str, str, float, float]] = []


# Files of minutes with few tests: begun first, so that no worker ends alone with one.
LONG = (
    "shapes/training/test_training.py", "lab/test_run.py", "cli/test_known_models.py",
    "test_other_mesh.py", "cli/test_fetch.py", "strategies/test_flowmo.py", "test_rollout.py",
)  # fmt: skip


# Files that compare different programs bit for bit.
EXACT = (
    "test_invariants.py", "cache/test_policy_invariants.py", "models/test_parity_rollout.py",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: not item.path.as_posix().endswith(LONG))


@pytest.fixture(autouse=True, scope="module")
def _programs(request):
    """How a file's programs are compiled. They are forgotten afterwards: on a CPU each holds memory
    maps, of which Linux gives a process 65,530, and where the suite's are more XLA crashes."""
    usual = request.path.as_posix().endswith(EXACT)
    with usual_fusions() if usual else contextlib.nullcontext():
        yield
    jax.clear_caches()


@pytest.fixture
def exact():
    """Compiles anew and in the usual way, for a test that compares programs bit for bit."""
    jax.clear_caches()
    with usual_fusions():
        yield
    jax.clear_caches()


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Every command runs in an empty folder, and says nothing while it runs."""
    from tt_jax.cli import progress

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(progress, "EVERY", 1e9)


@pytest.fixture
def unchecked():
    """Lets wrong types through to our own refusals, as they come from people."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of arrays recorded from the originals; they are too large for the repository."""
    folder = SHARED / "golden"
    if not folder.is_dir():
        pytest.skip("the arrays recorded from the originals aren't here")
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """Folder of a tiny random model."""
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def tpu_mesh():
    """Makes a mesh of so many chips of a TPU, for whose compiler none has to be here."""
    from tt_jax.planning import compiler
    from tt_jax.planning.machines import MACHINES

    def make(chips: int, heads: int) -> jax.sharding.Mesh:
        machine = dataclasses.replace(MACHINES["v5e-4"], chips=chips)
        try:
            return compiler.mesh_of(machine, heads)
        except ValueError as reason:
            pytest.skip(str(reason))

    return make


@pytest.fixture
def parity_record():
    """Asserts a parity figure and keeps it for the table at the end of the run."""

    def record(part: str, reference: str, size: str, value: float, bound: float) -> None:
        _figures.append((part, reference, size, float(value), bound))
        assert value <= bound, f"{part} against {reference} ({size}): {value:.2e} > {bound:.0e}"

    return record


def pytest_terminal_summary(terminalreporter):
    if not _figures:
        return
    terminalreporter.section("parity: ||out - reference|| / ||reference||")
    rows = [("part", "reference", "size", "measured", "bound")]
    rows += [(*row[:3], f"{row[3]:.1e}", f"{row[4]:.0e}") for row in sorted(set(_figures))]
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        terminalreporter.write_line("  ".join(cells).rstrip())
