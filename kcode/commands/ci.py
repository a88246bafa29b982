"""`kcode ci`: a failing test command or an issue becomes a verified patch."""

from __future__ import annotations

import asyncio
import os
from functools import partial
from pathlib import Path

import click

from kcode.ci.checks import Command
from kcode.ci.forge import Wish
from kcode.ci.run import Order, run
from kcode.ci.task import read_task
from kcode.ci.work import MAX_ATTEMPTS, Plan
from kcode.errors import StartError
from kcode.paths import check_workspace, find_paths
from kcode.settings import Value, load_settings

SETTINGS = "kcode.ci.settings"
WISHES = "kcode.ci.wishes"


def _keep(group: str, context: click.Context, option: click.Parameter, given: str | bool | None) -> None:
    if option.name and given is not None:
        context.meta.setdefault(group, {})[option.name] = given


setting = partial(click.option, callback=partial(_keep, SETTINGS), expose_value=False)
"""An option that is one of the settings, of the same name."""
publishing = partial(click.option, callback=partial(_keep, WISHES), expose_value=False)
"""An option that is a field of Wish, of the same name."""


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
@publishing("--push", is_flag=True, help="Push the branch of a verified fix.")
@publishing("--open-pr", is_flag=True, help="Push, and open a pull request (GitLab: merge request).")
@publishing("--draft", is_flag=True, help="Open it as a draft.")
@publishing("--remote", default="origin", show_default=True, metavar="NAME", help="The remote of the checkout to push to.")
@publishing("--base", default="", metavar="BRANCH", help="What to merge into; by default the branch that is checked out.")
@publishing("--forge", type=click.Choice(["", "github", "gitlab"]), default="", metavar="NAME", help="github or gitlab.")
@publishing("--repo", default="", metavar="OWNER/NAME", help="On the forge; by default what the job or the remote says.")
@publishing("--api-url", default="", metavar="URL", help="Of the forge; by default what the job or the remote says.")
@publishing("--token-env", default="", metavar="VARIABLE", help="Holds the token; by default GITHUB_TOKEN or GITLAB_TOKEN.")
@click.option("-C", "--cd", "folder", metavar="DIR", default=".", help="The checkout, or the folder in it to work and test in.")
@setting("-m", "--model", metavar="NAME", help="As for kcode itself.")
@setting("--base-url", metavar="URL", help="As for kcode itself.")
@setting("--profile", metavar="NAME", help="As for kcode itself.")
@setting("--network", metavar="off|HOSTS", default="off", show_default=True, help="What agent and tests may reach.")
@setting("--max-turns", metavar="N", help="Model calls per attempt.")
@setting("--max-tokens", metavar="N", help="Tokens per attempt.")
@setting("--time-limit", "time_limit_s", metavar="SECONDS", help="Per attempt, for the agent.")
@setting("--seed", metavar="N", help="Of the first attempt.")
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
) -> int:
    """Make CMD succeed, or fix an issue, on a copy of the last commit; the checkout stays as it is.

    The result counts only when CMD fails before and succeeds after it in fresh trees, nothing that passed before fails, and no
    test was weakened. Exit codes: 0 a verified fix, 1 could not start, 2 something under kcode failed, 4 stopped by the user,
    5 no verified fix.
    """
    if not test.strip():
        raise StartError("--test is empty; give the command that has to succeed")
    paths = find_paths()
    given = click.get_current_context().meta
    flags: dict[str, Value] = {**given.get(SETTINGS, {}), "approval_mode": "auto"}
    settings = load_settings(paths.config_file, os.environ, flags)
    plan = Plan(read_task(issue, log, event), Command(test, setup, test_timeout), attempts, allow)
    is_github = annotations == "github" or (annotations == "auto" and os.environ.get("GITHUB_ACTIONS") == "true")
    out = Path(output_dir) if output_dir is not None else None
    wish = Wish(**given.get(WISHES, {}))
    order = Order(plan, check_workspace(Path(folder)), out, keep, branch, author, as_json, is_github, wish)
    return asyncio.run(run(order, settings, paths))
