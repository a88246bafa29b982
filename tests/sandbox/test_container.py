"""Walls by Docker or Podman. What needs a real one runs where KCODE_TEST_IMAGE names an image with bash, git and Python."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kcode_sandbox.container import CONTAINERS, Mount, inner_environment, mounts_of, run_arguments
from kcode_sandbox.detect import open_sandbox
from kcode_sandbox.errors import SandboxUnavailableError
from kcode_sandbox.launch import Attachment
from kcode_sandbox.policy import Choice, Policy
from kcode_sandbox.repositories import protect
from tests.sandbox.conftest import SECRET, Start, bash, exists, names

IMAGE = os.environ.get("KCODE_TEST_IMAGE", "")


def real_engine() -> Choice | None:
    for engine in CONTAINERS if IMAGE else ():
        program = shutil.which(engine)
        if program and subprocess.run([program, "image", "inspect", IMAGE], capture_output=True, check=False).returncode == 0:
            return engine
    return None


ENGINE = real_engine()
real = pytest.mark.skipif(ENGINE is None, reason="neither docker nor podman has the image that KCODE_TEST_IMAGE names")


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """A program called docker, first on PATH, that notes how it is called and then is the given shell script."""

    def put(script: str) -> Path:
        folder = tmp_path / "bin"
        folder.mkdir()
        calls = tmp_path / "calls"
        (folder / "docker").write_text(f'#!/bin/bash\nprintf "%s\\n" "$*" >>{calls}\n{script}')
        (folder / "docker").chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
        return calls

    return put


async def refusal(policy: Policy, **changes: object) -> str:
    with pytest.raises(SandboxUnavailableError) as caught:
        await open_sandbox(replace(policy, **{"backend": "docker", "image": "an-image", **changes})).start()
    return str(caught.value)


async def test_what_is_missing_is_named(policy: Policy, program: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as bare:
        bare.setenv("PATH", "/nowhere")
        assert "docker is not installed" in await refusal(policy)
    program('[ "$1" = image ] && echo "No such image" >&2; exit 1')
    assert "--sandbox-image" in await refusal(policy, image="")
    assert "No such image; get it with `docker pull an-image`" in await refusal(policy)
    with pytest.raises(SandboxUnavailableError, match="docker run"):
        open_sandbox(replace(policy, backend="docker", image="an-image"), Attachment(0, 1, 2))


async def test_a_container_that_does_not_start_is_removed_and_its_words_are_passed_on(
    policy: Policy, program: Callable[[str], Path], repository: Path
) -> None:
    calls = program(
        'case "$1" in\nimage) echo "[\\"PATH=/opt/bin\\"]";;\ninfo) echo "[]";;\n'
        'run) echo "exec: \\"python3\\": executable file not found in \\$PATH" >&2; exit 127;;\nesac'
    )
    assert (await refusal(policy, workspace=repository)).startswith("the image an-image has no python3")
    _, _, run, removed = calls.read_text().splitlines()
    assert removed == f"rm --force {run.split('--name ')[1].split()[0]}"
    assert not exists(repository / ".git/commondir")


def test_the_walls_are_asked_for(policy: Policy, repository: Path) -> None:
    policy = replace(policy, workspace=repository, backend="docker", image="an-image", readable=(Path("/opt"),))
    git = protect(repository)
    try:
        mounts = mounts_of(policy, git, {}, None)
        arguments = run_arguments(policy, "docker", "a-name", mounts, rootless=False)
    finally:
        git.release()
    text = " ".join(arguments)
    for wall in ("--network none", "--read-only", "--cap-drop ALL", "--security-opt no-new-privileges", "--pull never", "--rm"):
        assert f" {wall} " in text
    assert f"--user {os.getuid()}:{os.getgid()}" in text
    assert "--user" not in run_arguments(policy, "docker", "a-name", mounts, rootless=True)
    hooks, workspace = f"{repository}/.git/hooks", f"type=bind,source={repository},target={repository}"
    assert f"type=bind,source={hooks},target={hooks},readonly" in arguments
    assert arguments.index(workspace) < arguments.index(f"type=bind,source={hooks},target={hooks},readonly")
    assert "type=bind,source=/opt,target=/opt,readonly" in arguments


def test_paths_of_every_kind_can_be_mounted() -> None:
    text = str(Mount(Path('/a,b/say "hi"=:c'), "/a"))
    assert next(csv.reader([text])) == ["type=bind", 'source=/a,b/say "hi"=:c', "target=/a", "readonly"]


def test_the_image_s_variables_stand_and_the_host_s_folders_do_not(policy: Policy) -> None:
    policy = replace(policy, environment=(*policy.environment, ("LANG", "de_DE.UTF-8"), ("VIRTUAL_ENV", "/home/me/venv")))
    inside = inner_environment(policy, {"PATH": "/image/bin", "GOPATH": "/go", "LANG": "C"})
    assert inside["PATH"].startswith("/image/bin:")
    assert (inside["GOPATH"], inside["LANG"]) == ("/go", "de_DE.UTF-8")
    assert "VIRTUAL_ENV" not in inside


@real
async def test_files_go_through_it_and_nothing_else_is_there(start: Start, repository: Path, home: Path) -> None:
    sandbox = await start(workspace=repository, backend=ENGINE, image=IMAGE)
    await sandbox.write("folder/a.txt", b"text")
    assert (repository / "folder/a.txt").read_text() == "text"
    result = await bash(sandbox, f"cat {home}/.ssh/id_ed25519; ls {home}; env; cat /proc/1/environ; echo x >/usr/x; echo after")
    assert SECRET not in result.output.decode()
    assert result.output.endswith(b"after\n")
    result = await bash(
        sandbox, "echo x >.git/hooks/pre-commit; mv .git gone; git config a.b c; echo 'x=1' >.envrc; git commit -qam x"
    )
    assert "pre-commit" not in names(repository / ".git/hooks")
    assert exists(repository / ".git/config")
    assert ".envrc" in result.held
    assert {violation.kind for violation in result.violations} >= {"held", "write"}


@real
async def test_the_shell_stays_and_the_network_is_off(start: Start) -> None:
    sandbox = await start(backend=ENGINE, image=IMAGE)
    shell = await sandbox.shell()
    await shell.run("cd /tmp; export A=1", 30)
    assert (await shell.run("echo $A; pwd", 30)).output == b"1\n/tmp\n"
    probe = "import socket; socket.create_connection(('192.0.2.1', 80), 2)"
    assert (await sandbox.exec(["python3", "-c", probe], timeout_s=30)).exit_code == 1


@real
async def test_reading_is_all_a_read_only_one_does(start: Start, workspace: Path) -> None:
    (workspace / "a").write_text("kept")
    sandbox = await start(backend=ENGINE, image=IMAGE, profile="read-only")
    await bash(sandbox, "echo x >a; echo x >b")
    assert names(workspace) == ["a"]
    assert (workspace / "a").read_text() == "kept"


@real
@pytest.mark.parametrize("left_out", ["--cap-drop ALL", "--network none", "--security-opt no-new-privileges"])
async def test_walls_that_do_not_stand_are_not_believed(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left_out: str
) -> None:
    true = shutil.which(str(ENGINE))
    folder = tmp_path / "bin"
    folder.mkdir()
    option, value = left_out.split()
    instead = {"--network": "--network host"}.get(option, "")
    script = f"""#!{sys.executable}
