"""One run of the patch bot: from what is asked to files, an exit code and, where asked for, a branch and a pull request."""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import shutil
import signal
import sys
import tempfile
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from kcode.ci.clean import log_line
from kcode.ci.forge import ForgeFailed, Target, Wish, check_wish, open_request, push, take_token
from kcode.ci.git import Git
from kcode.ci.report import (
    Proposal,
    as_line,
    body,
    commit_message,
    document,
    failure,
    github_command,
    remarks,
    title,
)
from kcode.ci.repository import Checkout, Workshop, named, open_checkout
from kcode.ci.work import Bot, Outcome, Plan, Verified
from kcode.errors import Aborted, KcodeError, StartError
from kcode.opening import Sessions
from kcode.paths import Paths, make_private
from kcode.settings import Settings
from kcode.transcript import new_session_id

BRANCH = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]|[./](?=[A-Za-z0-9_-])){0,99}")
AUTHOR = re.compile(r"(?P<name>[^<>\n]{1,100}?) <(?P<address>[^<>\s]{1,200})>")


@dataclass(frozen=True, slots=True)
class Order:
    """What the user asked for on the command line. `branch` is "" for one that kcode names."""

    plan: Plan
    folder: Path
    output_dir: Path | None = None
    kept: tuple[str, ...] = ()
    branch: str = ""
    author: str = "kcode <kcode@localhost>"
    as_json: bool = False
    is_github: bool = False
    wish: Wish = field(default_factory=Wish)


def check(order: Order, settings: Settings) -> tuple[str, str]:
    """The author's name and address. Raises StartError for what must not be."""
    if settings.sandbox != "workspace-write":
        raise StartError(
            f"kcode ci works in the sandbox alone; {settings.sandbox} is set (--sandbox, KCODE_SANDBOX, config.toml)"
        )
    if settings.network == "on":
        raise StartError("--network on would let text from outside send anything anywhere; name the hosts that the tests need")
    if order.branch and not BRANCH.fullmatch(order.branch):
        raise StartError(f"--branch {order.branch!r}: letters, digits and ._/- in between, at most 100, please")
    author = AUTHOR.fullmatch(order.author)
    if author is None:
        raise StartError(f"--author {order.author!r}: give NAME <ADDRESS>")
    return author["name"], author["address"]


async def run(order: Order, settings: Settings, paths: Paths) -> int:
    """The exit code: 0 a verified fix, 5 none, and those of a headless run. What is raised is told in the JSON object, too."""
    try:
        return await _stoppable(order, settings, paths)
    except KcodeError as error:
        if order.as_json:
            print(as_line(failure(error)), flush=True)
        raise


async def _stoppable(order: Order, settings: Settings, paths: Paths) -> int:
    author = check(order, settings)
    tokens = take_token(order.wish, os.environ)
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    scratch = Path(tempfile.mkdtemp(prefix="kcode-ci-"))
    try:
        return await _run(order, settings, paths, scratch, author, tokens)
    except asyncio.CancelledError as error:
        raise Aborted("stopped by a signal") from error
    finally:
        await asyncio.to_thread(shutil.rmtree, scratch, True)


