"""Pictures from the workspace to the model: in a message, in a result, in the transcript, on the wire."""

from __future__ import annotations

import base64
import io
from contextlib import aclosing
from pathlib import Path

from PIL import Image as Pillow

from kcode.events import CallFinished, Notice
from kcode.messages import Image, Message, Text, ToolCall, ToolResult, user
from kcode.model import ModelRequest
from kcode.models.http import HttpModel
from kcode.models.openai_wire import encode_messages
from kcode.transcript import open_existing
from tests.core.conftest import Open, call, collect, ending
from tests.fakes.openai_server import said, serving


def write_picture(path: Path) -> Image:
    out = io.BytesIO()
    Pillow.new("RGB", (37, 21)).save(out, "PNG")
    path.write_bytes(out.getvalue())
    return Image("image/png", base64.b64encode(out.getvalue()).decode())


async def test_a_named_picture_goes_with_the_message_and_a_viewed_one_with_the_result(
    open_session: Open, workspace: Path
) -> None:
    shot = write_picture(workspace / "shot.png")
    viewing, done = {"calls": [call("view_image", path="shot.png")]}, {"text": "It is black."}
    session = await open_session(viewing, done, sees=True)
    events = await collect(session, "What is in @shot.png?")
    assert ending(events).status == "finished"
    said_, _, result, _ = session.messages[1:]
    size = (workspace / "shot.png").stat().st_size
    about = f"shot.png: a PNG picture, 37 x 21 pixels, {size / 1000:.0f} kB"
    assert said_.parts == (Text("What is in @shot.png?"), Text(f"\n[{about}]\n"), shot)
    (answer,) = result.results
    assert (answer.text, answer.images, answer.is_error) == (about, (shot,), False)
    finished = next(event for event in events if isinstance(event, CallFinished))
    assert finished.result == answer
    # What is on disk gives the same conversation again.
    path = session.transcript_path
    await session.close()
    reopened = open_existing(path)
    kept = [record.message for record in reopened.active if hasattr(record, "message")]
    reopened.close()
    assert said_ in kept


async def test_without_vision_the_message_goes_without_the_picture_and_a_notice_says_why(
    open_session: Open, workspace: Path
) -> None:
    write_picture(workspace / "shot.png")
    viewing, done = {"calls": [call("view_image", path="shot.png")]}, {"text": "I cannot see it."}
    session = await open_session(viewing, done, sees=False, name="blind")
    events = await collect(session, "What is in @shot.png?")
    notices = [event.text for event in events if isinstance(event, Notice)]
    assert [text.startswith("blind has no vision and cannot look at shot.png") for text in notices] == [True]
    assert session.messages[1] == user("What is in @shot.png?")
    (answer,) = session.messages[3].results
    assert answer.is_error
    assert answer.text.startswith("There is no tool 'view_image'.")


IMAGE = Image("image/png", "AAAA")
PART = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
STEP = (
    user("look"),
    Message("assistant", (ToolCall("functions.view_image:0", "view_image", "{}"), ToolCall("functions.bash:1", "bash", "{}"))),
    Message(
        "tool",
        (
            ToolResult("functions.view_image:0", "view_image", "a.png", images=(IMAGE,)),
            ToolResult("functions.bash:1", "bash", "x"),
        ),
    ),
)


def test_our_engine_gets_the_picture_within_the_result() -> None:
    first, second = encode_messages(STEP, native=True)[2:]
    assert first["content"] == [{"type": "text", "text": "a.png"}, PART]
    assert second == {"role": "tool", "tool_call_id": "functions.bash:1", "content": "x"}


async def test_other_servers_get_it_after_all_results_of_the_step() -> None:
    with serving(said("I see."), models={"data": [{"id": "m", "kcode": {"vision": True}}]}) as server:
        model = HttpModel(server.url, "m", "", "KEY")
        await model.start()
        assert model.sees is True
        async with aclosing(model.stream(ModelRequest(STEP))) as events:
            _ = [event async for event in events]
        await model.close()
    roles = [(message["role"], message["content"]) for message in server.bodies[0]["messages"]][2:]
    told = {"type": "text", "text": "The picture of functions.view_image:0 (a.png):"}
    assert roles == [("tool", "a.png"), ("tool", "x"), ("user", [told, PART])]
