"""Walls by bubblewrap: own namespaces, a minimal root, no capabilities, a system call filter."""

from __future__ import annotations

import os
import secrets
import socket
import stat
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from kcode_sandbox.cgroup import Group, make_group
from kcode_sandbox.connection import Connection, start_process
from kcode_sandbox.environment import DEFAULTS
from kcode_sandbox.errors import SandboxUnavailableError
from kcode_sandbox.gitconfig import private_git_configuration
from kcode_sandbox.guard import Guard
from kcode_sandbox.hosts import HostRule
from kcode_sandbox.launch import PACKAGE, Attachment, attached, greet, weaker_way, worker_argv
from kcode_sandbox.layer import CopiedTree, Layer, layer_arguments
from kcode_sandbox.links import protect_all
from kcode_sandbox.places import Places
from kcode_sandbox.policy import Policy
from kcode_sandbox.protocol import Head, integer_of
from kcode_sandbox.proxy import Proxy, WayOut, open_way_out
from kcode_sandbox.repositories import Protection, sockets_below
from kcode_sandbox.seccomp import open_filter
from kcode_sandbox.toolchains import Toolchains, find_toolchains, outermost, own_programs, visible_path, workspace_venvs
from kcode_sandbox.watch import Evidence

HOME = "/home/kcode"
INSIDE = "/run/kcode"
PROXY = f"{INSIDE}/proxy.sock"
LAUNCH_ENVIRONMENT = {"PATH": "/usr/bin:/bin"}
SHM_BYTES = 256 << 20
HOME_BYTES = 1 << 30
ROOT_NAMES = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What of the host matters for the walls, found once before a start."""

    root_links: tuple[tuple[str, str], ...]
    root_folders: tuple[str, ...]
    covered_files: tuple[str, ...]
    covered_folders: tuple[str, ...]
    toolchains: Toolchains
    venvs: tuple[Path, ...]
    programs: tuple[tuple[str, Path], ...]
    resolver: str


def survey(policy: Policy, home: Path) -> Surroundings:
    environment = dict(policy.environment)
    links = tuple((os.readlink(f"/{name}"), f"/{name}") for name in ROOT_NAMES if os.path.islink(f"/{name}"))
    folders = tuple(f"/{name}" for name in ROOT_NAMES if os.path.isdir(f"/{name}") and not os.path.islink(f"/{name}"))
    files, private = closed_to_others("/etc")
    resolver = os.path.realpath("/etc/resolv.conf")
    return Surroundings(
        root_links=links,
        root_folders=folders,
        covered_files=files,
        covered_folders=private,
        toolchains=find_toolchains(environment, home, policy.workspace),
        venvs=tuple(workspace_venvs(policy.workspace)) if policy.profile == "workspace-write" else (),
        programs=tuple(own_programs().items()),
        resolver=resolver if policy.network == "on" and not resolver.startswith("/etc/") and os.path.exists(resolver) else "",
    )


def closed_to_others(top: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Files and folders not everybody may read. They must be covered: as root the kernel would let us read them."""
    files: list[str] = []
    folders: list[str] = []
    pending = [top]
    while pending:
        try:
            entries = list(os.scandir(pending.pop()))
        except OSError:
            continue
        for entry in entries:
            if entry.is_symlink():
                continue
            mode = entry.stat(follow_symlinks=False).st_mode
            if stat.S_ISDIR(mode):
                (pending if mode & 0o005 == 0o005 else folders).append(entry.path)
            elif stat.S_ISREG(mode) and not mode & 0o004:
                files.append(entry.path)
    return tuple(files), tuple(folders)


def bwrap_arguments(
    policy: Policy,
    around: Surroundings,
    git: Protection,
    seccomp_fd: int,
    proxy: Path | None = None,
    layers: Sequence[Layer] = (),
) -> list[str]:
    """The command line after `bwrap`. Mounts come in order: a later one lies on top of an earlier one."""
    workspace = str(policy.workspace)
    writable = policy.profile == "workspace-write"
    arguments = ["--unshare-user", "--unshare-all", "--disable-userns", "--cap-drop", "ALL", "--die-with-parent"]
    if policy.network == "on":
        arguments.append("--share-net")
    arguments += ["--hostname", "kcode", *_root(around), *_scratch(policy)]
    for path in outermost([*around.toolchains.roots, *policy.readable]):
        arguments += ["--ro-bind", str(path), str(path)]
    for path in around.toolchains.covered:
        arguments += ["--ro-bind", "/dev/null", str(path)]
    if around.resolver:
        arguments += ["--ro-bind", around.resolver, around.resolver]
    for path in policy.writable if writable else ():
        arguments += ["--bind", str(path), str(path)]
    arguments += layer_arguments(layers) if layers and writable else _workspace(policy, around, git)
    for path in git.sockets:
        arguments += ["--ro-bind", "/dev/null", str(path)]
    arguments += ["--ro-bind", str(PACKAGE), f"{INSIDE}/{PACKAGE.name}"]
    for name, path in around.programs:
        arguments += ["--ro-bind", str(path), f"{INSIDE}/bin/{name}"]
    if proxy is not None:
        arguments += ["--ro-bind", str(proxy), PROXY]
    arguments += ["--remount-ro", "/proc", "--remount-ro", "/", "--chdir", workspace, "--seccomp", str(seccomp_fd)]
    return [*arguments, "--", *worker_argv(f"{INSIDE}/{PACKAGE.name}")]


