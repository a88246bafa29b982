"""`kcode sandbox`: what commands may do here, and running one under it."""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import get_args

import click

from kcode.errors import SandboxFailed, SandboxUnavailable, StartError
from kcode.paths import find_paths
from kcode_sandbox.environment import clean_environment
from kcode_sandbox.errors import FileError, SandboxError, SandboxUnavailableError
from kcode_sandbox.policy import Choice, Policy, Profile, parse_network

TIMED_OUT = 124
"""As `timeout` of the shell says it."""
NOT_FOUND = 127


def policy_of(folder: str, profile: Profile, network: str, readable: tuple[str, ...], writable: tuple[str, ...]) -> Policy:
    """Raises StartError naming a folder that is none, or hosts that cannot be."""
    try:
        reach, hosts = parse_network(network)
    except ValueError as error:
        raise StartError(f"--{error}") from error
    return Policy(
        _folder("--cd", folder),
        profile=profile,
        network=reach,
        hosts=hosts,
        readable=tuple(_folder("--readable", path) for path in readable),
        writable=tuple(_folder("--writable", path) for path in writable),
        protect=find_paths().own,
        environment=tuple(sorted(clean_environment(os.environ).items())),
    )


def _folder(option: str, name: str) -> Path:
    path = Path(name).resolve()
    if not path.is_dir():
        raise StartError(f"{option} {name}: it is not a folder" if path.exists() else f"{option} {name}: there is no such folder")
    return path


@click.group()
def command() -> None:
    """What commands may do in a folder, and how it is enforced."""


@command.command("run", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--profile", type=click.Choice(["read-only", "workspace-write", "danger-full-access"]), default="workspace-write")
@click.option(
    "--backend",
    type=click.Choice(get_args(Choice)),
    envvar="KCODE_SANDBOX_BACKEND",
    default="auto",
    help="auto is bubblewrap; landlock is weaker and needs no namespaces; docker and podman need --image.",
)
@click.option(
    "--network", metavar="off|on|HOSTS", default="off", show_default=True, help="HOSTS: example.org,*.example.net:8443."
)
@click.option("--cd", "folder", metavar="DIR", default=".", help="The workspace and working folder.")
@click.option("--readable", metavar="DIR", multiple=True, help="Another folder that may be read.")
@click.option("--writable", metavar="DIR", multiple=True, help="Another folder that may be written.")
@click.option(
    "--timeout", type=click.FloatRange(min=0, min_open=True), metavar="S", help="Kill it after so long (exit code 124)."
)
@click.argument("argv", nargs=-1, required=True, type=click.UNPROCESSED)
def run_command(
    profile: Profile,
    backend: Choice,
    network: str,
    folder: str,
    readable: tuple[str, ...],
    writable: tuple[str, ...],
    timeout: float | None,
    argv: tuple[str, ...],
) -> int:
    """Run ARGV in the sandbox with this terminal's or these pipes' input and output; ends with its exit code."""
    from kcode_sandbox.attached import run_attached

    policy = replace(policy_of(folder, profile, network, readable, writable), backend=backend)
    if profile == "danger-full-access":
        click.secho("no sandbox: danger-full-access", fg="red", err=True)
    try:
        code = asyncio.run(run_attached(policy, argv, timeout))
    except SandboxUnavailableError as error:
        raise SandboxUnavailable(str(error)) from error
    except FileError as error:
        click.echo(f"kcode: {error}", err=True)
        return NOT_FOUND
    except SandboxError as error:
        raise SandboxFailed(str(error)) from error
    if code is None:
        click.echo(f"kcode: {argv[0]} was killed after {timeout:g} s", err=True)
        return TIMED_OUT
    return code


@command.command("explain")
@click.option("--profile", type=click.Choice(["read-only", "workspace-write", "danger-full-access"]), default="workspace-write")
@click.option(
    "--backend",
    type=click.Choice(get_args(Choice)),
    envvar="KCODE_SANDBOX_BACKEND",
    default="auto",
    help="As for run; seatbelt prints the profile for macOS, under which nothing runs yet.",
)
@click.option(
    "--network", metavar="off|on|HOSTS", default="off", show_default=True, help="HOSTS: example.org,*.example.net:8443."
)
@click.option("--cd", "folder", metavar="DIR", default=".", help="The workspace.")
@click.option("--image", envvar="KCODE_SANDBOX_IMAGE", default="", help="Of docker or podman.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document instead of lines.")
def explain_command(profile: Profile, backend: Choice, network: str, folder: str, image: str, as_json: bool) -> int:
    """Say what commands in DIR may read, write and reach, and which layers hold them. Ends with 1 when there is no sandbox.

    A sandbox is really started and looked at from inside.
    """
    from kcode.grants import standing_grants, widened
    from kcode_sandbox.explain import explain

    policy = replace(policy_of(folder, profile, network, (), ()), backend=backend, image=image)
    standing = standing_grants(find_paths(), policy.workspace)
    explanation = asyncio.run(explain(widened(policy, standing)))
    if as_json:
        granted = [{"kind": grant.kind, "target": grant.target} for grant in standing]
        click.echo(json.dumps({**explanation.document, "grants": granted}, indent=2))
    else:
        for heading, lines in explanation.sections:
            click.secho(heading, bold=True, fg="red" if heading == "no sandbox" else None)
            for line in lines:
                click.echo(f"  {line}")
        if standing:
            click.secho("granted always in this folder, by you (kcode sandbox grants)", bold=True)
            for grant in standing:
                click.echo(f"  {grant}")
    return 0 if explanation.stands else 1


@command.command("grants")
@click.option("--cd", "folder", metavar="DIR", default=".", help="The workspace.")
@click.option("--remove", metavar="TARGET", help="Take back the grant of this host or folder; all takes back every one.")
def grants_command(folder: str, remove: str | None) -> int:
    """List what you granted always in DIR, or take it back."""
    paths, workspace = find_paths(), _folder("--cd", folder)
    from kcode.grants import store_grants, stored_grants

    granted = stored_grants(paths, workspace)
    if remove is None:
        for grant in granted:
            click.echo(grant)
        return 0
    kept = [grant for grant in granted if remove not in {"all", grant.target}]
    if len(kept) == len(granted):
        raise StartError(f"--remove {remove}: it is not granted in {workspace}; see kcode sandbox grants")
    store_grants(paths, workspace, kept)
    return 0
