"""Whether a call may run: allow, ask the person, or deny with the reason the model reads."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from kcode.messages import ToolCall
from kcode.tools.tool import Access

ApprovalMode = Literal["plan", "ask", "auto"]
Answer = Literal["allow", "allow-session", "allow-always", "deny"]
"""Of a call, "allow-always" is for the session; of a grant, "allow" is for the turn and "allow-always" is kept for the folder."""


Before = Callable[[], Awaitable[str]]


async def nothing_before() -> str:
    return ""


@dataclass(frozen=True, slots=True)
class Question:
    """What the person is asked. `reason` says why; `summary` is one line naming the call."""

    call: ToolCall
    access: Access
    summary: str
    reason: str
    is_grant: bool = False
    """Not whether a call may run, but whether the sandbox is to be opened for something."""
    before: str = ""
    """The text that the call replaces, where its arguments do not hold it."""


@dataclass(frozen=True, slots=True)
class Reply:
    """`text` goes to the model with a denial: what the person wants instead."""

    answer: Answer
    text: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """`reason` is empty when allowed, else the text of the error result."""

    allowed: bool
    reason: str = ""


REASONS: Mapping[Access, str] = {
    "write": "it changes files",
    "execute": "it runs a command",
    "delegate": "another agent works in a copy without asking, and what it changes is brought over",
}
Asker = Callable[[Question], Awaitable[Reply]]
IsDirty = Callable[[], Awaitable[bool]]

# `git` as a command word, then any global options, then a subcommand that throws uncommitted work away.
_DESTRUCTIVE_GIT = re.compile(
    r"(?:^|[\s;&|(`])git(?:\s+-{1,2}[\w-]+(?:[= ]\S+)?)*\s+"
    r"(?:reset\s+[^;&|\n]*--(?:hard|merge|keep)"
    r"|clean\s+[^;&|\n]*-\w*[fd]"
    r"|checkout\s+(?:[^;&|\n]*\s)?(?:--\s|-f\b|--force\b|\.(?:\s|$))"
    r"|restore\b(?!\s+--staged\s+[^;&|\n]*$)"
    r"|switch\s+[^;&|\n]*(?:-f\b|--force\b|--discard-changes)"
    r"|stash\s+(?:drop|clear)"
    r"|rm\s+[^;&|\n]*-\w*f)"
)


def is_destructive_git(call: ToolCall) -> bool:
    """Whether the call is a git command, of the git tool or in a command line, that takes uncommitted work out of the tree."""
    try:
        arguments = json.loads(call.arguments)
    except ValueError:
        return False
    command = arguments.get("command") if isinstance(arguments, dict) else None
    if call.name == "git":
        return command == "stash" and arguments.get("action") in {"push", "pop", "drop"}
    return isinstance(command, str) and _DESTRUCTIVE_GIT.search(command) is not None


class Approval:
    """The session's rules. `mode` may be changed between calls; nothing else is kept but "always" answers.

    plan: only reading. ask: reading is free, anything else asks. auto: everything the sandbox allows. Git commands that
    destroy uncommitted work ask in every mode. Without an `asker` a question is a denial. The tools `free` never ask, but only
    read in plan mode.
    """

    def __init__(self, mode: ApprovalMode, asker: Asker | None, is_dirty: IsDirty, free: frozenset[str] = frozenset()) -> None:
        self.mode: ApprovalMode = mode
        self._asker = asker
        self._is_dirty = is_dirty
        self._always: set[str] = set()
        self._free = free
        self._asking = asyncio.Lock()

    async def decide(self, call: ToolCall, access: Access, summary: str, before: Before = nothing_before) -> Verdict:
        """The verdict on a call whose name and arguments are valid; `call.name` is the tool's own name."""
        if access == "read" or (access == "delegate" and self.mode == "plan"):
            return Verdict(True)
        if self.mode == "plan":
            return Verdict(False, f"Not run: {call.name} may change files, and in plan mode only reading is allowed.")
        if call.name in self._free:
            return Verdict(True)
        if is_destructive_git(call) and await self._is_dirty():
            reason = "this git command can throw uncommitted work away"
            return await self._ask(Question(call, access, summary, reason), before, remember=False)
        if self.mode == "auto" or call.name in self._always:
            return Verdict(True)
        reason = REASONS[access]
        return await self._ask(Question(call, access, summary, reason), before, remember=True)

    def in_copy(self, free: frozenset[str]) -> Approval:
        """The rules in a copy of the workspace, where the tools `free` do no harm; others ask as here."""
        rules = Approval(self.mode, self._asker, self._is_dirty, free)
        rules._asking, rules._always = self._asking, self._always
        return rules

    async def _ask(self, question: Question, before: Before, *, remember: bool) -> Verdict:
        if self._asker is None:
            return Verdict(
                False, f"Not run: {question.summary} needs approval ({question.reason}) and nobody is there to give it."
            )
        async with self._asking:
            if remember and question.call.name in self._always:
                return Verdict(True)
            reply = await self._asker(replace(question, before=await before()))
        if reply.answer == "deny":
            said = f" The user said: {reply.text}" if reply.text else ""
            return Verdict(False, f"Not run: the user denied {question.summary}.{said}")
        if reply.answer in {"allow-session", "allow-always"} and remember:
            self._always.add(question.call.name)
        return Verdict(True)
