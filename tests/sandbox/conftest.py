"""Real sandboxes in temporary folders. The home of these tests is theirs alone."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
from pytest_asyncio import is_async_test

from kcode_sandbox.detect import open_sandbox
from kcode_sandbox.environment import clean_environment
from kcode_sandbox.policy import Policy, Profile
from kcode_sandbox.sandbox import ExecResult, Sandbox

SECRET = "canary-4711"
HERE = Path(__file__).parent
Start = Callable[..., Awaitable[Sandbox]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One event loop for all of them, so that sandboxes can be shared."""
    for item in items:
        if item.path.is_relative_to(HERE) and is_async_test(item):
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with things that nobody inside may see."""
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    (home / ".ssh" / "id_ed25519").write_text(SECRET)
    (home / ".gitconfig").write_text("[user]\n\tname = Ada\n\temail = ada@example.org\n[alias]\n\tst = !touch /tmp/ran\n")
    return home.resolve()


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    return workspace.resolve()


@pytest.fixture
def policy(home: Path, workspace: Path) -> Policy:
    path = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
    environment = clean_environment({"PATH": path, "HOME": str(home), "AWS_SECRET_ACCESS_KEY": SECRET})
    return Policy(workspace, environment=tuple(environment.items()))


@pytest_asyncio.fixture(loop_scope="session")
async def start(policy: Policy) -> AsyncIterator[Start]:
    """Start a sandbox under the policy, changed by keyword; all are closed at the end."""
    async with AsyncExitStack() as stack:

        async def started(**changes: object) -> Sandbox:
            sandbox = open_sandbox(replace(policy, **changes))
            stack.push_async_callback(sandbox.close)
            await sandbox.start()
            return sandbox

        yield started


@pytest_asyncio.fixture(loop_scope="session", params=["workspace-write", "danger-full-access"])
async def sandbox(request: pytest.FixtureRequest, start: Start) -> Sandbox:
    """Both backends keep the same contract."""
    profile: Profile = request.param
    return await start(profile=profile)


@pytest_asyncio.fixture(loop_scope="session")
async def walled(start: Start) -> Sandbox:
    return await start()


@pytest_asyncio.fixture(scope="session", loop_scope="session", params=["workspace-write", "danger-full-access"])
async def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Sandbox]:
    """Of each backend one that is started once: for tests that neither change nor end it. Ask for `emptied` with it."""
    path = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
    environment = clean_environment({"PATH": path, "HOME": str(tmp_path_factory.mktemp("home"))})
    folder = tmp_path_factory.mktemp("shared").resolve()
    sandbox = open_sandbox(Policy(folder, profile=request.param, environment=tuple(environment.items())))
    await sandbox.start()
    yield sandbox
    await sandbox.close()


@pytest.fixture
def emptied(shared: Sandbox) -> Path:
    """The shared sandbox's workspace with nothing in it."""
    for path in shared.policy.workspace.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    return shared.policy.workspace


@pytest.fixture
def repository(workspace: Path) -> Path:
    git(workspace, "init", "--quiet", "--initial-branch=main")
    (workspace / "a.txt").write_text("one\n")
    (workspace / ".gitignore").write_text("ignored/\n*.log\n")
    git(workspace, "add", "--all")
    git(workspace, "-c", "user.name=T", "-c", "user.email=t@example.org", "commit", "--quiet", "--message=first")
    return workspace


def git(folder: Path, *arguments: str) -> str:
    """git on the host, as the user would run it afterwards."""
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "GIT_CONFIG_NOSYSTEM": "1"}
    done = subprocess.run(
        ["git", *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout


async def bash(sandbox: Sandbox, script: str, timeout_s: float = 60) -> ExecResult:
    return await sandbox.exec(["bash", "-c", script], timeout_s=timeout_s)


def processes_with(text: str) -> list[int]:
    """Host processes whose command line holds `text`."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if text.encode() in line:
                found.append(int(entry.name))
    return found


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def exists(path: Path) -> bool:
    return path.exists()


def found(folder: Path, pattern: str) -> list[Path]:
    return list(folder.glob(pattern))


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def host(*argv: str | Path) -> subprocess.CompletedProcess[str]:
    """A program on the host, to its end."""
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


def background(*argv: str | Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(argv, stdout=subprocess.PIPE)


def listening(*argv: str | Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(argv, stdin=subprocess.PIPE)


async def processes_seen(text: str, count: int) -> list[int]:
    """As `processes_with`, after at most thirty seconds for `count` of them to be there: a fork is seen before its exec."""
    deadline = time.monotonic() + 30
    while True:
        found = processes_with(text)
        if len(found) >= count or time.monotonic() > deadline:
            return found
        await asyncio.sleep(0.02)
