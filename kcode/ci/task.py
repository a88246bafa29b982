"""What is to be repaired: an issue, a log, or an event of a forge. All of it is text from outside, and nothing in it decides
what the bot may do: from an event only words and numbers are taken, never a place to push to or a setting."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kcode.ci.clean import one_line, visible
from kcode.errors import StartError
from kcode.tools.truncate import head_and_tail

MAX_BYTES = 16 << 20
ISSUE_CHARS = 12_000
LOG_CHARS = 8_000


@dataclass(frozen=True, slots=True)
class Task:
    """`kind` is what it came from, `number` that of the issue or pull request (0 for none). `sha` is the commit it speaks of."""

    kind: str = "tests"
    title: str = ""
    text: str = ""
    log: str = ""
    number: int = 0
    sha: str = ""

    @property
    def has_issue(self) -> bool:
        """Whether it says itself what is wrong; else the failing tests do."""
        return self.kind == "issue" and bool(self.title or self.text)


class _Event(BaseModel):
    model_config = ConfigDict(extra="ignore")


class _Comment(_Event):
    body: str | None = ""


class _Issue(_Event):
    title: str | None = ""
    body: str | None = ""
    number: int = Field(default=0, ge=0, le=2**53)


class _Commit(_Event):
    sha: str = ""
    id: str = ""


class _PullRequest(_Issue):
    head: _Commit = _Commit()


class _Check(_Event):
    name: str | None = ""
    display_title: str | None = ""
    head_sha: str = ""
    conclusion: str | None = ""


class _GitHub(_Event):
    """A webhook's body, as a job finds it at GITHUB_EVENT_PATH."""

    issue: _Issue | None = None
    comment: _Comment | None = None
    pull_request: _PullRequest | None = None
    workflow_run: _Check | None = None
    check_run: _Check | None = None
    check_suite: _Check | None = None


class _Attributes(_Event):
    iid: int = Field(default=0, ge=0, le=2**53)
    title: str | None = ""
    description: str | None = ""
    note: str | None = ""
    status: str | None = ""
    sha: str | None = ""
    last_commit: _Commit | None = None


class _GitLabIssue(_Event):
    iid: int = Field(default=0, ge=0, le=2**53)
    title: str | None = ""
    description: str | None = ""


class _GitLab(_Event):
    object_kind: str
    object_attributes: _Attributes = _Attributes()
    issue: _GitLabIssue | None = None
    merge_request: _GitLabIssue | None = None
    build_name: str | None = ""
    build_status: str | None = ""
    sha: str | None = ""


def read_task(issue: str, log: str, event: str) -> Task:
    """The task of the files so named ("" for none, "-" is standard input). Raises StartError."""
    if [issue, log, event].count("-") > 1:
        raise StartError("only one of --issue, --log and --event can be read from standard input (-)")
    task = parse_event(_read("--event", event), event) if event else Task()
    if issue:
        text = _text(_read("--issue", issue))
        title, _, rest = text.strip().partition("\n")
        task = Task("issue", one_line(title.lstrip("# ")), _cut(rest.strip(), ISSUE_CHARS), number=task.number, sha=task.sha)
    if log:
        text = head_and_tail(_text(_read("--log", log)).strip(), LOG_CHARS)
        kind = "log" if task.kind == "tests" else task.kind
        task = Task(kind, task.title, task.text, text, task.number, task.sha)
    return task


def _read(option: str, name: str) -> bytes:
    try:
        if name == "-":
            return sys.stdin.buffer.read(MAX_BYTES)
        with Path(name).open("rb") as file:
            return file.read(MAX_BYTES)
    except OSError as error:
        raise StartError(f"{option} {name}: {error.strerror}") from error


def _text(data: bytes) -> str:
    return visible(data.decode("utf-8", errors="replace"))


def _cut(text: str | None, limit: int) -> str:
    return head_and_tail(visible(text or ""), limit)


def parse_event(data: bytes, name: str) -> Task:
    """Raises StartError for what is no event that there is something to repair in."""
    try:
        document = json.loads(data)
        if not isinstance(document, dict):
            raise StartError(f"--event {name}: it is no JSON object; give the file that the forge wrote")
        is_gitlab = "object_kind" in document
        task = _of_gitlab(_GitLab.model_validate(document)) if is_gitlab else _of_github(_GitHub.model_validate(document))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise StartError(f"--event {name}: {place}: {first['msg']}") from error
    except (ValueError, RecursionError) as error:
        raise StartError(f"--event {name}: it is no JSON ({one_line(str(error))})") from error
    if task is None:
        raise StartError(
            f"--event {name}: neither an issue, a comment, a pull request nor a failed run or check; give --issue or --log"
        )
    return task


def _of_github(event: _GitHub) -> Task | None:
    if event.issue is not None:
        return _of_issue("issue", event.issue, event.comment)
    if event.pull_request is not None:
        pull = event.pull_request
        return _with_sha(_of_issue("pull request", pull, event.comment), pull.head.sha)
    for check in (event.workflow_run, event.check_run, event.check_suite):
        if check is not None:
            title = one_line(check.display_title or check.name or "a run")
            outcome = one_line(check.conclusion or "failure", 40)
            return _with_sha(Task("check", f"{title}: {outcome}"), check.head_sha)
    return None


def _of_gitlab(event: _GitLab) -> Task | None:
    attributes = event.object_attributes
    match event.object_kind:
        case "issue" | "work_item":
            return _of_issue("issue", _gitlab_issue(attributes), None)
        case "merge_request":
            commit = attributes.last_commit
            return _with_sha(_of_issue("merge request", _gitlab_issue(attributes), None), commit.id if commit else "")
        case "note":
            about = event.issue or event.merge_request
            subject = _Issue() if about is None else _gitlab_issue(about)
            return _of_issue("issue" if event.issue else "merge request", subject, _Comment(body=attributes.note))
        case "pipeline":
            return _with_sha(Task("check", f"pipeline: {one_line(attributes.status or 'failed', 40)}"), attributes.sha or "")
        case "build":
            name, status = one_line(event.build_name or "a job"), one_line(event.build_status or "failed", 40)
            return _with_sha(Task("check", f"{name}: {status}"), event.sha or "")
        case _:
            return None


def _gitlab_issue(found: _Attributes | _GitLabIssue) -> _Issue:
    return _Issue(title=found.title, body=found.description, number=found.iid)


def _of_issue(kind: str, issue: _Issue, comment: _Comment | None) -> Task:
    text = _cut(issue.body, ISSUE_CHARS)
    said = _cut(comment.body, ISSUE_CHARS // 2) if comment is not None else ""
    whole = "\n\n".join(part for part in (text, f"Comment:\n{said}" if said else "") if part)
    return Task(kind, one_line(issue.title or ""), whole, number=issue.number)


_HEX: Callable[[str], bool] = frozenset("0123456789abcdef").issuperset


def _with_sha(task: Task, sha: str) -> Task:
    known = sha if len(sha) in {40, 64} and _HEX(sha) else ""
    return Task(task.kind, task.title, task.text, task.log, task.number, known)
