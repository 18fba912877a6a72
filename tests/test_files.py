"""The one atomic writer, and folders."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tt_jax import files
from tt_jax.files import atomic, cache_folder, new_folder


def write(path, text, **settings):
    with atomic(path, **settings) as aside:
        aside.write_text(text)


def test_a_new_file_never_replaces_another(tmp_path):
    write(tmp_path / "a", "first", new=True)
    with pytest.raises(FileExistsError):
        write(tmp_path / "a", "second", new=True)
    assert os.listdir(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "first"
    write(tmp_path / "a", "third")
    assert (tmp_path / "a").read_text() == "third"


def test_a_file_system_without_links(tmp_path, monkeypatch):
    def unknown(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", unknown)
    test_a_new_file_never_replaces_another(tmp_path)


def test_threads_write_one_file(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: write(tmp_path / "a", str(i) * 1000), range(8)))
    assert os.listdir(tmp_path) == ["a"] and len(set((tmp_path / "a").read_text())) == 1
    assert not files._unfinished


def test_folders_of_ones_own(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: new_folder(tmp_path / "runs" / "a"), range(8)))
    assert {folder.name for folder in made} == {"a", *(f"a-{n}" for n in range(2, 9))}


def test_where_caches_lie(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("prompts") == tmp_path / "tt-jax" / "prompts"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder("prompts") == tmp_path / ".cache" / "tt-jax" / "prompts"
