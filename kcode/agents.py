"""Gives a session its sub-agents: sessions beside it, over the same model, tool servers and rules."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import kcode
from kcode.context import Context
from kcode.events import PlainDisplay
from kcode.extensions import extend
from kcode.hooks import find_hooks, hooked
from kcode.loop import work
from kcode.model import ToolSpec
from kcode.models.shared import shared
from kcode.paths import Paths
from kcode.session import Equipment, Session
from kcode.swarm import MAX_STEPS, Seat, Swarm
from kcode.tools.task import TaskTool, nested
from kcode.tools.toolbox import AnyTool, build_tools, spec
from kcode.transcript import Opened, Transcript, create, utc_now

PRIORITY = 1
"""Behind whoever the user is waiting for."""


def with_agents(
    equipment: Equipment, paths: Paths, workspace: Path, transcript: Transcript, context: Context, context_limit: int | None
) -> Equipment:
    """The equipment with the tool `task`, for a session with that transcript and context.

    A model that is led by the hand has none, and neither has a session without walls: there are no copies of what it may write.
    """
    if equipment.profile.guided or equipment.sandbox.policy.profile == "danger-full-access":
        return equipment
    session_id = transcript.header.session_id
    folder = transcript.path.parent / f"{session_id}.agents"

    async def open_agent(seat: Seat) -> Session:
        own = create(folder, workspace, kcode.__version__, f"{session_id}.{seat.number}", str(seat.number))
        try:
            return await _open_agent(equipment, specs, paths, workspace, seat, own, context_limit)
        except BaseException:
            own.close()
            raise

    swarm = Swarm(equipment.sandbox, paths.clones(workspace), folder, lambda: context.messages, open_agent)
    hooks = find_hooks(paths, workspace, equipment.sandbox, equipment.late.append)
    task = cast("AnyTool", TaskTool(swarm.run))
    specs = (*equipment.specs, spec(task))
    (task,) = hooked([task], hooks) if hooks else (task,)
    return replace(equipment, tools=(*equipment.tools, task), specs=specs, swarm=swarm)


async def _open_agent(
    parent: Equipment,
    specs: tuple[ToolSpec, ...],
    paths: Paths,
    workspace: Path,
    seat: Seat,
    transcript: Transcript,
    context_limit: int | None,
) -> Session:
    """A session in the seat. What is offered to its model is to the letter what the parent's is offered."""
    seed = parent.sampling.seed
    sampling = replace(parent.sampling, seed=None if seed is None else seed + seat.number)
    transcript.append(Opened(utc_now(), parent.model.name, parent.profile.name, seat.sandbox.description, sampling))
    context = Context(transcript, context_limit)
    for message in seat.messages:
        for result in message.results:
            context.add_result(result, PlainDisplay(result.text), 0.0)
        if message.role != "tool":
            context.add(message)
    model = shared(parent.model, PRIORITY)
    tools = build_tools(seat.sandbox, parent.profile.tools, model)
    # A command that reaches the network can do more than change its copy.
    harmless = (tool for tool in tools if tool.access != "execute" or seat.sandbox.policy.network == "off")
    equipment = Equipment(
        model=model,
        sandbox=seat.sandbox,
        tools=tools,
        specs=(),
        profile=parent.profile,
        limits=replace(parent.limits, steps=min(MAX_STEPS, parent.limits.steps or MAX_STEPS)),
        sampling=sampling,
        driver=work,
        approval=parent.approval.in_copy(frozenset(tool.name for tool in harmless)),
        checkpoints=None,
    )
    equipment = await extend(equipment, paths, workspace, lambda: context.messages, parent.servers)
    task = cast("AnyTool", TaskTool(nested))
    return Session(replace(equipment, tools=(*equipment.tools, task), specs=specs), transcript, context)