async def _run(
    order: Order, settings: Settings, paths: Paths, scratch: Path, author: tuple[str, str], tokens: dict[str, str]
) -> int:
    git = Git(scratch / "gitconfig")
    checkout = open_checkout(git, order.folder, order.kept)
    plan = order.plan
    target = None
    if order.wish.push or order.wish.open_pr:
        target = check_wish(order.wish, checkout, order.branch, git, tokens, os.environ)
    folder = _output_folder(order, paths, checkout, git)
    _tell_of(checkout, plan)
    # What a user has added to kcode (servers, hooks, skills, grants) is not for text from outside to use.
    bare = replace(paths, config=make_private(scratch / "config"))
    sessions = Sessions(settings, checkout.workspace, bare, "auto")
    workshop = Workshop(git, checkout, scratch)
    outcome = await Bot(sessions, checkout, workshop, plan, folder, say).run()
    proposal = None
    if outcome.verified is not None:
        proposal = await asyncio.to_thread(_propose, order, plan, outcome, outcome.verified, checkout, workshop, folder, author)
    found = document(plan, outcome, checkout, folder, proposal)
    if proposal is not None and target is not None:
        await _publish(order.wish, target, proposal, workshop.seed, git, found)
    _write(folder / "summary.json", json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    _report(order, outcome, proposal, folder, found, checkout)
    return 2 if found["problem"] else outcome.exit_code


async def _publish(wish: Wish, target: Target, proposal: Proposal, seed: Path, git: Git, found: dict[str, object]) -> None:
    """What came of it is written into the summary; a fix that could not be published is there all the same."""
    try:
        await asyncio.to_thread(push, target, proposal, seed, git)
        found["pushed"] = True
        say(f"pushed {proposal.branch}")
        if wish.open_pr:
            found["pull_request"] = await open_request(target, proposal)
            say(f"opened {found['pull_request']}")
    except ForgeFailed as error:
        found |= {"problem": str(error), "exit_code": error.exit_code}
        say(f"error: {error}")


def _output_folder(order: Order, paths: Paths, checkout: Checkout, git: Git) -> Path:
    folder = (order.output_dir or paths.state / "ci" / new_session_id()).absolute()
    if folder.is_relative_to(checkout.root):
        # What the repository brings there may be links that lead anywhere.
        name = str(folder.relative_to(checkout.root))
        if folder.resolve() != folder or git("ls-files", "--", f":(literal){name}", cwd=checkout.root):
            raise StartError(f"--output-dir {folder}: it is a part of the repository; name another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob("transcript-*.jsonl"):
            left.unlink()
        for name in ("fix.patch", "fix.bundle", "title.txt", "body.md", "summary.json", "annotations.json"):
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise StartError(f"--output-dir {folder}: {error.strerror}") from error
    return folder.resolve()


def _tell_of(checkout: Checkout, plan: Plan) -> None:
    if checkout.dirty:
        say(f"warning: {len(checkout.dirty)} paths have uncommitted changes, which are left out: {named(checkout.dirty)}")
    if plan.task.sha and plan.task.sha != checkout.base:
        say(f"warning: the event is about commit {plan.task.sha[:12]}, the checkout is at {checkout.base[:12]}")
    if checkout.kept:
        say(f"read-only from the checkout: {', '.join(path.name for path in checkout.kept)}")


def _propose(
    order: Order,
    plan: Plan,
    outcome: Outcome,
    verified: Verified,
    checkout: Checkout,
    workshop: Workshop,
    folder: Path,
    author: tuple[str, str],
) -> Proposal:
    branch = order.branch or f"kcode/fix-{plan.task.number or 'tests'}-{secrets.token_hex(4)}"
    commit = workshop.commit(verified.tree, branch, commit_message(plan, verified, checkout.base), author)
    proposal = Proposal(branch, commit, title(plan), body(plan, outcome, verified, checkout))
    (folder / "fix.patch").write_bytes(workshop.patch_of(commit))
    workshop.bundle(branch, folder / "fix.bundle")
    _write(folder / "title.txt", proposal.title + "\n")
    _write(folder / "body.md", proposal.body)
    return proposal


def _write(file: Path, text: str) -> None:
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(text, encoding="utf-8", errors="replace")
    partial.replace(file)


def _report(
    order: Order, outcome: Outcome, proposal: Proposal | None, folder: Path, found: dict[str, object], checkout: Checkout
) -> None:
    found_lines = remarks(outcome, checkout.below)
    _write(folder / "annotations.json", json.dumps([asdict(item) for item in found_lines], indent=2) + "\n")
    _write(folder / "before.txt", outcome.before.output)
    if order.is_github:
        for item in found_lines:
            print(github_command(item), flush=True)
    say(f"{outcome.status}: {outcome.reason}")
    if proposal is not None and not order.as_json:
        print(f"{proposal.title}\n\ncommit {proposal.commit}, branch {proposal.branch}")
        print(f"  git fetch {folder / 'fix.bundle'} {proposal.branch}:{proposal.branch}")
        print(f"  git am {folder / 'fix.patch'}", flush=True)
    if order.as_json:
        print(as_line(found), flush=True)


def say(line: str) -> None:
    """To standard error, so that nothing in it is an order to whoever reads a job's log."""
    print(
        log_line(line) if not line.startswith("  ") else f"{log_line(line).replace('kcode: ', 'kcode:   ', 1)}",
        file=sys.stderr,
        flush=True,
    )
