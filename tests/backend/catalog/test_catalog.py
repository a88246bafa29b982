"""Names, files and what is said when there is neither."""

from __future__ import annotations

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kcode_backend.catalog import CATALOG, DEFAULT_MODEL, ModelListing, find, folder_bytes, list_models, partial_folder, remove
from kcode_backend.errors import NotInstalled, UnknownModel

DEFAULT = CATALOG[0]


def test_entries_are_complete() -> None:
    assert len({entry.name for entry in CATALOG}) == len({entry.file for entry in CATALOG}) == len(CATALOG)
    for entry in CATALOG:
        assert len(entry.sha256) == 64
        assert entry.bytes > 1_000_000
        assert entry.hub is not None or entry.parts
    assert DEFAULT.name == DEFAULT_MODEL
    assert [part.member for part in DEFAULT.parts[:2] + DEFAULT.parts[-1:]] == [
        "data/part01.bin",
        "data/part02.bin",
        "data/part22.bin",
    ]


def test_listing_shows_known_installed_and_unfinished_models(tmp_path: Path) -> None:
    models = tmp_path / "models"
    known = ModelListing(DEFAULT.name, DEFAULT, None, DEFAULT.bytes, 0)
    assert list_models(models) == [known, *[ModelListing(e.name, e, None, e.bytes, 0) for e in CATALOG[1:]]]
    partial = partial_folder(DEFAULT.name, models)
    partial.mkdir(parents=True)
    (partial / "data").write_bytes(bytes(10))
    (models / "mine.gguf").write_bytes(bytes(5))
    (models / "notes.txt").write_bytes(b"")
    listings = list_models(models)
    assert listings[0] == ModelListing(DEFAULT.name, DEFAULT, None, DEFAULT.bytes, 10)
    assert listings[-1] == ModelListing("mine", None, models / "mine.gguf", 5, 0)
    (models / DEFAULT.file).write_bytes(bytes(7))
    assert list_models(models)[0] == ModelListing(DEFAULT.name, DEFAULT, models / DEFAULT.file, 7, 10)


def test_find_takes_names_and_paths(tmp_path: Path) -> None:
    (tmp_path / DEFAULT.file).write_bytes(b"x")
    (tmp_path / "mine.gguf").write_bytes(b"x")
    other = tmp_path / "elsewhere"
    other.mkdir()
    (other / "model.bin").write_bytes(b"x")
    assert find(DEFAULT.name, tmp_path) == tmp_path / DEFAULT.file
    assert find("mine", tmp_path) == tmp_path / "mine.gguf"
    assert find(str(other / "model.bin"), tmp_path) == other / "model.bin"


def test_find_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(NotInstalled) as caught:
        find(DEFAULT.name, tmp_path)
    assert str(caught.value) == f"model {DEFAULT.name} is not installed; run: kcode models pull {DEFAULT.name}"
    with pytest.raises(
        UnknownModel,
        match=r"there is no model 'nobody'; known: qwen2\.5-coder-1\.5b.*; or give the path of a \.gguf file or of a folder",
    ):
        find("nobody", tmp_path)
    for path in ("nobody.gguf", "some/where"):
        with pytest.raises(UnknownModel, match=f"there is no model file {path}"):
            find(path, tmp_path)


def test_remove_frees_the_file_and_the_unfinished_pull(tmp_path: Path) -> None:
    partial = partial_folder(DEFAULT.name, tmp_path)
    partial.mkdir(parents=True)
    (partial / "data").write_bytes(bytes(10))
    (tmp_path / DEFAULT.file).write_bytes(bytes(7))
    assert remove(DEFAULT.name, tmp_path) == 17
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == []
    with pytest.raises(UnknownModel, match=f"model {DEFAULT.name} is not installed in {tmp_path}"):
        remove(DEFAULT.name, tmp_path)


def test_a_folder_of_safetensors_is_a_model_under_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "Tiny-2.5"
    folder.mkdir()
    (folder / "config.json").write_bytes(bytes(3))
    with pytest.raises(UnknownModel, match=r"is a folder without config\.json and safetensors"):
        find(str(folder), tmp_path)
    (folder / "model.safetensors").write_bytes(bytes(4))
    assert list_models(tmp_path)[-1] == ModelListing("Tiny-2.5", None, folder, 7, 0)
    assert find("Tiny-2.5", tmp_path) == folder
    assert find(str(folder), tmp_path / "nowhere") == folder
    assert remove("Tiny-2.5", tmp_path) == 7
    assert not folder.exists()


def test_a_folder_that_changes_meanwhile_is_measured(tmp_path: Path) -> None:
    """A downloader makes and removes scratch folders while its progress is read."""
    (tmp_path / "kept").write_bytes(bytes(10))
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            for number in range(20):
                scratch = tmp_path / f"scratch{number}" / "inner"
                scratch.mkdir(parents=True)
                (scratch / "part").touch()
            for number in range(20):
                shutil.rmtree(tmp_path / f"scratch{number}")

    with ThreadPoolExecutor(1) as pool:
        churning = pool.submit(churn)
        try:
            assert {folder_bytes(tmp_path) for _ in range(300)} == {10}
        finally:
            stop.set()
        churning.result()
