"""`/agents`: how the sub-agents stand; the one that is chosen is stopped."""

from __future__ import annotations

from textual.screen import Screen

from kcode.tui.port import Agents
from kcode.tui.screens.picker import Choice, PickerScreen


async def choose_agent(screen: Screen[None], agents: Agents | None) -> str:
    """Shows them; one line that says what was done, "" for nothing."""
    if agents is None:
        return "this session has no sub-agents: they need a capable model and the sandbox"
    states = agents.agents
    if not states:
        return "no sub-agent was sent in this turn"
    choices = [Choice(str(state.agent), state.line) for state in states]
    chosen = await screen.app.push_screen_wait(PickerScreen("Sub-agents: Enter stops one", choices))
    if chosen is None:
        return ""
    return f"agent {chosen} is being stopped" if agents.stop(int(chosen)) else f"agent {chosen} has ended already"
