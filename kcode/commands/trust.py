"""`kcode trust`: folders whose own configuration counts."""

from __future__ import annotations

from pathlib import Path

import click

from kcode.errors import StartError
from kcode.paths import check_workspace, find_paths
from kcode.trust import distrust, trust, trusted_folders


@click.command()
@click.argument("folder", metavar="[PATH]", default=".")
@click.option("--remove", is_flag=True, help="Trust it no more.")
@click.option("--list", "listed", is_flag=True, help="List the trusted folders instead.")
def command(folder: str, remove: bool, listed: bool) -> None:
    """Let the configuration in PATH (by default this folder) count: .kcode/config.toml with its hooks, and tool servers.

    They may come with a repository from anybody and run as you. What .kcode/config.toml says may only narrow the sandbox. Trust
    is for exactly that folder and is kept in your own configuration.
    """
    paths = find_paths()
    if listed:
        if remove:
            raise StartError("--list and --remove exclude each other; give one")
        for path in trusted_folders(paths):
            click.echo(path if path.is_dir() else f"{path} (gone)")
        return
    if remove:
        place = Path(folder).expanduser().resolve()
        click.echo(f"{place} is trusted no more" if distrust(paths, place) else f"{place} was not trusted")
        return
    place = check_workspace(Path(folder))
    click.echo(f"{place} is trusted from now on" if trust(paths, place) else f"{place} is trusted already")