import os, sys
given = sys.argv[1:]
at = next((n for n in range(len(given) - 1) if given[n:n + 2] == [{option!r}, {value!r}]), None)
if at is not None:
    given[at:at + 2] = {instead!r}.split()
os.execv({true!r}, [{true!r}, *given])
"""
    (folder / str(ENGINE)).write_text(script)
    (folder / str(ENGINE)).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    sandbox = open_sandbox(replace(policy, backend=ENGINE or "docker", image=IMAGE))
    with pytest.raises(SandboxUnavailableError, match=r"the self-check failed|the system call filter: Permission denied"):
        await sandbox.start()


@real
def test_nothing_outlives_a_killed_session(policy: Policy, workspace: Path, tmp_path: Path) -> None:
    code = (
        "import asyncio, os, signal, sys\nfrom pathlib import Path\n"
        "from kcode_sandbox.detect import open_sandbox\nfrom kcode_sandbox.policy import Policy\n"
        "async def main():\n"
        f"    sandbox = open_sandbox(Policy(Path({str(workspace)!r}), backend={ENGINE!r}, image={IMAGE!r}))\n"
        "    await sandbox.start()\n"
        "    shell = await sandbox.shell()\n"
        "    await shell.run('setsid nohup sleep 4711 >/dev/null 2>&1 & echo started', 30)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.Popen([sys.executable, "-c", code])
    assert done.wait(120) == -9
    running = [str(shutil.which(str(ENGINE))), "ps", "--filter", f"name=kcode-{done.pid}-", "--quiet"]
    deadline = time.monotonic() + 60
    while subprocess.run(running, capture_output=True, check=True).stdout.strip():
        assert time.monotonic() < deadline, "the container is still there"
        time.sleep(0.2)
