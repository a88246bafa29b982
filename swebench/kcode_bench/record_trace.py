"""Record an agent trace: a session of kcode's own loop with its own tools, for backend/bench to replay against servers.

    python -m kcode_bench.record_trace backend/bench/traces/bugfix.json

The trace holds what the agent says, written by hand; recording plays it through a scripted model in a fresh copy of the code
it works on, with the bugs planted, and puts the tools' true results between. Recording a trace again renews the results.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import tarfile
import tempfile
from contextlib import aclosing
from dataclasses import replace
from io import BytesIO
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from kcode.events import CallFinished, TurnFinished
from kcode.models.openai_wire import JsonObject, encode_messages, encode_tools
from kcode.models.scripted import Reply, Script, ScriptedCall, ScriptedModel
from kcode.opening import Sessions
from kcode.paths import find_paths
from kcode.profiles import GENERIC
from kcode.settings import Settings
from kcode.tools.toolbox import build_specs, build_tools
from kcode_sandbox.detect import open_sandbox
from kcode_sandbox.policy import Policy

SHOWN_WORKSPACE = "/home/dev/kcode"
"""What the trace calls the folder of the session, wherever it was recorded."""


class Planted(BaseModel):
    """A change that makes the subject wrong: `old` stands once in the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    old: str
    new: str


class Subject(BaseModel):
    """The code of the session: some paths of this repository at a commit, and what was planted."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    commit: str
    paths: tuple[str, ...]
    planted: tuple[Planted, ...]


def make_workspace(repository: Path, subject: Subject, folder: Path) -> None:
    """The subject as a repository of one commit."""
    command = ["git", "-C", str(repository), "archive", subject.commit, *subject.paths]
    archive = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    with tarfile.open(fileobj=BytesIO(archive)) as members:
        members.extractall(folder, filter="data")
    for change in subject.planted:
        text = (folder / change.path).read_text()
        if text.count(change.old) != 1:
            raise SystemExit(f"{change.path} has {change.old!r} {text.count(change.old)} times at {subject.commit}, not once")
        (folder / change.path).write_text(text.replace(change.old, change.new))
    author = ["-c", "user.name=Dev", "-c", "user.email=dev@example.org"]
    for words in (["init", "-q"], ["add", "-A"], [*author, "commit", "-q", "-m", "edit tools: one way to find a place"]):
        subprocess.run(["git", *words], cwd=folder, check=True)


def replies_of(messages: list[JsonObject]) -> tuple[Reply, ...]:
    """What the agent says, step by step, as a script."""
    replies: list[Reply] = []
    for message in messages:
        if message["role"] != "assistant":
            continue
        calls: list[ScriptedCall] = []
        written = message.get("tool_calls") or []
        assert isinstance(written, list)
        for call in written:
            function = call["function"]
            calls.append(ScriptedCall(name=function["name"], arguments=function["arguments"]))
        replies.append(Reply(text=str(message["content"] or ""), calls=tuple(calls)))
    return tuple(replies)


def edited_files(workspace: Path, messages: list[JsonObject]) -> dict[str, str]:
    """The files that are edited, as they were before."""
    edits = [
        json.loads(str(call.arguments)) for reply in replies_of(messages) for call in reply.calls if call.name == "str_replace"
    ]
    return {path: (workspace / path).read_text() for path in dict.fromkeys(edit["path"] for edit in edits)}


async def play(workspace: Path, script: Path, prompt: str) -> tuple[JsonObject, ...]:
    """The messages of the session, one turn of it."""
    settings = replace(Settings(), model=f"scripted:{script}", profile="generic")
    session = await Sessions(settings, workspace, find_paths(), "auto").open(None, None, None)
    try:
        async with aclosing(session.submit(prompt)) as events:
            async for event in events:
                if isinstance(event, CallFinished):
                    first = event.result.text.partition("\n")[0]
                    print(f"{'ERROR ' if event.result.is_error else ''}{event.call.name}: {first[:120]}", flush=True)
                elif isinstance(event, TurnFinished):
                    print(f"{event.status} after {event.steps} steps: {event.reason}")
        return tuple(encode_messages(session.messages, native=False))
    finally:
        await session.close()


def declared_tools(workspace: Path) -> list[JsonObject]:
    return encode_tools(build_specs(build_tools(open_sandbox(Policy(workspace)), GENERIC.tools, ScriptedModel(Script()))))


def answer_tokens(model: Path, messages: list[JsonObject]) -> list[int]:
    """How many tokens each answer has in the vocabulary of `model`, its end token included."""
    # A tool of the recorder only: what is recorded does not need the engine.
    from kcode_backend.tokenizer import Tokenizer, read_vocabulary
    from kcode_backend.weights.gguf import GGUFFile

    tokenizer = Tokenizer(read_vocabulary(GGUFFile(model).metadata))
    counts: list[int] = []
    for reply in replies_of(messages):
        said = [
            reply.text,
            *(f'<tool_call>\n{{"name": "{call.name}", "arguments": {call.arguments}}}\n</tool_call>' for call in reply.calls),
        ]
        counts.append(len(tokenizer.encode_special("\n".join(part for part in said if part))) + 1)
    return counts


def record(path: Path, repository: Path, model: Path | None) -> None:
    trace = json.loads(path.read_text())
    prompt = next(message["content"] for message in trace["messages"] if message["role"] == "user")
    script = Script(name="trace", context_limit=None, replies=replies_of(trace["messages"]))
    with tempfile.TemporaryDirectory(prefix="kcode-trace-") as scratch:
        os.environ["KCODE_HOME"] = f"{scratch}/home"
        workspace = Path(scratch).resolve() / "work"
        workspace.mkdir()
        make_workspace(repository, Subject.model_validate(trace["subject"]), workspace)
        (Path(scratch) / "script.json").write_text(script.model_dump_json())
        trace["files"] = edited_files(workspace, trace["messages"])
        messages = asyncio.run(play(workspace, Path(scratch) / "script.json", prompt))
        trace["tools"] = declared_tools(workspace)
        trace["messages"] = json.loads(json.dumps(messages).replace(str(workspace), SHOWN_WORKSPACE))
    if model is not None:
        trace["answer_tokens"] = answer_tokens(model, trace["messages"])
    path.write_text(json.dumps(trace, indent=1, ensure_ascii=False) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--repository", type=Path, default=Path(), help="a clone with the subject's commit")
    parser.add_argument("--model", type=Path, help="count the answers' tokens with this model's vocabulary")
    given = parser.parse_args()
    record(given.trace, given.repository, given.model)


if __name__ == "__main__":
    main()
