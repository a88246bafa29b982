"""Which profile a model gets, what effort means, and that the head of a conversation stays short."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from kcode.models.scripted import Script, ScriptedModel
from kcode.opening import system_text
from kcode.profiles import GENERIC, KIMI, SMALL, Profile, choose_profile, limits_for, sampling_for, sees, thinking_for
from kcode.settings import Settings, load_settings
from kcode.tools.task import TaskTool, nested
from kcode.tools.toolbox import AnyTool, build_specs, build_tools
from kcode.turn import Limits
from kcode_backend.chat.chatml import ChatML
from kcode_backend.chat.format import ChatMessage, ToolDeclaration
from kcode_backend.engine.request import SamplingParams
from kcode_backend.tokenizer import Tokenizer, read_vocabulary
from kcode_backend.weights.gguf import GGUFFile
from kcode_sandbox.detect import open_sandbox
from kcode_sandbox.policy import Policy

BUDGETS = ((SMALL, 700), (KIMI, 4000), (GENERIC, 4000))
# A real tokenizer makes 3.3 to 3.5 of it, the words that a chat format puts around the tools included.
CHARS_PER_TOKEN = 3.2


def head(profile: Profile, workspace: Path) -> tuple[str, list[ToolDeclaration]]:
    """The system text and the tools as the engine gets them."""
    sandbox = open_sandbox(Policy(workspace, profile="danger-full-access"))
    built = build_tools(sandbox, profile.tools, ScriptedModel(Script()))
    specs = build_specs(built if profile.guided else (*built, cast("AnyTool", TaskTool(nested))), brief=profile.brief)
    tools: list[ToolDeclaration] = []
    for spec in specs:
        function = {"name": spec.name, "description": spec.description, "parameters": spec.schema}
        tools.append(ToolDeclaration(spec.name, spec.schema, {"type": "function", "function": function}))
    return system_text(profile, workspace, sandbox), tools


@pytest.mark.parametrize(("profile", "budget"), BUDGETS)
def test_system_text_and_tools_keep_to_their_budget_at_a_cautious_estimate(profile: Profile, budget: int, tmp_path: Path) -> None:
    text, tools = head(profile, tmp_path)
    chars = len(text) + sum(len(json.dumps(tool.declared, ensure_ascii=False, separators=(",", ":"))) for tool in tools)
    assert chars / CHARS_PER_TOKEN <= budget


@pytest.mark.model
@pytest.mark.parametrize(("profile", "budget"), BUDGETS)
def test_system_text_and_tools_keep_to_their_budget_as_rendered(
    profile: Profile, budget: int, tmp_path: Path, real_model: Path
) -> None:
    tokenizer = Tokenizer(read_vocabulary(GGUFFile(real_model).metadata))
    text, tools = head(profile, tmp_path)
    written = ChatML(tokenizer, "qwen", None, SamplingParams())
    assert len(written.prompt([ChatMessage("system", text)], tools)) <= budget


@pytest.mark.parametrize(
    ("name", "local", "file_bytes", "expected"),
    [
        ("kimi-k2.5", False, 0, "kimi"),
        ("moonshotai/Kimi-K2-Thinking", False, 0, "kimi"),
        ("Kimi-K2-Instruct-0905", True, 0, "kimi"),
        ("kimi-k2-turbo-preview", False, 0, "kimi"),
        ("qwen3-coder-30b-a3b-instruct", True, 0, "generic"),
        ("gpt-oss-120b", False, 0, "generic"),
        ("qwen2.5-coder-1.5b-instruct-q4_k_m", True, 0, "small"),
        ("qwen2.5-coder-1.5b-instruct", False, 0, "generic"),
        ("mine", True, 1 << 30, "small"),
        ("mine", True, 20 << 30, "generic"),
        ("track2x", False, 0, "generic"),
    ],
)
def test_the_profile_follows_the_model(name: str, local: bool, file_bytes: int, expected: str) -> None:
    assert choose_profile(Settings(), name, local=local, file_bytes=file_bytes).name == expected


def test_a_resumed_session_keeps_its_profile_unless_another_is_named() -> None:
    assert choose_profile(Settings(), "mine", local=True, file_bytes=1, before="generic").name == "generic"
    assert choose_profile(Settings(), "mine", local=True, file_bytes=1, before="standard").name == "generic"
    assert choose_profile(Settings(profile="kimi"), "mine", local=True, file_bytes=1, before="generic").name == "kimi"


def test_the_old_name_of_generic_is_still_read(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('profile = "standard"\n')
    assert choose_profile(load_settings(tmp_path / "config.toml", {}, {}), "x", local=False).name == "generic"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("kimi-k2.5", True),
        ("Kimi-K2.6", True),
        ("Qwen2.5-VL-7B-Instruct", True),
        ("Kimi-K2-Thinking", False),
        ("kimi-k2-0905-preview", False),
        ("qwen2.5-coder-1.5b", False),
        ("qwen3-coder-30b-a3b", False),
    ],
)
def test_view_image_is_offered_to_models_known_to_see(name: str, expected: bool) -> None:
    assert sees(name) is expected
    for profile in ("kimi", "generic"):
        offered = choose_profile(load_settings(Path("absent"), {}, {"profile": profile}), name, local=False).tools
        assert ("view_image" in offered) is expected


def test_effort_sets_thinking_sampling_and_limits_where_the_settings_do_not() -> None:
    low, high = Settings(effort="low"), Settings(effort="high")
    assert [thinking_for(settings, "kimi-k2.5") for settings in (Settings(), low, high)] == ["", "off", "on"]
    assert thinking_for(replace(low, thinking="on"), "kimi-k2.5") == "on"
    assert {thinking_for(high, name) for name in ("gpt-oss-120b", "Kimi-K2-Instruct")} == {""}
    calm, free = (choose_profile(settings, "kimi-k2.5", local=False) for settings in (low, high))
    assert (sampling_for(calm, low).temperature, sampling_for(free, high).temperature) == (0.6, 1.0)
    assert limits_for(calm, low) == Limits(steps=150, answer_tokens=16_384)
    assert limits_for(free, high) == Limits(steps=1000, answer_tokens=98_304)
    assert limits_for(free, replace(high, max_turns=7)).steps == 7
