"""What the bot says of its work: title and body for a pull request, one JSON object, annotations. What others wrote stands in
blocks of code, in which it is nothing but text."""

from __future__ import annotations

import difflib
import json
import os.path
from dataclasses import asdict, dataclass
from pathlib import Path

import kcode
from kcode.ci.checks import TestRun
from kcode.ci.clean import ORDERS, code_span, fenced, one_line, title_of, visible
from kcode.ci.repository import Checkout, FileChange
from kcode.ci.work import Outcome, Plan, Verified
from kcode.errors import KcodeError

MAX_ANNOTATIONS = 50
ISSUE_CHARS = 4000
SAID_CHARS = 2000
MESSAGE_CHARS = 1000
MAX_FILES_LISTED = 50


@dataclass(frozen=True, slots=True)
class Annotation:
    """A remark on lines of a file; `path` is relative to the repository's root, lines count from 1."""

    path: str
    start_line: int
    end_line: int
    level: str
    title: str
    message: str


@dataclass(frozen=True, slots=True)
class Proposal:
    """A verified repair as it would be merged."""

    branch: str
    commit: str
    title: str
    body: str


def title(plan: Plan) -> str:
    task = plan.task
    return title_of(f"Fix: {task.title}" if task.has_issue and task.title else f"Make {plan.command.test} pass")


def commit_message(plan: Plan, verified: Verified, base: str) -> str:
    """Nothing in it but the title comes from outside."""
    facts = (
        f"The test command failed on {base[:12]} ({verified.before.told}) and succeeds with this change ({verified.after.told})."
    )
    return f"{title(plan)}\n\n{facts}\nVerified by kcode {kcode.__version__} twice in fresh trees, by {verified.judged_by}.\n"


def body(plan: Plan, outcome: Outcome, verified: Verified, checkout: Checkout) -> str:
    """Markdown."""
    task = plan.task
    about = f" It is about {task.kind} #{task.number}." if task.number else ""
    changed = [f"- {code_span(change.path)} {_lines(change)}" for change in verified.changes[:MAX_FILES_LISTED]]
    said = outcome.attempts[-1].finished.result.strip()
    parts = [
        f"{code_span(plan.command.test)} failed on {checkout.base[:12]} and succeeds with this change.{about}",
        f"| | test command |\n|---|---|\n| before | {verified.before.told} |\n| after | {verified.after.told} |",
        f"Verified twice, in fresh trees without network, by {verified.judged_by}; the tests that decided are those of the base. "
        "A green test command shows no more than its tests do: review this like the work of somebody you do not know.",
        "Changed:\n\n" + "\n".join(changed),
    ]
    words = "\n\n".join(part for part in (task.title, task.text) if part)
    if words:
        parts.append(_folded(f"The {task.kind}, as it was written", fenced(words, ISSUE_CHARS)))
    if said:
        parts.append(_folded("What the model says of it (nobody verified that)", fenced(said, SAID_CHARS)))
    parts.append(f"Made by kcode {kcode.__version__} with {code_span(outcome.model)}.")
    return "\n\n".join(parts) + "\n"


def _folded(summary: str, block: str) -> str:
    return f"<details><summary>{summary}</summary>\n\n{block}\n\n</details>"


def _lines(change: FileChange) -> str:
    if change.old is None:
        return "(new)"
    if change.new is None:
        return "(deleted)"
    old, new = change.old.splitlines(), change.new.splitlines()
    marks = [line[:1] for line in list(difflib.diff_bytes(difflib.unified_diff, old, new, n=0))[2:]]
    return f"(+{marks.count(b'+')} -{marks.count(b'-')})"


def remarks(outcome: Outcome, below: str) -> tuple[Annotation, ...]:
    """Of a repair the changed lines; else the tests that fail in the folder `below`, where they do."""
    if outcome.verified is not None:
        found = [item for change in outcome.verified.changes for item in _changed_lines(change)]
    else:
        found = _failures(outcome.before, below)
    return tuple(found[:MAX_ANNOTATIONS])


def _changed_lines(change: FileChange) -> list[Annotation]:
    if change.new is None:
        return []
    old, new = (change.old or b"").splitlines(), change.new.splitlines()
    found: list[Annotation] = []
    for tag, _, _, start, end in difflib.SequenceMatcher(a=old, b=new, autojunk=False).get_opcodes():
        if tag != "equal":
            text = "kcode proposes to change this" if tag != "insert" else "kcode proposes to add this"
            found.append(Annotation(change.path, start + 1, max(end, start + 1), "notice", "kcode", text))
    return found


def _failures(before: TestRun, below: str) -> list[Annotation]:
    found: list[Annotation] = []
    for test in before.failing:
        frame = test.frames[-1] if test.frames else None
        path = frame.path if frame is not None else test.id.partition("::")[0]
        line = frame.line if frame is not None else 1
        if path and not path.startswith(("/", "..")):
            message = visible(test.message)[:MESSAGE_CHARS]
            found.append(
                Annotation(visible(os.path.normpath(f"{below}/{path}")), line, line, "error", one_line(test.id, 200), message)
            )
    return found


def github_command(item: Annotation) -> str:
    """A workflow command: what the runner shows beside the line. No value in it can end it or begin another."""
    places = f"file={_property(item.path)},line={item.start_line},endLine={item.end_line},title={_property(item.title)}"
    return f"::{item.level} {places}::{_data(item.message)}"


def _data(text: str) -> str:
    broken = ORDERS.sub("# #", text)
    return broken.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def document(plan: Plan, outcome: Outcome, checkout: Checkout, folder: Path, proposal: Proposal | None) -> dict[str, object]:
    """The summary: what --json prints."""
    verified = outcome.verified
    usage = outcome.usage
    return {
        "command": "ci",
        "status": outcome.status,
        "exit_code": outcome.exit_code,
        "reason": outcome.reason,
        "task": {"kind": plan.task.kind, "title": plan.task.title, "number": plan.task.number},
        "test_command": plan.command.test,
        "base": checkout.base,
        "base_branch": checkout.branch,
        "dirty": list(checkout.dirty),
        "before": outcome.before.document() if verified is None else verified.before.document(),
        "after": verified.after.document() if verified is not None else None,
        "judged_by": verified.judged_by if verified is not None else None,
        "files": [change.path for change in verified.changes] if verified is not None else [],
        "branch": proposal.branch if proposal is not None else None,
        "commit": proposal.commit if proposal is not None else None,
        "title": proposal.title if proposal is not None else None,
        "pushed": False,
        "pull_request": None,
        "problem": "",
        "attempts": [attempt.document() for attempt in outcome.attempts],
        "model": outcome.model,
        "sandbox": outcome.sandbox,
        "usage": {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens},
        "annotations": [asdict(item) for item in remarks(outcome, checkout.below)],
        "output_dir": str(folder),
    }


def failure(error: KcodeError) -> dict[str, object]:
    """The summary of a run that came to no outcome."""
    status = {1: "not_started", 4: "interrupted"}.get(error.exit_code, "error")
    return {"command": "ci", "status": status, "exit_code": error.exit_code, "reason": one_line(str(error))}


def as_line(found: dict[str, object]) -> str:
    """One line of JSON in which no CI runner finds an order."""
    return json.dumps(found, ensure_ascii=True).replace("##", "#\\u0023")
