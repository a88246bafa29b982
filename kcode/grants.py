"""What the user opened of the sandbox beyond the settings: for a turn, for the session, or always in one folder.

The model may ask; only the user grants. What is granted always is kept in the user's own configuration, by folder, never in the
repository.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from kcode.approval import Asker, Question
from kcode.errors import ConfigError, SandboxFailed
from kcode.messages import ToolCall
from kcode.paths import Paths, make_private
from kcode.tools.request_grant import Decision, GrantKind, Wish
from kcode_sandbox.errors import SandboxError
from kcode_sandbox.hosts import HostRule, parse_rules
from kcode_sandbox.policy import Policy
from kcode_sandbox.sandbox import Sandbox

FILE_NAME = "grants.json"
SYSTEM = ("/usr", "/etc", "/bin", "/sbin", "/lib", "/lib64", "/proc", "/sys", "/dev", "/run", "/boot")
SHARED = ("/", "/home", "/root", "/var", "/srv", "/mnt", "/media", "/opt", "/tmp", "/var/tmp", "/usr/local")
CREDENTIALS = (
    *(".ssh", ".gnupg", ".aws", ".azure", ".kube", ".docker", ".config", ".local", ".mozilla", ".password-store", ".oci"),
    *(".thunderbird", ".netrc", ".terraform.d", ".cargo", ".gem", ".m2", ".gradle", ".pki", ".cache", "snap", ".var"),
)
"""Below the home folder: what holds keys, tokens, cookies or what programs obey. It is never opened at a model's request."""


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid")

    kind: GrantKind
    target: str


class _Stored(BaseModel):
    model_config = ConfigDict(extra="forbid")

    folders: dict[str, list[_Row]]


@dataclass(frozen=True, slots=True)
class Grant:
    kind: GrantKind
    target: str

    def __str__(self) -> str:
        return self.target if self.kind == "host" else f"{self.kind} {self.target}"


class Impossible(ValueError):
    """Nothing the user could grant; the message says why."""


def widened(policy: Policy, grants: Sequence[Grant]) -> Policy:
    """The policy with what was granted. A grant never narrows."""
    for grant in grants:
        if grant.kind == "host" and policy.network != "on":
            hosts = tuple(dict.fromkeys((*policy.hosts, *parse_rules(grant.target))))
            policy = replace(policy, network="allow-list", hosts=hosts)
        elif grant.kind == "read":
            policy = replace(policy, readable=tuple(dict.fromkeys((*policy.readable, Path(grant.target)))))
        elif grant.kind == "write":
            policy = replace(policy, writable=tuple(dict.fromkeys((*policy.writable, Path(grant.target)))))
    return policy


def checked(wish: Wish, policy: Policy, paths: Paths, home: Path) -> Grant:
    """The grant a wish is for, in one spelling. Raises Impossible."""
    if wish.kind == "host":
        if "," in wish.target or "*" in wish.target:
            raise Impossible(f"{wish.target!r} is not one host; ask for one at a time")
        try:
            (rule,) = parse_rules(wish.target)
        except ValueError as error:
            raise Impossible(str(error)) from error
        return Grant("host", str(rule))
    path = Path(wish.target)
    if not path.is_absolute() or not path.is_dir():
        raise Impossible(f"{wish.target} is no folder that can be granted")
    real = path.resolve()
    own = (paths.config, paths.data, paths.state, paths.cache, paths.runtime)
    closed = [*(home / name for name in CREDENTIALS), *map(Path, SYSTEM), *(folder.resolve() for folder in own)]
    if any(real.is_relative_to(place) or place.is_relative_to(real) for place in closed) or real in map(Path, SHARED):
        raise Impossible(f"{real} is never opened: it is or holds a folder of the system, of credentials or of kcode itself")
    if real in policy.workspace.parents or real == home:
        raise Impossible(f"{real} holds more than one project; ask for a narrower folder")
    if wish.kind == "write" and policy.profile == "read-only":
        raise Impossible("this session is read-only; only the user can start one that writes")
    return Grant(wish.kind, str(real))


def stored_grants(paths: Paths, folder: Path) -> tuple[Grant, ...]:
    """What the user grants always in `folder`. Raises ConfigError for a file that cannot be read."""
    return tuple(Grant(row.kind, row.target) for row in _read(paths).folders.get(str(folder), []))


