"""`kcode acp`: an editor as the screen."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import sys
from typing import TYPE_CHECKING, cast

import click

from kcode.errors import StartError
from kcode.paths import Paths, find_paths
from kcode.settings import Settings, Value, load_settings

if TYPE_CHECKING:
    from acp.interfaces import Agent as Served


@click.command()
@click.option("-m", "--model", metavar="NAME", help="As of kcode itself.")
@click.option("--base-url", metavar="URL", help="As of kcode itself.")
@click.option("--approval-mode", metavar="MODE", help="plan, ask (default) or auto; the editor can change it.")
def command(model: str | None, base_url: str | None, approval_mode: str | None) -> None:
    """Speak the Agent Client Protocol on standard input and output, for editors that start agents. docs/extending.md has more."""
    if importlib.util.find_spec("acp") is None:
        raise StartError("the package agent-client-protocol is missing; pip install 'kcode-agent[acp]'")
    logging.basicConfig(level=logging.WARNING, format="kcode: %(message)s", stream=sys.stderr)
    paths = find_paths()
    flags: dict[str, Value] = {"model": model, "base_url": base_url, "approval_mode": approval_mode}
    asyncio.run(_serve(load_settings(paths.config_file, os.environ, flags), paths))


async def _serve(settings: Settings, paths: Paths) -> None:
    from acp import run_agent

    from kcode.acp.agent import Agent

    agent = Agent(settings, paths)
    try:
        # What is not there the SDK answers with "method not found".
        await run_agent(cast("Served", agent))
    finally:
        await agent.close()
