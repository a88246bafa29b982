"""`kcode export`: a session as a document."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from kcode.export import Format, export, write_export
from kcode.paths import check_workspace, find_paths
from kcode.transcript import active_records, find_session, read_records


@click.command("export")
@click.argument("session", default="")
@click.option("--format", "style", type=click.Choice(["md", "html", "atif"]), default="md", show_default=True)
@click.option("-o", "--output", metavar="FILE", help="Write there instead of to standard output.")
@click.option("-C", "--cd", "folder", metavar="DIR", default=".", help="The session's folder; by default this one.")
def command(session: str, style: Format, output: str | None, folder: str) -> None:
    """Write the session whose id begins with SESSION (by default the last one) as markdown, HTML page or ATIF trajectory."""
    workspace = check_workspace(Path(folder))
    records = active_records(read_records(find_session(find_paths().sessions(workspace), session)))
    if output is not None:
        write_export(records, Path(output), style)
    else:
        sys.stdout.write(export(records, style))
