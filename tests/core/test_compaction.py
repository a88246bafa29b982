"""When the conversation has grown too long it begins anew from a handoff: the real loop and tools, a scripted model."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from kcode.approval import Approval
from kcode.checkpoint import Checkpoints
from kcode.compaction import room_tokens, what_to_keep
from kcode.context import Context
from kcode.events import ContextCompacted, Event, Notice
from kcode.loop import work
from kcode.messages import system
from kcode.model import Sampling
from kcode.models.scripted import Reply, Script, ScriptedCall, ScriptedModel
from kcode.opening import open_policy
from kcode.paths import Paths
from kcode.profiles import GENERIC, SMALL, Profile
from kcode.session import Equipment, Session
from kcode.settings import Settings
from kcode.tools.toolbox import build_specs, build_tools
from kcode.transcript import create, find_session, open_existing
from kcode.turn import Limits
from tests.core.conftest import collect, ending

LIMIT = 8000
NOTE = Reply(text="I read big.txt. Next: mend calc.py:2.")
END = Reply(text="Done.")
Talk = Callable[..., Awaitable[tuple[Session, ScriptedModel]]]


@pytest.fixture
async def talk(workspace: Path, paths: Paths, tmp_path: Path) -> AsyncIterator[Talk]:
    """Opens a session in which the model replies as told; `resume` takes the last one up again."""
    opened: list[Session] = []
    (workspace / "big.txt").write_text("".join(f"line {number} of the big file\n" for number in range(370)))

    async def begin(
        *replies: Reply, limit: int = LIMIT, resume: bool = False, profile: Profile = GENERIC, **script: object
    ) -> tuple[Session, ScriptedModel]:
        sandbox = await open_policy(Settings(sandbox="danger-full-access"), workspace, paths)
        model = ScriptedModel(Script.model_validate({"replies": replies, "context_limit": limit, **script}))
        tools = build_tools(sandbox, GENERIC.tools, model)
        folder = paths.sessions(workspace)
        transcript = open_existing(find_session(folder, "")) if resume else create(folder, workspace, "0.1.0")
        context = Context(transcript, None)
        if not resume:
            context.add(system("You are kcode."))
        equipment = Equipment(
            model=model,
            sandbox=sandbox,
            tools=tools,
            specs=build_specs(tools),
            profile=profile,
            limits=Limits(steps=30),
            sampling=Sampling(),
            driver=work,
            approval=Approval("auto", None, no_work_to_lose),
            checkpoints=Checkpoints(workspace, tmp_path / "store"),
        )
        opened.append(Session(equipment, transcript, context))
        return opened[-1], model

    yield begin
    for session in opened:
        await session.close()


async def no_work_to_lose() -> bool:
    return False


def calls(name: str, **arguments: object) -> Reply:
    return Reply(calls=(ScriptedCall(name=name, arguments=arguments),))


def compactions(events: list[Event]) -> list[ContextCompacted]:
    return [event for event in events if isinstance(event, ContextCompacted)]


TODO = calls("todo", items=[{"text": "read", "status": "done"}, {"text": "mend", "status": "doing"}])
WRITE = calls("create", path="notes/new.txt", content="x\n")
READ = [calls("bash", command=f"cat big.txt # {number}") for number in range(12)]


async def test_full_context_begins_anew_with_what_counts(talk: Talk) -> None:
    session, model = await talk(TODO, WRITE, *READ[:3], NOTE, END)
    events = await collect(session, "Mend add in calc.py.\nKeep its name.")
    assert ending(events).status == "finished"
    (compacted,) = compactions(events)
    assert (compacted.by, compacted.is_automatic, compacted.note) == ("model", True, NOTE.text)
    assert LIMIT - room_tokens(LIMIT) < compacted.before_tokens
    assert compacted.after_tokens < compacted.before_tokens // 3

    last, request, following = model.requests[-3:]
    assert request.messages[:-3] == last.messages, "the note is asked on what is cached"
    assert request.tools == last.tools
    assert request.tool_choice == "none"
    assert "Write, in the first person" in request.messages[-1].text

    head, said, handed = following.messages
    assert (head.text, said.text) == ("You are kcode.", "Mend add in calc.py.\nKeep its name.")
    assert handed.role == "user"
    assert NOTE.text in handed.text
    assert "To-do list:\n[x] read\n[>] mend" in handed.text
    assert handed.text.endswith("Files that differ from when the session began:\nnotes/new.txt")


async def test_resumed_session_is_the_compacted_one(talk: Talk) -> None:
    session, _ = await talk(*READ[:3], NOTE, END)
    await collect(session, "look")
    before = session.messages
    await session.close()
    resumed, model = await talk(END, resume=True)
    assert resumed.messages == before
    await collect(resumed, "and now?")
    assert model.requests[0].messages[: len(before)] == before
    assert NOTE.text in before[2].text


async def test_undo_brings_back_what_was_compacted(talk: Talk) -> None:
    session, _ = await talk(READ[0], END, NOTE)
    await collect(session, "look")
    before = session.messages
    events = await collect(session, "/compact the path")
    assert compactions(events)[0].is_automatic is False
    assert len(session.messages) == 3
    await session.undo()
    assert session.messages == before


async def test_user_says_what_to_keep(talk: Talk) -> None:
    session, model = await talk(READ[0], END, NOTE, END)
    await collect(session, "look")
    end = ending(await collect(session, "/compact the name of the file"))
    assert end.status == "finished"
    assert end.result.startswith("Compacted: ")
    assert "in particular: the name of the file" in model.requests[2].messages[-1].text
    await collect(session, "go on")
    assert [message.text for message in model.requests[3].messages if message.role == "user"][0::2] == ["look", "go on"]


async def test_compacting_nothing_says_so(talk: Talk) -> None:
    session, model = await talk(END)
    assert "nothing to compact" in ending(await collect(session, "/compact")).result
    await collect(session, "hello " * 200)
    assert "would not get shorter" in ending(await collect(session, "/compact")).result
    assert len(model.requests) == 1


async def test_second_compaction_carries_on_words_and_todos(talk: Talk) -> None:
    quick = [calls("bash", command=f"echo {number}") for number in range(4)]
    session, model = await talk(TODO, *READ[:3], NOTE, *quick, *READ[3:6], Reply(text="Second note."), END)
    events = await collect(session, "first words")
    assert len(compactions(events)) == 2
    _, said, handed = model.requests[-1].messages
    assert said.text == "first words"
    assert "Second note." in handed.text
    assert NOTE.text not in handed.text
    assert "[>] mend" in handed.text


@pytest.mark.parametrize("failing", [Reply(error="no answer"), Reply(), Reply(thinking="hm", finish="length")])
async def test_kcode_writes_the_note_when_the_model_cannot(talk: Talk, failing: Reply) -> None:
    session, model = await talk(WRITE, *READ[:3], failing, END)
    events = await collect(session, "look at everything")
    assert ending(events).status == "finished"
    (compacted,) = compactions(events)
    assert compacted.by == "kcode"
    assert any("no note" in event.text or "was empty" in event.text for event in events if isinstance(event, Notice))
    _, said, handed = model.requests[-1].messages
    assert said.text == "look at everything"
    assert '- create {"path": "notes/new.txt", "content": "x\\n"} → ' in handed.text
    assert '- bash {"command": "cat big.txt # 2"} → line 0 of the big file' in handed.text


async def test_note_is_asked_before_the_result_that_is_too_much(talk: Talk) -> None:
    session, model = await talk(READ[0], calls("bash", command="cat big.txt big.txt"), NOTE, END, limit=4600)
    events = await collect(session, "look")
    assert ending(events).status == "finished"
    (compacted,) = compactions(events)
    assert compacted.before_tokens > 4600
    assert model.requests[2].messages[:-1] == model.requests[1].messages
    handed = model.requests[3].messages[-1].text
    assert NOTE.text in handed
    assert 'After this note was written you did:\n- bash {"command": "cat big.txt big.txt"}' in handed


async def test_filling_up_again_and_again_stops_with_the_cause(talk: Talk) -> None:
    session, _ = await talk(*READ[:3], NOTE, *READ[3:6], NOTE, *READ[6:9], NOTE, END)
    events = await collect(session, "look")
    end = ending(events)
    assert end.status == "limit"
    assert len(compactions(events)) == 2
    assert "filled up again within 3 steps of its compaction, twice in a row" in end.reason
    assert 'result of bash {"command": "cat big.txt # ' in end.reason


async def test_what_the_user_said_is_never_cut_to_fit(talk: Talk) -> None:
    session, model = await talk(END, END)
    await collect(session, "a " * 12000)
    end = ending(await collect(session, "b " * 4000))
    assert end.status == "limit"
    assert "compacting would free too little: message 'a a a" in end.reason
    assert len(model.requests) == 1


async def test_led_model_writes_no_note(talk: Talk) -> None:
    session, model = await talk(*READ[:2], END, END, profile=SMALL)
    events = await collect(session, "look")
    (compacted,) = compactions(events)
    assert compacted.by == "kcode"
    assert all(request.tool_choice == "auto" for request in model.requests)


def test_command_is_told_from_a_message() -> None:
    assert what_to_keep("/compact") == ""
    assert what_to_keep(" /compact  the API ") == "the API"
    assert what_to_keep("/compactor") is None
    assert what_to_keep("compact it") is None


async def test_breakdown_leaves_nothing_out(talk: Talk) -> None:
    session, _ = await talk(Reply(thinking="Let me look.", text="I look.", calls=READ[0].calls), END)
    await collect(session, "look at big.txt")
    found = await session.context_breakdown()
    assert found.is_exact
    assert [kind for kind, tokens in found.kinds if tokens] == [
        "system",
        "user",
        "answers",
        "thinking",
        "calls",
        "results",
        "marks",
    ]
    assert sum(tokens for _, tokens in found.kinds) == found.tokens
    assert found.rows[-1] == ("free", LIMIT - found.tokens)
    assert found.heavy[0].label == 'result of bash {"command": "cat big.txt # 0"}'