def _workspace(policy: Policy, around: Surroundings, git: Protection) -> list[str]:
    bind = "--bind" if policy.profile == "workspace-write" else "--ro-bind"
    arguments: list[str] = []
    for path in (*git.shared, policy.workspace):
        arguments += [bind, str(path), str(path)]
    if bind == "--bind":
        for path in git.pinned:
            arguments += ["--bind", str(path), str(path)]
        for path in (*git.readonly, *around.venvs):
            arguments += ["--ro-bind", str(path), str(path)]
    return arguments


def _root(around: Surroundings) -> list[str]:
    arguments = ["--ro-bind", "/usr", "/usr"]
    for folder in around.root_folders:
        arguments += ["--ro-bind", folder, folder]
    for target, link in around.root_links:
        arguments += ["--symlink", target, link]
    arguments += ["--ro-bind", "/etc", "/etc"]
    for path in around.covered_folders:
        arguments += ["--tmpfs", path, "--remount-ro", path]
    for path in around.covered_files:
        arguments += ["--ro-bind", "/dev/null", path]
    return arguments


def _scratch(policy: Policy) -> list[str]:
    tmp = str(policy.limits.tmp_bytes)
    return [
        *("--proc", "/proc", "--dev", "/dev"),
        *("--perms", "1777", "--size", str(SHM_BYTES), "--tmpfs", "/dev/shm", "--remount-ro", "/dev"),
        *("--perms", "1777", "--size", tmp, "--tmpfs", "/tmp"),
        *("--perms", "1777", "--size", tmp, "--tmpfs", "/var/tmp"),
        *("--dir", "/run"),
        *("--perms", "0700", "--size", str(HOME_BYTES), "--tmpfs", HOME),
    ]


def inner_environment(policy: Policy, around: Surroundings, home: Path) -> dict[str, str]:
    """The policy's variables with home, temporary folder and PATH as they are inside."""
    given = DEFAULTS | dict(policy.environment)
    roots = [*around.toolchains.roots, *policy.readable, *policy.writable, policy.workspace]
    path = visible_path(given["PATH"], roots) or DEFAULTS["PATH"]
    moved = {"HOME": HOME, "TMPDIR": "/tmp", "CARGO_HOME": f"{HOME}/.cargo", "PATH": f"{path}:{INSIDE}/bin"}
    for name, folder in (("RUSTUP_HOME", ".rustup"), ("PYENV_ROOT", ".pyenv")):
        if (home / folder).is_dir():
            moved.setdefault(name, given.get(name, str(home / folder)))
    return given | moved


