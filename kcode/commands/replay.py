"""`kcode replay`: where a model leaves the path of a recorded session."""

from __future__ import annotations

import asyncio
import difflib
import os
import tempfile
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import click

from kcode.errors import StartError
from kcode.opening import Sessions
from kcode.paths import check_workspace, find_paths
from kcode.replay import Asked, Replayed, replay, told
from kcode.settings import Settings, load_settings
from kcode.transcript import Opened, active_records, find_session, fork, read_records

DIVERGED = 3
GUIDED = (
    "the small profile binds each of its questions with a grammar, a beginning and a seed that are no part of the transcript, so"
    " they cannot be asked again; replay needs a session of the profile generic or kimi"
)


@click.command("replay")
@click.argument("session", default="")
@click.option("--from", "first_step", metavar="STEP", type=click.IntRange(min=1), default=1, help="Begin with this step.")
@click.option("-m", "--model", metavar="NAME", help="Another model than the session's.")
@click.option("--base-url", metavar="URL", help="An OpenAI-style server instead of kcode's own engine.")
@click.option("--seed", metavar="N", type=click.IntRange(min=0), help="Another seed than the session's.")
@click.option("--temperature", metavar="T", type=click.FloatRange(min=0), help="Another temperature than the session's.")
@click.option("-C", "--cd", "folder", metavar="DIR", default=".", help="The session's folder; by default this one.")
def command(
    session: str,
    first_step: int,
    model: str | None,
    base_url: str | None,
    seed: int | None,
    temperature: float | None,
    folder: str,
) -> int:
    """Ask the model each step of SESSION (by default the last one) again, with the recorded results; no tool runs.

    Ends with the first answer that differs and exit code 3, or with 0 when none does.
    """
    settings = load_settings(find_paths().config_file, os.environ, {"model": model, "base_url": base_url})
    return asyncio.run(_replay(session, first_step, settings, check_workspace(Path(folder)), Asked(seed, temperature)))


async def _replay(wanted: str, first_step: int, settings: Settings, workspace: Path, asked: Asked) -> int:
    paths = find_paths()
    path = find_session(paths.sessions(workspace), wanted)
    records = active_records(read_records(path))
    with tempfile.TemporaryDirectory(prefix="kcode-replay-") as folder:
        # The session is opened from a copy, so that replaying leaves no trace in it.
        apart = replace(paths, state=Path(folder))
        copies = apart.sessions(workspace)
        copies.mkdir(parents=True)
        copy = copies / path.name
        copy.write_bytes(path.read_bytes())
        # No tool runs, but a session without walls is offered other tools than one within.
        has_walls = not any(isinstance(record, Opened) and "danger-full-access" in record.sandbox for record in records)
        settings = replace(settings, sandbox="read-only" if has_walls else "danger-full-access")
        opened = await Sessions(settings, workspace, apart, "plan").open(fork(copy).stem, None, None)
        try:
            if opened.profile.guided:
                raise StartError(GUIDED)
            await opened.start()
            equipment = opened.equipment
            steps = 0
            # What the settings say today counts only for sessions that were recorded without it.
            sampling = replace(
                equipment.sampling, max_tokens=equipment.sampling.max_tokens or equipment.limits.answer_tokens, varies=False
            )
            async with aclosing(replay(records, equipment.model, equipment.specs, sampling, first_step, asked)) as found:
                async for replayed in found:
                    steps += 1
                    if not replayed.is_same:
                        click.echo(_difference(replayed))
                        return DIVERGED
        finally:
            await opened.close()
    click.echo(f"{steps} steps replayed from step {first_step}, all as recorded")
    return 0


def _difference(replayed: Replayed) -> str:
    lines = difflib.unified_diff(
        told(replayed.recorded).splitlines(), told(replayed.now).splitlines(), "recorded", "now", lineterm=""
    )
    return "\n".join([f"step {replayed.step} is the first that differs:", *lines])