def store_grants(paths: Paths, folder: Path, grants: Sequence[Grant]) -> None:
    """Replace what is granted always in `folder`."""
    stored = _read(paths)
    stored.folders[str(folder)] = [_Row(**asdict(grant)) for grant in dict.fromkeys(grants)]
    if not grants:
        del stored.folders[str(folder)]
    file = paths.config / FILE_NAME
    try:
        partial = make_private(paths.config) / f".{FILE_NAME}.{os.getpid()}"
        partial.write_text(stored.model_dump_json(indent=1) + "\n", encoding="utf-8")
        partial.replace(file)
    except (OSError, UnicodeEncodeError) as error:
        raise ConfigError(f"cannot write {file}: {error}") from error


def standing_grants(paths: Paths, folder: Path) -> tuple[Grant, ...]:
    """Those of `stored_grants` that can be given: a folder may be gone meanwhile."""
    return tuple(grant for grant in stored_grants(paths, folder) if grant.kind == "host" or Path(grant.target).is_dir())


def _read(paths: Paths) -> _Stored:
    file = paths.config / FILE_NAME
    try:
        return _Stored.model_validate_json(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return _Stored(folders={})
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}; fix it or remove it") from error
    except (ValidationError, ValueError) as error:
        raise ConfigError(f"{file} is no list of grants; remove it and grant anew") from error


class Grants:
    """Of one session. `asker` is None where nobody can answer: then the answer is no."""

    def __init__(self, sandbox: Sandbox, paths: Paths, asker: Asker | None, home: Path) -> None:
        self._sandbox = sandbox
        self._paths = paths
        self._asker = asker
        self._home = home
        self._base = sandbox.policy
        self._session: list[Grant] = []
        self._turn: list[Grant] = []

    async def decide(self, wish: Wish) -> Decision:
        """Ask the user and open what was granted. Raises SandboxFailed when the sandbox cannot be built anew."""
        policy = self._sandbox.policy
        if policy.profile == "danger-full-access":
            return Decision(True, "There is no sandbox in this session: nothing has to be granted.")
        try:
            grant = checked(wish, policy, self._paths, self._home)
        except Impossible as impossible:
            return Decision(False, f"Not granted: {impossible}.")
        if _has(policy, grant):
            return Decision(True, f"{grant} is open already.")
        if self._asker is None:
            return Decision(
                False, f"Not granted: {grant}. Nobody is there to decide; the user can start kcode with {_flag(grant)}."
            )
        arguments = json.dumps(asdict(wish), ensure_ascii=False)
        question = Question(ToolCall("grant", "request_grant", arguments), "execute", str(grant), wish.reason, is_grant=True)
        reply = await self._asker(question)
        if reply.answer == "deny":
            said = f" The user said: {reply.text}" if reply.text else ""
            return Decision(False, f"Not granted: the user refused {grant}; do without it.{said}")
        (self._turn if reply.answer == "allow" else self._session).append(grant)
        if reply.answer == "allow-always":
            folder = policy.workspace
            store_grants(self._paths, folder, (*stored_grants(self._paths, folder), grant))
        restarted = await self._apply()
        how = (
            "The sandbox was started anew: folder and exported variables are kept, background jobs have ended."
            if restarted
            else ""
        )
        until = "until the end of this turn" if reply.answer == "allow" else "for this session"
        return Decision(True, f"Granted {until}: {grant}. {how}".strip())

    async def end_turn(self) -> None:
        """Close again what was opened for the turn."""
        if self._turn:
            self._turn.clear()
            await self._apply()

    async def _apply(self) -> bool:
        try:
            return await self._sandbox.change(widened(self._base, (*self._session, *self._turn)))
        except SandboxError as error:
            raise SandboxFailed(str(error)) from error


def _has(policy: Policy, grant: Grant) -> bool:
    if grant.kind == "host":
        return policy.network == "on" or set(parse_rules(grant.target)) <= set[HostRule](policy.hosts)
    path = Path(grant.target)
    open_places = [policy.workspace, *policy.writable] + ([*policy.readable] if grant.kind == "read" else [])
    return any(path.is_relative_to(place) for place in open_places)


def _flag(grant: Grant) -> str:
    return {"host": "--network", "read": "--read-dir", "write": "--add-dir"}[grant.kind] + f" {grant.target}"