class BubblewrapBackend:
    """Tries `binaries` in order; all hold the same walls. One backend serves one sandbox."""

    def __init__(
        self,
        binaries: Sequence[Path],
        attachment: Attachment | None = None,
        make_proxy: Callable[[Sequence[HostRule]], Proxy] = Proxy,
        copied: CopiedTree | None = None,
    ) -> None:
        self._attachment = attachment
        self._copied = copied
        self._make_proxy = make_proxy
        self.way_out: WayOut | None = None
        self._binaries = tuple(binaries)
        self._git = Protection()
        self._group = Group()
        self._facts: Head = {}
        self._guards: list[Guard] = []
        self._sweeping = threading.Lock()
        self._evidence: Evidence | None = None

    @property
    def protected(self) -> tuple[Path, ...]:
        """What is read-only in the workspace although the rest of it is not; known once launched."""
        return tuple(self._git.readonly)

    @property
    def linked(self) -> tuple[Path, ...]:
        """Those of `protected` that are read-only only for a hard link in them."""
        return tuple(self._git.linked)

    @property
    def landlock(self) -> int:
        """The version of the kernel's interface that the second fence uses; 0 without one."""
        return integer_of(self._facts, "landlock")

    @property
    def bounds_group(self) -> bool:
        """A control group holds everything inside together."""
        return bool(self._group.folders)

    @property
    def bounds_memory(self) -> bool:
        return self._group.bounds_memory

    def description(self, policy: Policy) -> str:
        return f"bubblewrap · {policy.profile} · network {policy.network_text}"

    async def launch(self, policy: Policy) -> Connection:
        home = home_of(policy)
        check_workspace(policy.workspace, home)
        around = survey(policy, home)
        if self._copied is not None:
            # What is written stays in the copy, so that nothing in it has to be kept from running outside.
            self._git.shared, self._git.sockets = list(self._copied.shared), self._copied.masks()
        elif policy.profile == "workspace-write":
            folders = (policy.workspace, *policy.writable)
            self._git = protect_all(folders, policy.protect, around.venvs)
            self._guards = [Guard(folder, frozenset(self._git.known)) for folder in folders]
        else:
            self._git.sockets = sockets_below(policy.workspace)
        self._group = make_group(policy.limits.processes, policy.limits.memory_bytes)
        refusals: list[str] = []
        try:
            if policy.network == "allow-list":
                self.way_out = await open_way_out(self._make_proxy(policy.hosts))
            for binary in self._binaries:
                try:
                    return await self._launch_with(binary, policy, around, home)
                except SandboxUnavailableError as error:
                    refusals.append(f"{binary}: {explain(str(error))}")
        except BaseException:
            self.tidy()
            raise
        self.tidy()
        raise SandboxUnavailableError("; ".join(refusals) + weaker_way())

    async def _launch_with(self, binary: Path, policy: Policy, around: Surroundings, home: Path) -> Connection:
        with ExitStack() as stack:
            canary, listener = set_canaries(stack)
            seccomp_fd = open_filter()
            stack.callback(os.close, seccomp_fd)
            proxy = self.way_out.socket if self.way_out is not None else None
            argv = [str(binary), *bwrap_arguments(policy, around, self._git, seccomp_fd, proxy, self._layers)]
            descriptors, stdio = attached(self._attachment)
            connection = await start_process(self._group.wrap(argv), LAUNCH_ENVIRONMENT, "/", [seccomp_fd, *descriptors])
            hello: Head = {
                "workspace": str(policy.workspace),
                "environment": inner_environment(policy, around, home),
                "private_home": True,
                "fence": [str(path) for path in writable_folders(policy, self._git)],
                "proxy": PROXY if proxy is not None else "",
                "own_network": policy.network != "on",
                "limits": _limits_of(policy, self._group),
                "check": {
                    "canary": str(canary),
                    "port": listener.getsockname()[1],
                    "protected": [str(path) for path in self._git.readonly],
                },
                **stdio,
            }
            self._facts = facts = await greet(connection, hello, await private_git_configuration(home))
        self._evidence = _evidence(policy, around, self._git, self.way_out, self._group)
        fault = find_fault(facts, policy)
        if fault:
            connection.kill()
            await connection.close()
            raise SandboxUnavailableError(f"the self-check failed: {fault}; nothing was run")
        return connection

    @property
    def _layers(self) -> Sequence[Layer]:
        return self._copied.layers if self._copied is not None else ()

    def guard(self) -> list[str]:
        """Blocks for the time of a walk through the workspace."""
        with self._sweeping:
            names = [guard.sweep() for guard in self._guards]
        # Those of other folders than the workspace are named whole.
        others = [str(guard.workspace / name) for guard, found in zip(self._guards[1:], names[1:], strict=True) for name in found]
        return [*(names[0] if names else []), *others]

    def adapt(self, before: Policy, policy: Policy) -> bool:
        if self.way_out is None or not policy.hosts or replace(before, hosts=policy.hosts) != policy:
            return False
        self.way_out.proxy.allow(policy.hosts)
        return True

    def evidence(self) -> Evidence | None:
        return self._evidence

    def tidy(self) -> None:
        self.guard()
        self._git.release()
        self._group.remove()
        if self.way_out is not None:
            self.way_out.close()
            self.way_out = None


def writable_folders(policy: Policy, git: Protection) -> list[Path]:
    """Every folder below which something may be written inside; what is read-only in them is the mounts' business."""
    private = [Path(path) for path in ("/dev", "/tmp", "/var/tmp", HOME)]
    return [*private, policy.workspace, *policy.writable, *git.shared] if policy.profile == "workspace-write" else private


def _evidence(policy: Policy, around: Surroundings, git: Protection, way_out: WayOut | None, group: Group) -> Evidence:
    covered = [*around.covered_files, *around.covered_folders, *around.toolchains.covered, *git.sockets]
    protected = (*git.readonly, *around.venvs)
    places = Places(policy, protected, tuple(map(Path, covered)), around.toolchains.roots, tuple(git.linked))
    denials = way_out.proxy.record.denials if way_out is not None else ()
    return Evidence(places, denials, group.folders)


