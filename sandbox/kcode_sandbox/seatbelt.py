"""macOS: the profile that its Seatbelt would hold a policy by. Generated and tested as text; never tried on a real macOS.

Nothing runs under it yet, since the worker needs Linux. `kcode sandbox explain --backend seatbelt` prints it, on any system.
In a profile the last rule that matches decides, so denials of what lies in an allowed folder come last.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from kcode_sandbox.errors import SandboxUnavailableError
from kcode_sandbox.guard import HELD_NAMES
from kcode_sandbox.policy import Policy

SESSION = "SESSION"
"""The parameter that names the session's private folder, by its real path."""
PROXY_PORT = "PROXY_PORT"
"""The parameter that names the port of the proxy on 127.0.0.1, where the policy lists hosts."""
REFUSAL = (
    "kcode's worker needs Linux, so nothing runs under Seatbelt yet; work in a Linux machine or container "
    "(the profile for this policy: kcode sandbox explain --backend seatbelt)"
)
RESIDUE = (
    "there is no network of the session's own: with the network off, no server on 127.0.0.1 either",
    "processes, memory and private folders are bounded for each process, not for all together",
    "a nested repository's new configuration is held after a command, not while it runs",
)
SYSTEM_FOLDERS = (
    *("/bin", "/sbin", "/usr", "/System", "/Library/Apple", "/Library/Developer", "/Library/Frameworks", "/Library/Java"),
    *("/opt/homebrew", "/opt/local", "/Applications/Xcode.app", "/private/etc", "/private/var/db/timezone"),
    *("/private/var/db/dyld", "/private/var/select"),
)
SYSTEM_LINKS = ("/", "/etc", "/tmp", "/var", "/private", "/private/tmp", "/private/var", "/private/var/db")
"""Of these no more is shown than that they are there: paths lead through them."""
PRIVATE_FILES = ("/private/etc/master.passwd", "/private/etc/sudoers", "/private/etc/ssh")
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom", "/dev/tty")
SERVICES = (
    *("com.apple.system.opendirectoryd.libinfo", "com.apple.system.opendirectoryd.membership"),
    *("com.apple.system.logger", "com.apple.logd", "com.apple.system.notification_center"),
)
RESOLVER = "/private/var/run/mDNSResponder"
GIT_NAMES = ("hooks", "config", "config.worktree", "commondir")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f]")


def seatbelt_profile(policy: Policy, toolchains: Sequence[Path], protected: Sequence[Path]) -> str:
    """The whole text for `sandbox-exec`. SandboxUnavailableError where a path cannot be written in it."""
    sections = (
        ("processes: one's own only, and no new privileges", _processes()),
        ("what is read", _reading(policy, toolchains)),
        ("what is written", _writing(policy)),
        ("network", _network(policy)),
        ("read-only though inside what may be written; no folder above it can be moved away", _denials(policy, protected)),
    )
    lines = ["(version 1)", "(deny default)"]
    for comment, rules in sections:
        lines += ["", f"; {comment}", *rules] if rules else []
    return "\n".join(lines) + "\n"


def parameters_of(policy: Policy) -> tuple[str, ...]:
    """What `sandbox-exec -D NAME=VALUE` must give."""
    return (SESSION, PROXY_PORT) if policy.network == "allow-list" else (SESSION,)


def _processes() -> list[str]:
    return [
        "(allow process-exec*)",
        "(allow process-fork)",
        "(allow process-info* (target same-sandbox))",
        "(allow signal (target same-sandbox))",
        "(allow sysctl-read)",
        "(allow ipc-posix-sem)",
        _rule("allow mach-lookup", (f'(global-name "{name}")' for name in SERVICES)),
        "(allow pseudo-tty)",
        '(allow file-read* file-write* file-ioctl (literal "/dev/ptmx") (regex #"^/dev/ttys[0-9]+$"))',
    ]


