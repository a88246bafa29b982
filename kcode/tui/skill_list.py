"""`/skills`: what a model may read when its task is about it."""

from __future__ import annotations

from kcode.skills import COMMAND_SUMMARY
from kcode.tui.blocks import Listing, Remark
from kcode.tui.conversation import Conversation
from kcode.tui.widgets.transcript import Transcript


async def list_skills(transcript: Transcript, conversation: Conversation) -> None:
    """Name, file and what each is about; how to write one when there is none."""
    session = conversation.session
    if session is None:
        transcript.add(Remark("i", "no conversation is open", "dim"))
        return
    skills = [command for command in session.commands if command.summary.startswith(COMMAND_SUMMARY)]
    if not skills:
        transcript.add(Remark("i", "no skills here; one is a folder .kcode/skills/NAME with a SKILL.md", "dim"))
        return
    transcript.add(Remark("i", f"{len(skills)} skills; /NAME asks for one", "accent"))
    rows = [(f"/{one.name}", f"{one.summary.removeprefix(COMMAND_SUMMARY)} ({one.source})") for one in skills]
    transcript.add(Listing(rows))
