"""Walls without namespaces, for machines that deny them: Landlock and a system call filter. Degraded, and only when named.

What no mount hides can be seen by name, what no mount pins is put back after each command (mending.py), and no socket can be made
at all while the network is off. docs/sandbox.md lists what is not held.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

from kcode_sandbox.bubblewrap import Surroundings, check_workspace, closed_to_others, home_of, set_canaries, survey
from kcode_sandbox.cgroup import Group, make_group
from kcode_sandbox.connection import Connection, start_process
from kcode_sandbox.environment import DEFAULTS
from kcode_sandbox.errors import SandboxUnavailableError
from kcode_sandbox.gitconfig import private_git_configuration
from kcode_sandbox.guard import Guard
from kcode_sandbox.launch import PACKAGE, Attachment, attached, greet, worker_argv
from kcode_sandbox.mending import Mending, TooLarge
from kcode_sandbox.places import Places
from kcode_sandbox.policy import Policy
from kcode_sandbox.protocol import Head
from kcode_sandbox.repositories import Protection, protect
from kcode_sandbox.seccomp import filter_without_namespaces
from kcode_sandbox.toolchains import Toolchains, outermost, visible_path
from kcode_sandbox.watch import Evidence
from kcode_sandbox.worker import landlock

LAUNCH_ENVIRONMENT = {"PATH": "/usr/bin:/bin"}
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty")
PREFIX = "kcode-session-"
FOLDERS = ("home", "tmp", "bin")


def fault_of_kernel() -> str:
    """Why there can be no such walls here; "" when there can."""
    abi = landlock.version()
    if not abi:
        return "this kernel has no Landlock, or it is not among those in /sys/kernel/security/lsm"
    if abi < landlock.WALLS_VERSION:
        return f"this kernel's Landlock has version {abi}, at least {landlock.WALLS_VERSION} is needed (Linux 6.2)"
    return ""


def residue() -> tuple[str, ...]:
    """What these walls do not hold on this kernel."""
    found = [
        "names, sizes and times of files outside can be seen, and their modes and times changed where you own them",
        "a file outside can be written that has a further name in the workspace, by a hard link",
        "your other processes can be seen in /proc, and their command lines read",
        "git's configuration, hooks and what steers programs are put back after each command, not read-only while it runs",
    ]
    if landlock.version() < landlock.SCOPES_VERSION:
        found.append("your other processes can be signalled (the kernel's Landlock is older than version 6)")
    return tuple(found)


class LandlockBackend:
    """One backend serves one sandbox."""

    def __init__(self, attachment: Attachment | None = None) -> None:
        self._attachment = attachment
        self._git = Protection()
        self._mending = Mending()
        self._group = Group()
        self._guards: list[Guard] = []
        self._sweeping = threading.Lock()
        self._evidence: Evidence | None = None
        self._session: Path | None = None
        self._lock = -1

    @property
    def protected(self) -> tuple[Path, ...]:
        """What is put back when it was changed; known once launched."""
        return (*self._mending.kept, *self._mending.watched)

    @property
    def bounds_group(self) -> bool:
        return bool(self._group.folders)

    @property
    def bounds_memory(self) -> bool:
        return self._group.bounds_memory

    def description(self, policy: Policy) -> str:
        return f"Landlock (degraded) · {policy.profile} · network {policy.network_text}"

    async def launch(self, policy: Policy) -> Connection:
        home = home_of(policy)
        _check(policy, home)
        around = survey(policy, home)
        try:
            if policy.profile == "workspace-write":
                self._remember(policy, around.venvs)
            _remove_abandoned()
            self._session, self._lock = _session_folder(around.programs)
            self._group = make_group(policy.limits.processes, policy.limits.memory_bytes)
            return await self._launch(policy, around, home, self._session)
        except BaseException:
            self.tidy()
            raise

    def _remember(self, policy: Policy, venvs: Iterable[Path]) -> None:
        folders = (policy.workspace, *policy.writable)
        self._git = Protection()
        for folder in folders:
            self._git.add(protect(folder))
        # Nothing would keep a placeholder in its place.
        placed = {path for path, _ in self._git.locks}
        self._git.release()
        kept = [path for path in self._git.readonly if path not in placed]
        absent = [git / name for git in self._git.known if git.is_dir() for name in ("commondir", "config.worktree")]
        self._mending = Mending()
        try:
            self._mending.remember(kept, [*placed, *absent], venvs)
        except TooLarge as error:
            raise SandboxUnavailableError(
                f"{error} and could not be put back when a command changes it; use bubblewrap, or move it out of the workspace"
            ) from error
        self._guards = [Guard(folder, frozenset(self._git.known)) for folder in folders]

    async def _launch(self, policy: Policy, around: Surroundings, home: Path, session: Path) -> Connection:
        with ExitStack() as stack:
            canary, listener = set_canaries(stack)
            descriptors, stdio = attached(self._attachment)
            argv = self._group.wrap(worker_argv(str(PACKAGE)))
            connection = await start_process(argv, LAUNCH_ENVIRONMENT, "/", descriptors)
            hello: Head = {
                "workspace": str(policy.workspace),
                "environment": _environment(policy, around.toolchains, session),
                "private_home": True,
                "walls": {
                    "parent": os.getpid(),
                    "places": _places(policy, around, self._git, session),
                    "tcp": policy.network == "on",
                    "filter": filter_without_namespaces(network=policy.network == "on").hex(),
                },
                "limits": _limits_of(policy, self._group),
                "check": {"canary": str(canary), "port": listener.getsockname()[1], "protected": []},
                **stdio,
            }
            facts = await greet(connection, hello, await private_git_configuration(home))
        toolchains = around.toolchains
        places = Places(policy, self.protected, tuple(toolchains.covered), toolchains.roots)
        self._evidence = Evidence(places, (), self._group.folders)
        fault = _find_fault(facts, policy)
        if fault:
            connection.kill()
            await connection.close()
            raise SandboxUnavailableError(f"the self-check failed: {fault}; nothing was run")
        return connection

    def guard(self) -> list[str]:
        """Blocks for the time of a walk through the workspace."""
        return self._sweep(whole=False)

    def _sweep(self, *, whole: bool) -> list[str]:
        with self._sweeping:
            found = self._mending.mend(whole=whole)
            for guard in self._guards:
                found += [guard.workspace / name for name in guard.sweep()]
        if not self._guards:
            return []
        top = self._guards[0].workspace
        return [str(path.relative_to(top) if path.is_relative_to(top) else path) for path in found]

    def adapt(self, before: Policy, policy: Policy) -> bool:
        return False

    def evidence(self) -> Evidence | None:
        return self._evidence

    def tidy(self) -> None:
        self._sweep(whole=True)
        self._git.release()
        self._group.remove()
        session, self._session = self._session, None
        if session is not None:
            shutil.rmtree(session, ignore_errors=True)
            os.close(self._lock)


def _check(policy: Policy, home: Path) -> None:
    fault = fault_of_kernel()
    if fault:
        raise SandboxUnavailableError(f"{fault}; use bubblewrap, or a newer kernel")
    if policy.network == "allow-list":
        raise SandboxUnavailableError(
            f"the network {policy.network_text} needs a network namespace, which Landlock is not; choose --network off or on"
        )
    check_workspace(policy.workspace, home)
    for folder in (policy.workspace, *policy.writable) if policy.profile == "workspace-write" else ():
        for path in (PACKAGE, *policy.protect):
            if path.is_relative_to(folder) and path.exists():
                raise SandboxUnavailableError(
                    f"{path} is kcode's own and lies in {folder}, where Landlock cannot make it read-only; use bubblewrap, or "
                    "run kcode from another installation"
                )


def _session_folder(programs: Iterable[tuple[str, Path]]) -> tuple[Path, int]:
    """The private folders, new, and the descriptor that says they are in use; `programs` can be called from one of them."""
    while True:
        session = Path(tempfile.mkdtemp(prefix=PREFIX)).resolve()
        lock = _lock(session)
        # Before it was locked, another start may have taken it for an abandoned one.
        if lock is not None and session.is_dir():
            break
    for name in FOLDERS:
        (session / name).mkdir()
    for name, path in programs:
        (session / "bin" / name).symlink_to(path)
    return session, lock


def _remove_abandoned() -> None:
    """Private folders of sessions whose kcode was killed: nobody holds their lock."""
    for path in Path(tempfile.gettempdir()).resolve().glob(f"{PREFIX}*"):
        fd = _lock(path)
        if fd is not None:
            shutil.rmtree(path, ignore_errors=True)
            os.close(fd)


def _lock(session: Path) -> int | None:
    """A descriptor that locks the folder as long as it is open; None when it is another user's, or in use."""
    try:
        fd = os.open(session, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    with suppress(BlockingIOError):
        if os.fstat(fd).st_uid == os.getuid():
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
    os.close(fd)
    return None


def _places(policy: Policy, around: Surroundings, git: Protection, session: Path) -> Head:
    toolchains = around.toolchains
    files, folders = closed_to_others("/etc")
    closed = {*files, *folders, *map(str, toolchains.covered)}
    read: list[str] = []
    names: list[str] = []
    for top in ("/usr", *(f"/{name}" for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32")), "/proc"):
        read.append(top)
    for top in ("/etc", *map(str, outermost([*toolchains.roots, *policy.readable]))):
        for path, is_whole in _open_parts(top, closed):
            (read if is_whole else names).append(path)
    read += [str(PACKAGE), str(session / "bin"), *(str(path) for _, path in around.programs), str(policy.workspace)]
    resolver = os.path.realpath("/etc/resolv.conf")
    if policy.network == "on":
        read.append(resolver)
    write = [str(session / "home"), str(session / "tmp")]
    if policy.profile == "workspace-write":
        write += [str(path) for path in (policy.workspace, *policy.writable, *git.shared)]
    return {"read": read, "list": names, "write": write, "devices": list(DEVICES)}


def _open_parts(top: str, closed: set[str]) -> Iterator[tuple[str, bool]]:
    """`top` whole where nothing in it is closed; else its names, and its open parts. A rule reaches all below its folder."""
    if top in closed:
        return
    if not any(path.startswith(f"{top}/") for path in closed):
        yield top, True
        return
    yield top, False
    for entry in os.scandir(top):
        if not entry.is_symlink():
            yield from _open_parts(entry.path, closed)


def _environment(policy: Policy, toolchains: Toolchains, session: Path) -> dict[str, str]:
    given = DEFAULTS | dict(policy.environment)
    roots = [*toolchains.roots, *policy.readable, *policy.writable, policy.workspace]
    path = visible_path(given["PATH"], roots) or DEFAULTS["PATH"]
    inside, home = str(session / "tmp"), str(session / "home")
    moved = {"HOME": home, "TMPDIR": inside, "CARGO_HOME": f"{home}/.cargo", "PATH": f"{path}:{session / 'bin'}"}
    for name, folder in (("RUSTUP_HOME", ".rustup"), ("PYENV_ROOT", ".pyenv")):
        if (home_of(policy) / folder).is_dir():
            moved[name] = given.get(name, str(home_of(policy) / folder))
    # What is compiled is not left in virtual environments, which count as changed then.
    return given | moved | {"PYTHONPYCACHEPREFIX": f"{home}/.cache/python"}


def _limits_of(policy: Policy, group: Group) -> Head:
    """A user's bound counts all that the user runs, so what runs already is added to it; a group counts its own."""
    limits = policy.limits
    processes = None if group.folders or limits.processes is None else limits.processes + _own_tasks()
    memory = None if group.bounds_memory else limits.memory_bytes
    return {
        "processes": processes,
        "file_bytes": limits.file_bytes,
        "open_files": limits.open_files,
        "memory_bytes": memory,
    }


def _own_tasks() -> int:
    count = 0
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                if entry.stat().st_uid == os.getuid():
                    count += len(os.listdir(f"/proc/{entry.name}/task"))
            except OSError:
                continue
    return count


def _find_fault(facts: Head, policy: Policy) -> str:
    """What of the walls is missing according to the worker's first look; "" when they stand."""
    names = facts.get("environment_names")
    checks = (
        (facts.get("cap_eff") == "0000000000000000", f"capabilities are left inside (CapEff {facts.get('cap_eff')!r})"),
        (facts.get("no_new_privs") == "1", "privileges can be gained inside (NoNewPrivs is not 1)"),
        (facts.get("seccomp") == "2", "system calls are not filtered (Seccomp is not 2)"),
        (facts.get("canary_readable") is False, "a file outside the workspace can be read"),
        (facts.get("canary_writable") is False, "a file outside the workspace can be written"),
        (policy.network == "on" or facts.get("port_reachable") is False, "the host's network can be reached"),
        (facts.get("namespace_possible") is False, "new user namespaces can be made inside"),
        (facts.get("core_pattern_writable") is False, "/proc/sys can be written"),
        (facts.get("workspace_readable") is True, f"{policy.workspace} cannot be read by this user"),
        (
            policy.profile != "workspace-write" or facts.get("workspace_writable") is True,
            f"{policy.workspace} is not writable under {policy.profile}",
        ),
        (
            isinstance(names, list) and set(names) <= {"PATH", "PWD", "LC_CTYPE", "SHLVL", "_", "OLDPWD"},
            f"variables of the launcher are visible: {names}",
        ),
    )
    return next((fault for holds, fault in checks if not holds), "")