def home_of(policy: Policy) -> Path:
    return Path(dict(policy.environment).get("HOME") or Path.home()).resolve()


def check_workspace(workspace: Path, home: Path) -> None:
    if not workspace.is_dir() or workspace != workspace.resolve():
        raise SandboxUnavailableError(f"the workspace {workspace} is not an existing folder named without links")
    if workspace == home or workspace in home.parents:
        raise SandboxUnavailableError(
            f"the workspace {workspace} holds your whole home folder; start kcode in a project's folder"
        )
    system = ("/usr", "/etc", "/proc", "/dev", "/sys", "/run", "/boot", "/tmp", "/var", "/var/tmp", HOME)
    if str(workspace) in system or str(workspace).startswith(("/proc/", "/dev/", "/sys/", "/run/kcode")):
        raise SandboxUnavailableError(f"the workspace {workspace} is a folder of the system; start kcode in a project's folder")


def set_canaries(stack: ExitStack) -> tuple[Path, socket.socket]:
    """A file and a port outside that must be out of reach inside."""
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="kcode-canary-"))
    canary = Path(folder) / secrets.token_hex(8)
    canary.write_text("outside")
    listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    return canary, listener


def _limits_of(policy: Policy, group: Group) -> Head:
    """Bounds the worker sets for itself and its children; the group's bound of memory is the better one."""
    limits = policy.limits
    return {
        "processes": limits.processes,
        "file_bytes": limits.file_bytes,
        "open_files": limits.open_files,
        "memory_bytes": None if group.bounds_memory else limits.memory_bytes,
    }


def find_fault(facts: Head, policy: Policy) -> str:
    """What of the wall is missing according to the worker's first look; "" when it stands."""
    leaked = "" if _only_launch_variables(facts) else f"variables of the launcher are visible: {facts.get('environment_names')}"
    return common_fault(facts, policy) or leaked


def common_fault(facts: Head, policy: Policy) -> str:
    """As find_fault, of what holds however the namespaces were made."""
    checks = (
        (facts.get("cap_eff") == "0000000000000000", f"capabilities are left inside (CapEff {facts.get('cap_eff')!r})"),
        (facts.get("cap_bnd") == "0000000000000000", f"capabilities can be regained inside (CapBnd {facts.get('cap_bnd')!r})"),
        (facts.get("no_new_privs") == "1", "privileges can be gained inside (NoNewPrivs is not 1)"),
        (facts.get("seccomp") == "2", "system calls are not filtered (Seccomp is not 2)"),
        (facts.get("canary_readable") is False, "a file outside the workspace can be read"),
        (policy.network == "on" or facts.get("port_reachable") is False, "the host's network can be reached"),
        (facts.get("namespace_possible") is False, "new user namespaces can be made inside"),
        (facts.get("core_pattern_writable") is False, "/proc/sys can be written"),
        (facts.get("writable_protected") == [], f"protected files are writable: {facts.get('writable_protected')}"),
        (facts.get("workspace_readable") is True, f"{policy.workspace} cannot be read by this user"),
        (
            facts.get("workspace_writable") is (policy.profile == "workspace-write"),
            f"{policy.workspace} is {'writable' if facts.get('workspace_writable') else 'not writable'} under {policy.profile}",
        ),
    )
    return next((fault for holds, fault in checks if not holds), "")


def _only_launch_variables(facts: Head) -> bool:
    names = facts.get("environment_names")
    return isinstance(names, list) and set(names) <= {"PATH", "PWD", "LC_CTYPE", "SHLVL", "_"}


def explain(message: str) -> str:
    """bubblewrap's own words with the remedy for the causes that are known."""
    lowered = message.lower()
    if "nesting depth" in lowered or "max_user_namespaces" in lowered or "enospc" in lowered:
        return f"{message} (user namespaces are used up or off: raise sysctl user.max_user_namespaces)"
    if (
        "no permissions to create new namespace" in lowered
        or "setting up uid map" in lowered
        or "creating new namespace" in lowered
    ):
        return (
            f"{message} (user namespaces are denied: set sysctl kernel.unprivileged_userns_clone=1, or on Ubuntu 24.04 install "
            "the package bubblewrap, whose AppArmor profile allows them, or set kernel.apparmor_restrict_unprivileged_userns=0)"
        )
    if "can't mount proc" in lowered:
        return f"{message} (/proc is masked, as in a container: start the container with --security-opt systempaths=unconfined)"
    return message
