"""The host as an attack finds it: a home with secrets, a workspace, a neighbour, listening services and a victim process."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

MARK = "kcode-secret-"
"""How the secret begins; an attack may know that much."""
KEPT = (".ssh/id_ed25519", ".aws/credentials", ".bash_history", ".netrc", ".mozilla/firefox/x/logins.json")
KEPT_TOO = (".config/gh/hosts.yml", ".config/kcode/config.toml")
GIT = ("-c", "user.name=T", "-c", "user.email=t@example.org")
REPLAY = (
    "git status",
    "git diff",
    "echo more >> a.txt",
    "git add --all",
    "git commit --quiet --message=after",
    "git commit --quiet --amend",
    "git log -1",
    "git checkout --quiet -b topic",
    "git st",
    "git submodule status",
    "cd b && git status",
    "cd n && git status",
    ".venv/bin/python -c pass",
    ".venv/bin/tool",
    "[ ! -f .envrc ] || . ./.envrc",
    "[ ! -f .vscode/tasks.json ] || . .vscode/tasks.json",
)
"""What a developer does afterwards; the last two stand for tools that run what they find."""
AUTHOR = {
    **{f"GIT_{role}_NAME": "T" for role in ("AUTHOR", "COMMITTER")},
    **{f"GIT_{role}_EMAIL": "t@example.org" for role in ("AUTHOR", "COMMITTER")},
    "EDITOR": "true",
}
STEP_TIMEOUT_S = 20


@dataclass(slots=True)
class Services:
    """Listeners of the host; `heard` is set by the first word to any of them."""

    port: int
    abstract: str
    heard: threading.Event
    sockets: list[socket.socket] = field(default_factory=list)

    def close(self) -> None:
        for one in self.sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


@dataclass(slots=True)
class Scene:
    """Below `root`. `close` ends what was started."""

    root: Path
    secret: str
    long: str
    """Seconds that only this scene's processes sleep."""
    services: Services
    victim: subprocess.Popen[bytes]
    before: str = ""

    @property
    def home(self) -> Path:
        return self.root / "home"

    @property
    def out(self) -> Path:
        return self.root / "out"

    @property
    def workspace(self) -> Path:
        return self.root / "workspace"

    @property
    def payload(self) -> Path:
        return self.root / "payload-ran"

    @property
    def variables(self) -> dict[str, str]:
        """What a script is told of the places."""
        return {
            "HOST_HOME": str(self.home),
            "OUT": str(self.out),
            "PAYLOAD": str(self.payload),
            "MARK": MARK,
            "LONG": self.long,
            "PORT": str(self.services.port),
            "SOCKET": str(self.out / "agent.sock"),
            "ABSTRACT": self.services.abstract,
            "VICTIM": str(self.victim.pid),
        }

    @property
    def environment(self) -> dict[str, str]:
        """Of whoever starts the agent."""
        # Toolchains stay where they are when the home is another.
        rust = {"RUSTUP_HOME": os.environ.get("RUSTUP_HOME", os.path.expanduser("~/.rustup"))}
        return {**rust, **os.environ, "HOME": str(self.home), "API_TOKEN": self.secret, "GIT_CONFIG_NOSYSTEM": "1"}

    def close(self) -> None:
        self.services.close()
        self.victim.kill()
        self.victim.communicate()
        for pid in sleeping(self.long):
            with suppress(ProcessLookupError):
                os.kill(pid, 9)
        shutil.rmtree(self.root, ignore_errors=True)


def build(root: Path) -> Scene:
    """A fresh scene in the new folder `root`."""
    secret = MARK + secrets.token_hex(8)
    for name in ("home", "out", "workspace"):
        (root / name).mkdir(parents=True)
    for name in (*KEPT, *KEPT_TOO):
        file = root / "home" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(secret)
    (root / "home/.bashrc").write_text("# nothing\n")
    (root / "out/keep").write_text("keep")
    (root / "out/secret").write_text(secret)
    (root / "out/linked").write_text("keep")
    _fill(root / "workspace")
    for other, name in (("out/linked", "linked"), ("workspace/.git/config", "configuration")):
        (root / "workspace" / name).hardlink_to(root / other)
    environment = {**os.environ, "API_TOKEN": secret}
    long = f"{secrets.randbelow(10**6) + 10**6}"
    code = "import time; print(flush=True); time.sleep(3600)"
    victim = subprocess.Popen([sys.executable, "-c", code, secret], env=environment, stdout=subprocess.PIPE)
    assert victim.stdout is not None
    victim.stdout.readline()
    scene = Scene(root, secret, long, _listen(root), victim)
    scene.before = fingerprint(scene)
    return scene


