"""How the settings become the command line of the engine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from kcode.opening import engine_options
from kcode.paths import find_paths
from kcode.settings import Settings


def test_contexts_are_kept_in_the_cache_folder_within_the_set_size(tmp_path: Path) -> None:
    paths = find_paths({"KCODE_HOME": str(tmp_path)})
    arguments = engine_options(tmp_path / "m.gguf", Settings(kv_disk_gb=2.5), paths).arguments(tmp_path / "s")
    at = arguments.index("--kv-dir")
    assert arguments[at : at + 4] == ["--kv-dir", str(tmp_path / "cache" / "contexts"), "--kv-disk-budget", "2500000000"]


def test_no_size_keeps_nothing_and_is_another_engine(tmp_path: Path) -> None:
    model = tmp_path / "m.gguf"
    model.touch()
    paths = find_paths({"KCODE_HOME": str(tmp_path)})
    off = engine_options(model, Settings(kv_disk_gb=0), paths)
    assert "--kv-dir" not in off.arguments(tmp_path / "s")
    assert off.key != engine_options(model, Settings(), paths).key
    assert off.key == replace(off).key
