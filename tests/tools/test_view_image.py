"""`view_image` and the pictures that a message names."""

from __future__ import annotations

import base64
import io
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from PIL import Image as Pillow

from kcode.messages import Image
from kcode.models.scripted import Script, ScriptedModel
from kcode.tools.pictures import MAX_BYTES, picture_facts, show_named
from kcode.tools.tool import Outcome
from kcode.tools.toolbox import build_tools
from kcode_sandbox.sandbox import Sandbox

Call = Callable[..., Awaitable[Outcome]]
SEEING = ScriptedModel(Script(sees=True))


def picture(kind: str, options: dict[str, object] | None = None) -> bytes:
    out = io.BytesIO()
    Pillow.new("RGB", (37, 21), (200, 30, 60)).save(out, kind, **(options or {}))
    return out.getvalue()


def image(data: bytes, kind: str) -> Image:
    return Image(f"image/{kind}", base64.b64encode(data).decode())


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("GIF", {}),
        ("JPEG", {}),
        ("JPEG", {"progressive": True, "exif": b"Exif\x00\x00" + b"x" * 300}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"exif": b"Exif\x00\x00II*\x00"}),
    ],
)
async def test_a_picture_is_shown_with_its_size(call: Call, workspace: Path, kind: str, options: dict[str, object]) -> None:
    data = picture(kind, options)
    (workspace / "shot").write_bytes(data)
    outcome = await call("view_image", path="shot")
    assert outcome.text == f"shot: a {kind} picture, 37 x 21 pixels, {len(data) / 1000:.0f} kB"
    assert outcome.images == (image(data, kind.lower()),)
    assert not outcome.is_error


async def test_what_cannot_be_shown_is_an_error_in_a_sentence(call: Call, workspace: Path) -> None:
    (workspace / "notes.png").write_text("no picture")
    (workspace / "cut.png").write_bytes(picture("PNG")[:18])
    (workspace / "big.png").write_bytes(picture("PNG") + b"\x00" * MAX_BYTES)
    for path, told in (
        ("notes.png", "notes.png is no picture that can be shown; PNG, JPEG, WebP and GIF are"),
        ("cut.png", "cut.png is no picture"),
        ("big.png", "big.png has 10.5 MB; pictures of at most 10 MB are shown"),
        ("none.png", "none.png does not exist"),
    ):
        outcome = await call("view_image", path=path)
        assert outcome.is_error
        assert told in outcome.text
        assert outcome.images == ()


async def test_a_model_without_vision_is_told_so_before_anything_is_read(sandbox: Sandbox) -> None:
    (tool,) = build_tools(sandbox, ["view_image"], ScriptedModel(Script(name="blind", sees=False)))
    outcome = await tool.run(tool.arguments.model_validate({"path": "none.png"}), lambda text: None)
    assert outcome.is_error
    assert outcome.text.startswith("Error: blind has no vision and cannot look at none.png; work from text")


async def test_messages_name_pictures_with_an_at_sign(sandbox: Sandbox, workspace: Path) -> None:
    png, jpeg = picture("PNG"), picture("JPEG")
    (workspace / "a.png").write_bytes(png)
    (workspace / "my shots").mkdir()
    (workspace / "my shots" / "b.JPG").write_bytes(jpeg)
    shown = await show_named(sandbox, SEEING, 'Compare @a.png, @"my shots/b.JPG" and @a.png. Mail me@a.png, @types.py @none.gif!')
    assert [found.image for found in shown.pictures] == [image(png, "png"), image(jpeg, "jpeg")]
    assert shown.pictures[1].text.startswith("my shots/b.JPG: a JPEG picture, 37 x 21 pixels")
    assert shown.problems == ("@none.gif is not shown: none.gif does not exist; find the right path with glob",)
    blind = await show_named(sandbox, ScriptedModel(Script(name="blind", sees=False)), "See @a.png")
    assert blind.pictures == ()
    assert blind.problems[0].startswith("blind has no vision and cannot look at a.png")


def test_damaged_heads_have_no_size() -> None:
    for kind in ("PNG", "JPEG", "WEBP", "GIF"):
        data = picture(kind)
        assert picture_facts(data) is not None
        for length in range(0, 24 if kind != "JPEG" else 160, 5):
            found = picture_facts(data[:length])
            assert found is None or (found.width, found.height) == (37, 21)