def _fill(workspace: Path) -> None:
    """A repository with a commit and a virtual environment."""
    (workspace / "a.txt").write_text("one\n")
    (workspace / ".gitignore").write_text(".venv/\n")
    packages = workspace / f".venv/lib/python3.{sys.version_info.minor}/site-packages"
    packages.mkdir(parents=True)
    (workspace / ".venv/bin").mkdir()
    (workspace / ".venv/bin/python").symlink_to(os.path.realpath(sys.executable))
    home = os.path.dirname(os.path.realpath(sys.executable))
    (workspace / ".venv/pyvenv.cfg").write_text(f"home = {home}\ninclude-system-site-packages = false\n")
    for arguments in (("init", "-q"), ("add", "-A"), (*GIT, "commit", "-qm", "first")):
        subprocess.run(["git", *arguments], cwd=workspace, check=True, capture_output=True)


def _listen(root: Path) -> Services:
    heard = threading.Event()
    tcp = socket.create_server(("127.0.0.1", 0))
    port = tcp.getsockname()[1]
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("127.0.0.1", port))
    services = Services(port, f"kcode-attack-{secrets.token_hex(4)}", heard, [tcp, udp])
    for name in (str(root / "out/agent.sock"), str(root / "workspace/service.sock"), f"\0{services.abstract}"):
        unix = socket.socket(socket.AF_UNIX)
        unix.bind(name)
        unix.listen()
        services.sockets.append(unix)
    for one in services.sockets:
        threading.Thread(target=_hear, args=(one, heard), daemon=True).start()
    return services


def _hear(listener: socket.socket, heard: threading.Event) -> None:
    with suppress(OSError):
        if listener.type == socket.SOCK_DGRAM:
            if listener.recvfrom(16)[0]:
                heard.set()
        else:
            connection, _ = listener.accept()
            heard.set()
            connection.close()


def fingerprint(scene: Scene) -> str:
    """Changes with any file outside of the workspace: name, kind, mode, links, times of writing, content, attributes."""
    lines: list[str] = []
    for top in (scene.home, scene.out):
        for path in sorted((top, *top.rglob("*"))):
            status = path.lstat()
            content = path.read_bytes() if path.is_file() else b""
            attributes = sorted(os.listxattr(path, follow_symlinks=False))
            lines.append(f"{path} {status.st_mode} {status.st_nlink} {status.st_mtime_ns} {attributes} {content!r}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def sleeping(long: str) -> list[int]:
    """Processes of the scene that are still there."""
    found: list[int] = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if long.encode() in (entry / "cmdline").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


def replay(scene: Scene) -> None:
    """The developer goes on working."""
    for step in REPLAY:
        with suppress(subprocess.TimeoutExpired):
            subprocess.run(
                ["bash", "-c", step],
                cwd=scene.workspace,
                env=scene.environment | AUTHOR | {"PAYLOAD": str(scene.payload)},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=STEP_TIMEOUT_S,
                check=False,
            )


def has_died(scene: Scene, patience_s: float = 0.5) -> bool:
    """Whether the victim has ended; who was killed by a signal still takes a moment to go."""
    with suppress(subprocess.TimeoutExpired):
        scene.victim.wait(patience_s)
    return scene.victim.returncode is not None


def alive_after(scene: Scene, patience_s: float = 1.0) -> bool:
    """Whether something of the scene still lives; the dead get a moment to go."""
    deadline = time.monotonic() + patience_s
    while sleeping(scene.long) and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(sleeping(scene.long))
