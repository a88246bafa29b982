"""What a policy means on this machine, for people: what is open, what is closed, and which layers hold it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from kcode_sandbox.bubblewrap import HOME, BubblewrapBackend, home_of, inner_environment, survey
from kcode_sandbox.client import WorkerSandbox
from kcode_sandbox.container import CONTAINERS, ContainerBackend
from kcode_sandbox.detect import Candidate, usable_binaries
from kcode_sandbox.errors import SandboxUnavailableError
from kcode_sandbox.landlock import LandlockBackend, residue
from kcode_sandbox.links import protect_all
from kcode_sandbox.machine import Means, machine_means
from kcode_sandbox.policy import Limits, Policy
from kcode_sandbox.repositories import Protection
from kcode_sandbox.seatbelt import REFUSAL, RESIDUE, parameters_of, seatbelt_profile
from kcode_sandbox.toolchains import outermost
from kcode_sandbox.worker.landlock import version as landlock_version

SHOWN_PATHS = 12
AnyBackend = BubblewrapBackend | LandlockBackend | ContainerBackend


@dataclass(frozen=True, slots=True)
class Explanation:
    """`sections` are headings with their lines; `document` is the same for programs. `stands`: the walls were really built."""

    stands: bool
    sections: tuple[tuple[str, tuple[str, ...]], ...]
    document: dict[str, object]


async def explain(policy: Policy) -> Explanation:
    """Builds the sandbox, lets it check itself, and takes it down again."""
    if policy.profile == "danger-full-access":
        lines = ("commands may do all that you may: read your keys, write anywhere, use the network",)
        return Explanation(True, (("no sandbox", lines),), {"profile": policy.profile, "sandbox": None, "stands": True})
    if policy.backend == "seatbelt":
        return await asyncio.to_thread(_explain_seatbelt, policy)
    means = await asyncio.to_thread(machine_means)
    try:
        binaries = usable_binaries() if policy.backend in ("auto", "bubblewrap") else []
        backend = _backend(policy, binaries)
        sandbox = WorkerSandbox(policy, backend)
        await sandbox.start()
    except SandboxUnavailableError as error:
        reason = str(error)
        document: dict[str, object] = {"profile": policy.profile, "sandbox": None, "stands": False, "reason": reason}
        sections = (("no sandbox", (reason, "kcode runs nothing until this is mended")), _machine(means))
        return Explanation(False, sections, document | {"machine": [asdict(one) for one in means]})
    try:
        return _explain(policy, backend, binaries, means)
    finally:
        await sandbox.close()


def _explain_seatbelt(policy: Policy) -> Explanation:
    """The profile as text: nothing stands, on no system."""
    try:
        around = survey(policy, home_of(policy))
        folders = (policy.workspace, *policy.writable) if policy.profile == "workspace-write" else ()
        git = protect_all(folders, policy.protect, around.venvs) if folders else Protection()
        git.release()
        text = seatbelt_profile(policy, around.toolchains.roots, (*git.readonly, *around.venvs))
    except SandboxUnavailableError as error:
        return Explanation(False, (("no sandbox", (str(error),)),), {"sandbox": None, "stands": False, "reason": str(error)})
    values = " ".join(f"-D {name}=…" for name in parameters_of(policy))
    document: dict[str, object] = {
        "profile": policy.profile,
        "sandbox": "seatbelt",
        "stands": False,
        "reason": REFUSAL,
        "network": policy.network_text,
        "seatbelt": text,
        "open": list(RESIDUE),
    }
    sections = (
        ("no sandbox", (REFUSAL,)),
        (f"profile of Seatbelt, not tried on macOS: sandbox-exec {values} -f PROFILE CMD", tuple(text.splitlines())),
        ("left open, which bubblewrap would hold", RESIDUE),
    )
    return Explanation(False, sections, document)


def _backend(policy: Policy, binaries: Sequence[Candidate]) -> AnyBackend:
    if policy.backend in CONTAINERS:
        return ContainerBackend(policy.backend)
    return BubblewrapBackend([candidate.path for candidate in binaries]) if binaries else LandlockBackend()


def _machine(means: Sequence[Means]) -> tuple[str, tuple[str, ...]]:
    return "this machine", tuple(f"{one.name}: {one.detail}" if one.works else f"{one.name}: no: {one.detail}" for one in means)


def _explain(policy: Policy, backend: AnyBackend, binaries: Sequence[Candidate], means: Sequence[Means]) -> Explanation:
    if isinstance(backend, ContainerBackend):
        return _explain_container(policy, backend, means)
    if isinstance(backend, LandlockBackend):
        return _explain_degraded(policy, backend, means)
    around = survey(policy, home_of(policy))
    may_write = policy.profile == "workspace-write"
    writable = [str(path) for path in (policy.workspace, *policy.writable)] if may_write else []
    toolchains = [str(path) for path in outermost([*around.toolchains.roots, *policy.readable])]
    readable = ["/usr", "/etc (without files that are not everybody's)", *toolchains]
    readable += [] if may_write else [str(policy.workspace)]
    linked = [str(path) for path in backend.linked]
    protected = [str(path) for path in (*backend.protected, *around.venvs) if path not in backend.linked]
    private = [HOME, "/tmp", "/var/tmp", "/dev/shm"]
    names = sorted(inner_environment(policy, around, home_of(policy)))
    layers = _layers(policy, backend)
    document: dict[str, object] = {
        "profile": policy.profile,
        "sandbox": "bubblewrap",
        "stands": True,
        "binaries": [f"{candidate.path} {candidate.version}" for candidate in binaries],
        "network": policy.network_text,
        "writable": writable,
        "readable": readable,
        "protected": protected,
        "linked": linked,
        "private": private,
        "environment": names,
        "limits": asdict(policy.limits),
        "layers": layers,
        "machine": [asdict(one) for one in means],
    }
    tried = ", then ".join(f"{candidate.path} {candidate.version}" for candidate in binaries)
    sections = (
        ("sandbox", (f"bubblewrap · {policy.profile} · built and checked from inside just now ({tried})",)),
        ("may be written", tuple(writable) or ("nothing",)),
        ("may be written, private to a session and gone with it", tuple(private)),
        ("may be read", tuple(readable)),
        ("read-only though inside the workspace, since it runs or steers programs later", _shortened(protected)),
        *_linked_section(linked),
        ("does not exist inside", ("everything else: your home folder, its keys, other projects, sockets, other processes",)),
        ("network", (_network(policy),)),
        ("environment variables", (" ".join(names),)),
        ("limits", _limit_lines(policy.limits)),
        ("layers", tuple(f"{name}: {state}" for name, state in layers.items())),
        _machine(means),
    )
    return Explanation(True, sections, document)


def _network(policy: Policy) -> str:
    return {
        "off": "off: not even this machine's own services; inside, 127.0.0.1 works",
        "allow-list": f"{policy.network_text} through a proxy, nothing else; a host that takes data can carry yours out",
        "on": "on: all of it, this machine's own services included",
    }[policy.network]


def _explain_container(policy: Policy, backend: ContainerBackend, means: Sequence[Means]) -> Explanation:
    may_write = policy.profile == "workspace-write"
    writable = [str(path) for path in (policy.workspace, *policy.writable)] if may_write else []
    readable = [f"the image {policy.image}", *map(str, policy.readable), *([] if may_write else [str(policy.workspace)])]
    linked = [str(path) for path in backend.linked]
    protected = [str(path) for path in backend.protected if path not in backend.linked]
    private = [HOME, "/tmp", "/var/tmp", "/dev/shm"]
    fence = f"names once more what may be written (interface {backend.landlock})" if backend.landlock else "not in there"
    layers = {
        "container": f"{policy.backend}: namespaces, a read-only root, a group that bounds processes and memory",
        "capabilities": "none, and no way to new privileges",
        "system calls": "filtered (seccomp), by kcode's filter above the engine's own",
        "Landlock": fence,
    }
    document: dict[str, object] = {
        "profile": policy.profile,
        "sandbox": policy.backend,
        "image": policy.image,
        "stands": True,
        "network": policy.network_text,
        "writable": writable,
        "readable": readable,
        "protected": protected,
        "linked": linked,
        "private": private,
        "limits": asdict(policy.limits),
        "layers": layers,
        "machine": [asdict(one) for one in means],
    }
    sections = (
        ("sandbox", (f"{backend.description(policy)} · built and checked from inside just now",)),
        ("may be written", tuple(writable) or ("nothing",)),
        ("may be written, private to a session and gone with it", tuple(private)),
        ("may be read", tuple(readable)),
        ("read-only though inside the workspace, since it runs or steers programs later", _shortened(protected)),
        *_linked_section(linked),
        ("does not exist inside", ("everything else of this machine",)),
        ("network", (_network(policy),)),
        ("limits", _limit_lines(policy.limits)),
        ("layers", tuple(f"{name}: {state}" for name, state in layers.items())),
        _machine(means),
    )
    return Explanation(True, sections, document)


def _explain_degraded(policy: Policy, backend: LandlockBackend, means: Sequence[Means]) -> Explanation:
    may_write = policy.profile == "workspace-write"
    writable = [str(path) for path in (policy.workspace, *policy.writable)] if may_write else []
    mended = [str(path) for path in backend.protected]
    layers = {
        "namespaces": "none, since Landlock was named",
        "Landlock": f"names what may be read and written (interface {landlock_version()})",
        "system calls": "filtered (seccomp); " + ("sockets of services refused" if policy.network == "on" else "sockets refused"),
        "capabilities": "none, and no way to new privileges",
        "control group": "bounds processes of all together" if backend.bounds_group else "none",
    }
    document: dict[str, object] = {
        "profile": policy.profile,
        "sandbox": "landlock",
        "degraded": True,
        "stands": True,
        "network": policy.network_text,
        "writable": writable,
        "put_back": mended,
        "open": list(residue()),
        "limits": asdict(policy.limits),
        "layers": layers,
        "machine": [asdict(one) for one in means],
    }
    sections = (
        ("sandbox", (f"Landlock (degraded) · {policy.profile} · built and checked from inside just now",)),
        ("may be written", tuple(writable) or ("nothing",)),
        ("put back after each command, since it runs or steers programs later", _shortened(mended)),
        ("left open, which bubblewrap would hold", residue()),
        ("network", ("on" if policy.network == "on" else "off: no socket at all, also none inside",)),
        ("limits", _limit_lines(policy.limits)),
        ("layers", tuple(f"{name}: {state}" for name, state in layers.items())),
        _machine(means),
    )
    return Explanation(True, sections, document)


def _layers(policy: Policy, backend: BubblewrapBackend) -> dict[str, str]:
    spaces = "user, mount, pid, ipc, uts, cgroup" + ("" if policy.network == "on" else ", network")
    missing = "none: this user may make no control group here; limits hold for each process by itself"
    bounds = "processes and memory" if backend.bounds_memory else "processes"
    fence = f"names once more what may be written (interface {backend.landlock})" if backend.landlock else "not in this kernel"
    return {
        "namespaces": f"{spaces}; no new ones can be made",
        "capabilities": "none, and no way to new privileges",
        "system calls": "filtered (seccomp)",
        "control group": f"bounds {bounds} of all together" if backend.bounds_group else missing,
        "Landlock": fence,
    }


def _limit_lines(limits: Limits) -> tuple[str, ...]:
    units = {"bytes": lambda value: f"{value / (1 << 20):.0f} MiB"}
    lines: list[str] = []
    for name, value in asdict(limits).items():
        unit = name.rpartition("_")[2]
        shown = "as on the host" if value is None else units.get(unit, str)(value)
        lines.append(f"{name.removesuffix('_bytes').replace('_', ' ')}: {shown}")
    return tuple(lines)


def _shortened(paths: Sequence[str]) -> tuple[str, ...]:
    if not paths:
        return ("nothing: there is no git repository and no virtual environment",)
    rest = len(paths) - SHOWN_PATHS
    return (*paths[:SHOWN_PATHS], *((f"… and {rest} more (--json lists them)",) if rest > 0 else ()))


def _linked_section(linked: Sequence[str]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    title = "read-only though inside the workspace, for its hard links to files outside or protected; a copy (cp -r) has none"
    return ((title, _shortened(linked)),) if linked else ()
