"""`git`: the commands that look at history and record work. What takes work out of the tree (stash) asks first: approval.py."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from kcode.events import PlainDisplay
from kcode.tools.outputs import Outputs
from kcode.tools.refusal import Refusal, settle
from kcode.tools.tool import Access, Emit, Outcome
from kcode.tools.truncate import plain
from kcode_sandbox.sandbox import Sandbox

TIMEOUT_S = 60.0
DEFAULT_COUNT = 20
ENVIRONMENT = {
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_PAGER": "cat",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_EDITOR": "true",
    "LC_ALL": "C.UTF-8",
}
# The workspace may belong to another user than the one inside; fsmonitor would run a program the repository names.
CONFIG = ("-c", "safe.directory=*", "-c", "core.fsmonitor=false", "-c", "color.ui=false", "-c", "core.quotepath=false")
FALLBACK_IDENTITY = ("-c", "user.name=kcode", "-c", "user.email=kcode@localhost")

Command = Literal["status", "diff", "log", "show", "blame", "add", "commit", "branch", "stash", "worktree"]


class GitArguments(BaseModel):
    model_config = ConfigDict(extra="forbid")

    command: Command = Field(description="What to do; branch without a name lists, with a name creates and switches to it.")
    action: Literal["list", "push", "pop", "apply", "drop", "add", "remove"] = Field(
        default="list", description="Of stash (all but add, remove) or worktree (list, add a new branch `name`, remove)."
    )
    paths: list[str] = Field(
        default_factory=list, description="Files or folders it is limited to; add and blame need them.", max_length=100
    )
    revision: str | None = Field(
        default=None, description="Commit, branch or range for diff, log, show, blame.", max_length=200, pattern=r"^[^-\s][^\s]*$"
    )
    message: str | None = Field(default=None, description="Commit message (commit only).", min_length=1, max_length=10_000)
    name: str | None = Field(
        default=None,
        description="New branch of branch or worktree add; entry of stash (stash@{0}).",
        max_length=200,
        pattern=r"^[^-\s][^\s]*$",
    )
    staged: bool = Field(default=False, description="diff: what is staged.")
    max_count: int = Field(default=DEFAULT_COUNT, description="log: commits at most.", ge=1, le=200)


class GitTool:
    name: str = "git"
    access: Access = "execute"
    arguments: type[GitArguments] = GitArguments

    def __init__(self, sandbox: Sandbox, outputs: Outputs) -> None:
        self.sandbox = sandbox
        self.outputs = outputs

    def summary(self, arguments: GitArguments) -> str:
        action = arguments.action if arguments.command in {"stash", "worktree"} else ""
        words = [arguments.command, action, arguments.revision or arguments.name or "", *arguments.paths[:3]]
        return " ".join(["git", *(word for word in words if word)])

    async def run(self, arguments: GitArguments, emit: Emit) -> Outcome:
        return await settle(self.execute(arguments))

    async def execute(self, arguments: GitArguments) -> Outcome:
        command = command_line(arguments)
        records = arguments.command == "commit" or (arguments.command, arguments.action) == ("stash", "push")
        identity = FALLBACK_IDENTITY if records and not await self.has_identity() else ()
        result = await self.sandbox.exec(
            ["git", "--no-pager", *CONFIG, *identity, *command], timeout_s=TIMEOUT_S, environment=ENVIRONMENT
        )
        output = plain(result.output.decode(errors="replace")).rstrip()
        if result.timed_out:
            raise Refusal(f"git {arguments.command} took longer than {TIMEOUT_S:.0f} s")
        if result.exit_code != 0:
            raise Refusal(output.removeprefix("fatal: ") or f"git {arguments.command} ended with exit code {result.exit_code}")
        text = await self.outputs.bounded(output or silence(arguments), "git")
        if identity:
            text += "\n[committed as kcode <kcode@localhost>: no git identity is set where the sandbox can see it]"
        return Outcome(text, PlainDisplay(text))

    async def has_identity(self) -> bool:
        result = await self.sandbox.exec(["git", *CONFIG, "config", "user.email"], timeout_s=TIMEOUT_S, environment=ENVIRONMENT)
        return result.exit_code == 0 and bool(result.output.strip())


def command_line(arguments: GitArguments) -> list[str]:
    """The subcommand and its options; paths always stand behind `--`."""
    revision = [arguments.revision] if arguments.revision else []
    paths = ["--", *arguments.paths] if arguments.paths else []
    match arguments.command:
        case "status":
            return ["status", "--short", "--branch", *paths]
        case "diff":
            staged = ["--staged"] if arguments.staged else []
            return ["diff", "--no-ext-diff", "--no-textconv", *staged, *revision, *paths]
        case "log":
            form = "--format=%h %ad %an%d %s"
            return ["log", f"--max-count={arguments.max_count}", form, "--date=short", *revision, *paths]
        case "show":
            return ["show", "--no-ext-diff", "--no-textconv", *revision, *paths]
        case "blame":
            if len(arguments.paths) != 1:
                raise Refusal("blame needs exactly one path")
            return ["blame", "--date=short", *revision, *paths]
        case "add":
            if not arguments.paths:
                raise Refusal('add needs paths; [] adds nothing, ["."] adds all changes')
            return ["add", *paths]
        case "commit":
            if arguments.message is None:
                raise Refusal("commit needs a message")
            return ["commit", f"--message={arguments.message}", *paths]
        case "branch":
            return ["switch", "--create", arguments.name] if arguments.name else ["branch", "--all", "--verbose"]
        case "stash":
            return stash_line(arguments, paths)
        case "worktree":
            return worktree_line(arguments, revision)


def stash_line(arguments: GitArguments, paths: list[str]) -> list[str]:
    entry = [arguments.name] if arguments.name else []
    match arguments.action:
        case "list":
            return ["stash", "list"]
        case "push":
            message = [f"--message={arguments.message}"] if arguments.message else []
            return ["stash", "push", "--include-untracked", *message, *paths]
        case "pop" | "apply" | "drop":
            return ["stash", arguments.action, *entry]
        case _:
            raise Refusal(f"stash cannot {arguments.action}; it can list, push, pop, apply and drop")


def worktree_line(arguments: GitArguments, revision: list[str]) -> list[str]:
    if arguments.action == "list":
        return ["worktree", "list"]
    if len(arguments.paths) != 1:
        raise Refusal(f"worktree {arguments.action} needs exactly one path, the folder of the tree")
    folder = ["--", arguments.paths[0]]
    match arguments.action:
        case "add":
            branch = ["-b", arguments.name] if arguments.name else ["--detach"]
            return ["worktree", "add", *branch, *folder, *revision]
        case "remove":
            # Without --force git itself refuses a tree that holds changes.
            return ["worktree", "remove", *folder]
        case _:
            raise Refusal(f"worktree cannot {arguments.action}; it can list, add and remove")


def silence(arguments: GitArguments) -> str:
    """What an empty output means."""
    match arguments.command:
        case "diff":
            return "No differences."
        case "log":
            return "No commits."
        case "stash" if arguments.action == "list":
            return "No stashes."
        case "add":
            return f"Added {', '.join(arguments.paths)}."
        case _:
            return f"git {arguments.command}: done."
