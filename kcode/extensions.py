"""What a user and a repository add to a session: instructions, skills, commands, tool servers (MCP) and hooks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from kcode.custom_commands import RESERVED, find_commands
from kcode.events import Notice
from kcode.hooks import at_end, find_hooks, hooked, unmatched
from kcode.instructions import NestedInstructions, instructed, opening_instructions, with_nested
from kcode.mcp.servers import ToolServers, open_servers
from kcode.messages import Message
from kcode.paths import Paths
from kcode.session import Equipment
from kcode.skills import find_skills, listed
from kcode_prompts.prompt import tool_names


async def extend(
    equipment: Equipment,
    paths: Paths,
    workspace: Path,
    messages: Callable[[], Sequence[Message]],
    shared: ToolServers | None = None,
) -> Equipment:
    """The equipment with all that is configured; `messages` gives the conversation so far.

    `shared` are the running tool servers of another session, which closes them; else they are opened.

    A profile that leads its model by the hand has no use for further tools, and its model none for further texts; commands and
    hooks hold for it as well, but for the end of its turn, whose refusal only the user is told.
    """
    equipment, skills_text = _with_commands(equipment, paths, workspace)
    if not equipment.profile.guided:
        equipment = await _with_texts(equipment, paths, workspace, messages, skills_text)
        servers = await open_servers(paths, workspace, equipment.sandbox) if shared is None else shared
        equipment = replace(
            equipment,
            tools=equipment.tools + servers.tools,
            specs=equipment.specs + servers.specs,
            notices=equipment.notices + servers.notices,
            servers=servers if shared is None else None,
        )
    return _with_hooks(equipment, paths, workspace)


def _with_commands(equipment: Equipment, paths: Paths, workspace: Path) -> tuple[Equipment, str]:
    """And what a model is told of the skills."""
    commands, problems = find_commands(paths, workspace)
    skills, more = find_skills(paths, workspace)
    text, unlisted = listed(skills)
    known = {command.name for command in commands}
    commands += tuple(skill.command for skill in skills if skill.name not in known and skill.name not in RESERVED)
    taken = [skill for skill in skills if skill.name in RESERVED]
    own = tuple(Notice("info", f"the skill {one.name} ({one.file}) has no command: /{one.name} is kcode's own") for one in taken)
    notices = equipment.notices + problems + more + own
    if not equipment.profile.guided:
        notices += unlisted
    return replace(equipment, commands=commands, notices=notices), text


async def _with_texts(
    equipment: Equipment, paths: Paths, workspace: Path, messages: Callable[[], Sequence[Message]], skills_text: str
) -> Equipment:
    text, notices = await opening_instructions(equipment.sandbox, paths, workspace)
    text = "\n\n".join(part for part in (text, skills_text) if part)
    nested = NestedInstructions(equipment.sandbox, messages)
    return replace(
        equipment,
        driver=instructed(equipment.driver, text) if text else equipment.driver,
        tools=with_nested(equipment.tools, nested),
        notices=equipment.notices + notices,
    )


def _with_hooks(equipment: Equipment, paths: Paths, workspace: Path) -> Equipment:
    hooks = find_hooks(paths, workspace, equipment.sandbox, equipment.late.append)
    if not hooks:
        return equipment
    guided = equipment.profile.guided
    # A guided turn ends by its own rules, which a further request would begin anew: there the user alone is told.
    driver = at_end(equipment.driver, hooks, again=0) if guided else at_end(equipment.driver, hooks)
    notices = unmatched(hooks, {*tool_names(), *(tool.name for tool in equipment.tools)})
    return replace(equipment, tools=hooked(equipment.tools, hooks), driver=driver, notices=equipment.notices + notices)