def _reading(policy: Policy, toolchains: Sequence[Path]) -> list[str]:
    shown = [*map(Path, SYSTEM_FOLDERS), *toolchains, *policy.readable, *policy.writable, policy.workspace]
    above = {parent for path in shown for parent in path.parents} - set(shown)
    links = sorted({*SYSTEM_LINKS, *map(str, above)})
    return [
        _rule("allow file-read-metadata", map(_literal, links)),
        '(allow file-read-data (literal "/"))',
        _rule("allow file-read*", [*(_subpath(str(path)) for path in dict.fromkeys(shown)), _session()]),
        _rule("allow file-read*", [*map(_literal, DEVICES), _subpath("/dev/fd")]),
        _rule("deny file-read*", map(_subpath, PRIVATE_FILES)),
    ]


def _writing(policy: Policy) -> list[str]:
    folders = (policy.workspace, *policy.writable) if policy.profile == "workspace-write" else ()
    # The folders themselves stay: what is denied in them is denied by name.
    kept = [f"(deny file-write-unlink (literal {_quoted(str(folder))}))" for folder in folders]
    return [
        _rule("allow file-write*", [*(_subpath(str(folder)) for folder in folders), _session()]),
        _rule("allow file-write-data file-ioctl", map(_literal, DEVICES)),
        *kept,
    ]


def _network(policy: Policy) -> list[str]:
    # Sockets of this session's own; all others' paths are services that would act for whoever speaks to them.
    own = f"(allow network* (remote unix-socket {_session()}) (local unix-socket {_session()}))"
    if policy.network == "off":
        return [own]
    if policy.network == "allow-list":
        return [own, f'(allow network-outbound (remote ip (string-append "localhost:" (param "{PROXY_PORT}"))))']
    return [
        "(allow network*)",
        "(allow system-socket)",
        "(deny network-outbound (remote unix-socket))",
        own,
        f"(allow network-outbound {_literal(RESOLVER)})",
        '(allow mach-lookup (global-name "com.apple.dnssd.service") (global-name "com.apple.trustd.agent"))',
    ]


def _denials(policy: Policy, protected: Sequence[Path]) -> list[str]:
    if policy.profile != "workspace-write":
        return []
    folders = (policy.workspace, *policy.writable)
    rules = [f"(deny file-write* {_subpath(str(path))})" for path in protected]
    above = {parent for path in protected for parent in path.parents if any(_is_in(parent, folder) for folder in folders)}
    rules += [f"(deny file-write-unlink {_literal(str(parent))})" for parent in sorted(above)]
    for folder in folders:
        start = f"^{_escaped(str(folder))}/"
        rules.append(f"(deny file-write* {_regex(f'{start}(.*/)?({_alternatives(HELD_NAMES)})(/|$)')})")
        rules.append(f"(deny file-write* {_regex(f'{start}[.][gG][iI][tT]/({_alternatives(GIT_NAMES)})(/|$)')})")
    return rules


def _is_in(path: Path, folder: Path) -> bool:
    return path != folder and path.is_relative_to(folder)


def _alternatives(names: Iterable[str]) -> str:
    """In any case: macOS finds `.envrc` under `.Envrc`, too."""
    letters = ([f"[{one.lower()}{one.upper()}]" if one.isalpha() else _escaped(one) for one in name] for name in names)
    return "|".join(map("".join, letters))


def _escaped(text: str) -> str:
    return "".join(f"\\{one}" if one in "\\^$.|?*+()[]{}" else one for one in text)


def _rule(head: str, filters: Iterable[str]) -> str:
    return "\n".join([f"({head}", *(f"  {one}" for one in filters)]) + ")"


def _session() -> str:
    return f'(subpath (param "{SESSION}"))'


def _subpath(path: str) -> str:
    return f"(subpath {_quoted(path)})"


def _literal(path: str) -> str:
    return f"(literal {_quoted(path)})"


def _regex(pattern: str) -> str:
    # Its text is raw up to the quote, which no backslash hides.
    if '"' in pattern or _UNPRINTABLE.search(pattern):
        raise SandboxUnavailableError(f"{pattern!r} cannot stand in a profile of Seatbelt; rename the folder")
    return f'(regex #"{pattern}")'


def _quoted(path: str) -> str:
    if _UNPRINTABLE.search(path):
        raise SandboxUnavailableError(f"{path!r} holds a control character and cannot stand in a profile of Seatbelt; rename it")
    return '"' + path.replace("\\", "\\\\").replace('"', '\\"') + '"'
