"""What the model reads is pinned: a change of a text or a schema shows as a change of the snapshot.

After a wanted change: `python tests/prompts/test_prompts.py` writes the snapshot anew.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import pytest

from kcode.models.scripted import Script, ScriptedModel
from kcode.tools.task import TaskTool, nested
from kcode.tools.toolbox import AnyTool, build_specs, build_tools
from kcode_prompts.prompt import PromptError, load
from kcode_sandbox.detect import open_sandbox
from kcode_sandbox.policy import Policy

ROOT = Path(__file__).resolve().parents[2]
SNAPSHOT = ROOT / "tests" / "snapshots" / "model_texts.md"
TEXTS = ROOT / "prompts" / "kcode_prompts"
VALUES = {"workspace": "/project", "sandbox": "bubblewrap · workspace-write · network off"}
NAMES = (
    "read",
    "grep",
    "glob",
    "repo_map",
    "str_replace",
    "create",
    "insert",
    "rewrite_function",
    "bash",
    "bash_input",
    "run_tests",
    "git",
    "todo",
    "view_image",
    "request_grant",
    "finish",
)
TASK = cast("AnyTool", TaskTool(nested))


MODEL = ScriptedModel(Script())


def render() -> str:
    """All texts, with their places for values, and all schemas. The sandbox is only constructed with: it is never started."""
    texts = sorted(path.relative_to(TEXTS).with_suffix("").as_posix() for path in TEXTS.rglob("*.md"))
    texts = sorted(path.relative_to(TEXTS).as_posix() for path in TEXTS.rglob("*.md"))
    parts = [f"# {name}\n\n{(TEXTS / name).read_text().strip()}\n" for name in texts if not name.startswith("tools/")]
    tools = build_tools(open_sandbox(Policy(ROOT, profile="danger-full-access")), NAMES, MODEL)
    for spec in build_specs((*tools, TASK)):
        schema = json.dumps(spec.schema, indent=1, ensure_ascii=False)
        parts.append(f"# tools/{spec.name}\n\n{spec.description}\n\n```json\n{schema}\n```\n")
    return "\n".join(parts)


def test_texts_and_schemas_are_as_pinned() -> None:
    assert render() == SNAPSHOT.read_text()


def test_every_tool_has_its_text_and_every_text_its_tool() -> None:
    assert {path.stem for path in (TEXTS / "tools").iterdir()} == {*NAMES, TASK.name}


def test_prompts_are_short() -> None:
    """About four characters a token: the standard prompt under 700 tokens, the small one under 80, each tool's text under 120."""
    assert len(load("system", **VALUES)) < 2800
    assert len(load("small")) < 320
    for name in (*NAMES, TASK.name):
        assert len(load(f"tools/{name}")) < 480


@pytest.mark.parametrize("name", [*NAMES, TASK.name])
def test_schemas_are_closed_and_every_argument_is_described(name: str) -> None:
    names = [name] if name in NAMES else []
    (tool,) = build_tools(open_sandbox(Policy(ROOT, profile="danger-full-access")), names, MODEL) or (TASK,)
    (spec,) = build_specs([tool])
    schema = json.loads(json.dumps(spec.schema))
    assert schema["additionalProperties"] is False
    assert "title" not in json.dumps(schema)
    assert "maxLength" not in json.dumps(schema)
    assert "anyOf" not in json.dumps(schema)
    for argument in schema["properties"].values():
        assert argument["description"]
        assert "type" in argument


def test_a_missing_an_unused_and_an_unknown_value_fail() -> None:
    assert "/project" in load("system", **VALUES)
    with pytest.raises(PromptError, match="missing values: sandbox"):
        load("system", workspace="/project")
    with pytest.raises(PromptError, match="unused values: model"):
        load("small", model="x")
    with pytest.raises(PromptError, match="no text 'nothing'"):
        load("nothing")


if __name__ == "__main__":
    SNAPSHOT.write_text(render())
