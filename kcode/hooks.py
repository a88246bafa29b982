"""Hooks: commands of the user's own that run before a call, after one, and at the end of a turn.

`[[hooks.before_tool]]`, `[[hooks.after_tool]]` and `[[hooks.end_of_turn]]` of the user's config.toml, and of a trusted folder's.
They run in the sandbox like the model's commands, since what they start mostly lies in the workspace; `where = "host"` takes one
of the user's own out of it. A hook reads one JSON object on standard input and answers by its exit code:

    0   go on. What after_tool wrote to standard output is added to the result that the model reads.
    2   before_tool: the call does not run; after_tool: the result counts as an error; end_of_turn: the model goes on, at most
        MAX_AGAIN times a turn. Standard error is the reason, which the model reads.
    any other: the user is told, and nothing else happens.

Where kcode asks the user before a call (the mode `ask`), it asks first: a hook sees only what the user let pass.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import tomllib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from kcode.errors import ConfigError
from kcode.events import Notice, PlainDisplay
from kcode.paths import Paths
from kcode.steps import Driver, Ending, Steps
from kcode.tools.tool import Access, Emit, Outcome, replaced_by
from kcode.tools.toolbox import AnyTool
from kcode.tools.truncate import plain
from kcode.trust import is_trusted
from kcode_sandbox.sandbox import Sandbox

MAX_AGAIN = 3
MAX_SAID = 4 << 10
REFUSED = 2
Moment = Literal["before_tool", "after_tool", "end_of_turn"]
Told = Mapping[str, object]


class Hook(BaseModel):
    """`tools` is a pattern that the whole of a tool's name matches. `command` is a line of bash, run in the workspace."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    command: str = Field(min_length=1)
    tools: str = ".*"
    timeout_s: float = Field(default=60, gt=0, le=3600)
    where: Literal["sandbox", "host"] = "sandbox"

    @field_validator("tools")
    @classmethod
    def _is_pattern(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"{value!r} is no regular expression: {error}") from error
        return value


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    before_tool: tuple[Hook, ...] = ()
    after_tool: tuple[Hook, ...] = ()
    end_of_turn: tuple[Hook, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """`refused`: by exit code 2. `text` is its reason then, else what the hook has to say to the model."""

    refused: bool
    text: str


@dataclass(frozen=True, slots=True)
class Hooks:
    """All of a session, the user's before the folder's. `tell` takes what the user is to know."""

    tables: tuple[_Table, ...]
    sandbox: Sandbox
    tell: Callable[[str], None]

    def __bool__(self) -> bool:
        return any(table.before_tool or table.after_tool or table.end_of_turn for table in self.tables)

    async def answer(self, moment: Moment, told: Told, tool: str = "") -> Answer:
        """Run those of the moment, one after another; the first that refuses ends it."""
        said: list[str] = []
        for hook in self._of(moment):
            if tool and not re.fullmatch(hook.tools, tool):
                continue
            request = json.dumps({"event": moment, "workspace": str(self.sandbox.policy.workspace), **told}).encode()
            code, output, errors = await self._run(hook, request)
            if code == REFUSED:
                return Answer(True, errors or f"the hook {hook.command!r} refused it and gave no reason")
            if code != 0:
                ended = f"was killed after {hook.timeout_s:g} s" if code is None else f"ended with {code}"
                last = errors.splitlines()[-1] if errors else "it said nothing"
                self.tell(f"the hook {hook.command!r} ({moment}) {ended}: {last}")
            elif output:
                said.append(output)
        return Answer(False, "\n".join(said))

    def _of(self, moment: Moment) -> list[Hook]:
        return [hook for table in self.tables for hook in getattr(table, moment)]

    async def _run(self, hook: Hook, request: bytes) -> tuple[int | None, str, str]:
        if hook.where == "host":
            code, output, errors = await _on_host(hook, request, self.sandbox.policy.workspace)
        else:
            argv = ["bash", "-c", hook.command]
            result = await self.sandbox.exec(argv, timeout_s=hook.timeout_s, stdin=request, separate_stderr=True)
            code, output, errors = result.exit_code, result.output, result.stderr
        return code, _cut(output), _cut(errors)


def find_hooks(paths: Paths, workspace: Path, sandbox: Sandbox, tell: Callable[[str], None]) -> Hooks:
    """Raises ConfigError naming the file and what is wrong in it."""
    tables = [_read(paths.config_file)]
    if is_trusted(paths, workspace):
        file = workspace / ".kcode" / "config.toml"
        table = _read(file)
        if any(hook.where == "host" for hook in (*table.before_tool, *table.after_tool, *table.end_of_turn)):
            own = f'where = "host" is for your own {paths.config_file}'
            raise ConfigError(f"{file}: hooks: {own}; a folder's hooks run in the sandbox")
        tables.append(table)
    return Hooks(tuple(tables), sandbox, tell)


def _read(file: Path) -> _Table:
    if file.is_symlink() or not file.is_file():
        return _Table()
    try:
        return _Table.model_validate(tomllib.loads(file.read_text(encoding="utf-8")).get("hooks", {}))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(("hooks", *map(str, first["loc"])))
        raise ConfigError(f"{file}: {place}: {first['msg'].removeprefix('Value error, ')}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file} is not valid TOML: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {file}: {error}") from error


class HookedTool:
    """A tool with the hooks before and after its calls."""

    def __init__(self, tool: AnyTool, hooks: Hooks) -> None:
        self.name = tool.name
        self.access: Access = tool.access
        self.arguments = tool.arguments
        self._tool = tool
        self._hooks = hooks

    def summary(self, arguments: BaseModel) -> str:
        return self._tool.summary(arguments)

    async def before(self, arguments: BaseModel) -> str:
        return await replaced_by(self._tool, arguments)

    async def run(self, arguments: BaseModel, emit: Emit) -> Outcome:
        told = {"tool": self.name, "arguments": arguments.model_dump(mode="json")}
        before = await self._hooks.answer("before_tool", told, self.name)
        if before.refused:
            said = f"Not run: a hook of the user's refused it: {before.text}"
            return Outcome(said, PlainDisplay(said), is_error=True, is_refused=True)
        outcome = await self._tool.run(arguments, emit)
        after = await self._hooks.answer("after_tool", {**told, "result": outcome.text, "is_error": outcome.is_error}, self.name)
        if not after.text:
            return outcome
        return replace(outcome, text=f"{outcome.text}\n\n[hook] {after.text}", is_error=outcome.is_error or after.refused)


def hooked(tools: Sequence[AnyTool], hooks: Hooks) -> tuple[AnyTool, ...]:
    return tuple(cast("AnyTool", HookedTool(tool, hooks)) for tool in tools)


def at_end(driver: Driver, hooks: Hooks, again: int = MAX_AGAIN) -> Driver:
    """The driver, sent on with the reason as often as a hook refuses the end, at most `again` times; then the user is told."""

    async def drive(steps: Steps, said: str) -> Ending:
        ending = await driver(steps, said)
        rounds = 0
        while ending.status == "finished":
            last = next((message.text for message in reversed(steps.messages) if message.role == "assistant"), "")
            answer = await hooks.answer("end_of_turn", {"result": ending.result or last})
            if not answer.refused:
                break
            if rounds == again:
                hooks.tell(f"a hook refused the end of the turn, which ended all the same: {answer.text}")
                break
            rounds += 1
            ending = await driver(steps, answer.text)
        return ending

    return drive


def unmatched(hooks: Hooks, names: Collection[str]) -> tuple[Notice, ...]:
    """A notice for each pattern that is the name of no tool, which is most likely a slip."""
    of_calls = [hook for table in hooks.tables for hook in (*table.before_tool, *table.after_tool)]
    missed = [hook for hook in of_calls if not any(re.fullmatch(hook.tools, name) for name in names)]
    return tuple(Notice("warning", f"the hook {hook.command!r} never runs: no tool is called {hook.tools!r}") for hook in missed)


async def _on_host(hook: Hook, request: bytes, workspace: Path) -> tuple[int | None, bytes, bytes]:
    process = await asyncio.create_subprocess_exec(
        "bash",
        "-c",
        hook.command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=workspace,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(hook.timeout_s):
            output, errors = await process.communicate(request)
        return process.returncode, output, errors
    except TimeoutError:
        return None, b"", b""
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def _cut(data: bytes) -> str:
    text = plain(data.decode(errors="replace")).strip()
    return text if len(text) <= MAX_SAID else f"{text[:MAX_SAID]}\n[cut at {MAX_SAID} characters]"
