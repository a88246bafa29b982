"""`kcode ci`: a failing test command or an issue becomes a verified patch."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import click

from kcode.ci.checks import Command
from kcode.ci.run import Order, run
from kcode.ci.task import read_task
from kcode.ci.work import MAX_ATTEMPTS, Plan
from kcode.errors import StartError
from kcode.paths import check_workspace, find_paths
from kcode.settings import load_settings


@click.command("ci")
@click.option("--test", "test", required=True, metavar="CMD", help="What has to succeed; bash runs it in DIR.")
@click.option("--issue", default="", metavar="FILE", help="An issue to fix, its title in the first line; - reads standard input.")
@click.option("--log", default="", metavar="FILE", help="A log of the failure; - reads standard input.")
@click.option("--event", default="", metavar="FILE", help="The event file of GitHub (GITHUB_EVENT_PATH) or GitLab.")
@click.option("--setup", default="", metavar="CMD", help="Run before the tests in every fresh tree, in the sandbox.")
@click.option("--keep", multiple=True, metavar="NAME", help="A folder that git ignores and the tests need, shown read-only.")
@click.option(
    "--allow", multiple=True, metavar="PATTERN", help="Paths that may change although they steer tests, programs or CI."
)
@click.option(
    "--attempts", type=click.IntRange(1, MAX_ATTEMPTS), default=1, show_default=True, help="Tries, each with its own seed."
)
@click.option(
    "--test-timeout", type=click.FloatRange(min=1), default=900.0, show_default=True, metavar="S", help="Of a run of CMD."
)
@click.option("--output-dir", metavar="DIR", help="Gets fix.patch, fix.bundle, title.txt, body.md, summary.json, transcripts.")
@click.option("--branch", default="", metavar="NAME", help="Of the commit; by default kcode/fix-….")
@click.option("--author", default="kcode <kcode@localhost>", metavar="WHO", help="Of the commit: NAME <ADDRESS>.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object as the last line of standard output.")
@click.option("--annotations", type=click.Choice(["auto", "github", "off"]), default="auto", help="Print workflow commands.")
@click.option("-C", "--cd", "folder", metavar="DIR", default=".", help="The checkout, or the folder in it to test in.")
@click.option("-m", "--model", metavar="NAME", help="As for kcode itself.")
@click.option("--base-url", metavar="URL", help="As for kcode itself.")
@click.option("--profile", metavar="NAME", help="As for kcode itself.")
@click.option("--network", metavar="off|HOSTS", default="off", show_default=True, help="What agent and tests may reach.")
@click.option("--max-turns", metavar="N", help="Model calls per attempt.")
@click.option("--max-tokens", metavar="N", help="Tokens per attempt.")
@click.option("--time-limit", metavar="SECONDS", help="Per attempt, for the agent.")
@click.option("--seed", metavar="N", help="Of the first attempt.")
def command(
    test: str,
    issue: str,
    log: str,
    event: str,
    setup: str,
    keep: tuple[str, ...],
    allow: tuple[str, ...],
    attempts: int,
    test_timeout: float,
    output_dir: str | None,
    branch: str,
    author: str,
    as_json: bool,
    annotations: str,
    folder: str,
    model: str | None,
    base_url: str | None,
    profile: str | None,
    network: str,
    max_turns: str | None,
    max_tokens: str | None,
    time_limit: str | None,
    seed: str | None,
) -> int:
    """Make CMD succeed, or fix an issue, on a copy of the last commit; the checkout stays as it is.

    The result counts only when CMD fails before and succeeds after it in fresh trees, nothing that passed before fails, and no
    test was weakened. Exit codes: 0 a verified fix, 1 could not start, 2 something under kcode failed, 4 stopped by the user,
    5 no verified fix.
    """
    if not test.strip():
        raise StartError("--test is empty; give the command that has to succeed")
    paths = find_paths()
    flags = {
        "model": model,
        "base_url": base_url,
        "profile": profile,
        "network": network,
        "max_turns": max_turns,
        "max_tokens": max_tokens,
        "time_limit_s": time_limit,
        "seed": seed,
        "approval_mode": "auto",
    }
    settings = load_settings(paths.config_file, os.environ, flags)
    plan = Plan(read_task(issue, log, event), Command(test, setup, ".", test_timeout), attempts, allow)
    is_github = annotations == "github" or (annotations == "auto" and os.environ.get("GITHUB_ACTIONS") == "true")
    out = Path(output_dir) if output_dir is not None else None
    order = Order(plan, check_workspace(Path(folder)), out, keep, branch, author, as_json, is_github)
    return asyncio.run(run(order, settings, paths))
