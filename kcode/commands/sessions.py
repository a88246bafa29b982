"""`kcode sessions`: what was said in this folder before."""

from __future__ import annotations

import time
from pathlib import Path

import click

from kcode.paths import check_workspace, find_paths
from kcode.transcript import list_sessions


@click.group()
def command() -> None:
    """The sessions of a folder."""


@command.command("list")
@click.option("-C", "--cd", "folder", metavar="DIR", default=".", help="The folder; by default this one.")
@click.option("--limit", metavar="N", type=click.IntRange(min=1), default=30, show_default=True, help="At most so many.")
def list_command(folder: str, limit: int) -> None:
    """List the sessions of a folder, the last used first; `kcode -r ID` goes on with one."""
    workspace = check_workspace(Path(folder))
    found = list_sessions(find_paths().sessions(workspace))
    if not found:
        click.echo(f"no sessions in {workspace}", err=True)
    for info in found[:limit]:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(info.modified))
        click.echo(f"{info.session_id}  {when}  {info.title}")
    if len(found) > limit:
        click.echo(f"{len(found) - limit} more; see them with --limit {len(found)}", err=True)
