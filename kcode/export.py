"""A session as a document: markdown to read, one HTML page to look at, an ATIF trajectory for evaluation."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import kcode
from kcode.errors import StartError
from kcode.messages import Image, Message, Text, Thinking, ToolCall, ToolResult
from kcode.model import Usage
from kcode.transcript import Answered, Compacted, Header, Opened, Ran, Record, Said, Turn, TurnEnd

Format = Literal["md", "html", "atif"]
ATIF_VERSION = "ATIF-v1.8"
SUFFIXES: dict[str, Format] = {".md": "md", ".markdown": "md", ".html": "html", ".htm": "html", ".json": "atif"}
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}
pre{background:#f4f4f4;padding:.6rem;overflow-x:auto;white-space:pre-wrap;border-radius:4px;margin:.3rem 0}
.user{border-left:4px solid #36c;padding-left:.8rem;margin:1.5rem 0 .5rem}.end{color:#777}.error summary{color:#b00}
summary{cursor:pointer;font-family:monospace}.thinking{color:#777}
@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}pre{background:#262626}}
"""


def export(records: Sequence[Record], style: Format) -> str:
    """The active records of a session, the header first, as a whole document."""
    writers: dict[Format, Callable[[Sequence[Record]], str]] = {"md": markdown, "html": page, "atif": _atif_text}
    return writers[style](records)


def format_of(path: Path) -> Format:
    """The format that a file's name asks for. Raises StartError."""
    if path.suffix.lower() not in SUFFIXES:
        raise StartError(f"{path.name}: its ending names no format; use .md, .html, or .json for an ATIF trajectory")
    return SUFFIXES[path.suffix.lower()]


def write_export(records: Sequence[Record], path: Path, style: Format) -> None:
    """Raises StartError when the file cannot be written; what was there before is then still there."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(export(records, style), encoding="utf-8", errors="backslashreplace")
        partial.replace(path)
    except OSError as error:
        raise StartError(f"cannot write {path}: {error.strerror}") from error


def markdown(records: Sequence[Record]) -> str:
    """What was said, called and answered, in order."""
    parts = [f"# {_title(records)}", _about(records)]
    for record in records:
        match record:
            case Turn(text=text):
                parts.append(f"## {text.strip() or '(nothing)'}" if "\n" not in text.strip() else f"## You\n\n{text.strip()}")
            case Said(message=message) if message.role == "assistant":
                parts += _markdown_parts(message)
            case Answered(result=result) | Ran(result=result):
                parts.append(
                    f"{'Failed' if result.is_error else 'Result'} of `{result.name}`:\n\n{_fenced(_with_pictures(result))}"
                )
            case Compacted(note=note):
                parts.append(f"*The conversation was compacted to this note:*\n\n{note}")
            case TurnEnd(status=status, reason=reason):
                parts.append(f"*{status}: {reason}*")
            case _:
                continue
    return "\n\n".join(parts) + "\n"


def _markdown_parts(message: Message) -> Iterator[str]:
    for part in message.parts:
        if isinstance(part, Text) and part.text.strip():
            yield part.text.strip()
        elif isinstance(part, Thinking) and part.text.strip():
            yield "\n".join(f"> {line}" for line in part.text.strip().splitlines())
        elif isinstance(part, ToolCall):
            yield f"**{part.name}**\n\n{_fenced(_readable(part.arguments), 'json')}"


def _fenced(text: str, language: str = "") -> str:
    """A code block whose fence is longer than any in the text."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def page(records: Sequence[Record]) -> str:
    """One file that shows the session in any browser and loads nothing."""
    title = html.escape(_title(records))
    body = [f"<h1>{title}</h1><p>{html.escape(_about(records))}</p>"]
    for record in records:
        match record:
            case Turn(text=text, at=at):
                body.append(f'<div class="user"><pre>{html.escape(text)}</pre><small>{html.escape(at)}</small></div>')
            case Said(message=message, usage=usage) if message.role == "assistant":
                body += _page_parts(message, usage)
            case Answered(result=result, duration_s=duration_s) | Ran(result=result, duration_s=duration_s):
                kind = "error" if result.is_error else "result"
                summary = f"{html.escape(result.name)} {'failed' if result.is_error else 'answered'} after {duration_s:g} s"
                body.append(_folded(kind, summary, _with_pictures(result)))
            case Compacted(note=note, before_tokens=before, after_tokens=after):
                body.append(_folded("compacted", f"compacted from {before} to {after} tokens", note))
            case TurnEnd(status=status, reason=reason):
                body.append(f'<p class="end">{html.escape(status)}: {html.escape(reason)}</p>')
            case _:
                continue
    head = f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style></head>'
    return head + "<body>\n" + "\n".join(body) + "\n</body></html>\n"


def _page_parts(message: Message, usage: Usage | None) -> Iterator[str]:
    for part in message.parts:
        if isinstance(part, Text) and part.text.strip():
            yield f"<pre>{html.escape(part.text.strip())}</pre>"
        elif isinstance(part, Thinking) and part.text.strip():
            yield _folded("thinking", "thinking", part.text.strip())
        elif isinstance(part, ToolCall):
            yield _folded("call", html.escape(part.name), _readable(part.arguments))
    if usage is not None:
        told = f"{usage.prompt_tokens} tokens read, {usage.cached_tokens} of them cached, {usage.completion_tokens} written"
        yield f'<small class="end">{told}</small>'


def _folded(kind: str, summary: str, text: str) -> str:
    """`summary` is HTML, `text` is not."""
    return f'<details class="{kind}"><summary>{summary}</summary><pre>{html.escape(text)}</pre></details>'


def _atif_text(records: Sequence[Record]) -> str:
    return json.dumps(trajectory(records), ensure_ascii=False, indent=2) + "\n"


def trajectory(records: Sequence[Record]) -> dict[str, object]:
    """The session in Harbor's Agent Trajectory Interchange Format."""
    header = next(record for record in records if isinstance(record, Header))
    opened = [record for record in records if isinstance(record, Opened)]
    steps: list[dict[str, object]] = []
    results: dict[str, list[object]] = {}
    at = header.created
    for record in records:
        match record:
            case Turn():
                at = record.at
            case Said(message=message, usage=usage):
                steps.append({"step_id": len(steps) + 1, "timestamp": at, **_atif_step(message, usage, opened)})
                observed: list[object] = []
                results.update(dict.fromkeys((call.id for call in message.calls), observed))
                if message.calls:
                    steps[-1]["observation"] = {"results": observed}
            case Answered(result=result) if result.call_id in results:
                results[result.call_id].append({"source_call_id": result.call_id, "content": _with_pictures(result)})
            case Compacted(note=note):
                told = f"The conversation was compacted to this note:\n{note}"
                steps.append({"step_id": len(steps) + 1, "timestamp": at, "source": "system", "message": told})
            case _:
                continue
    total = sum((record.usage for record in records if isinstance(record, Said) and record.usage is not None), start=Usage())
    agent = {"name": "kcode", "version": kcode.__version__, "model_name": opened[-1].model if opened else None}
    return {
        "schema_version": ATIF_VERSION,
        "session_id": header.session_id,
        "agent": {name: value for name, value in agent.items() if value},
        "steps": steps,
        "final_metrics": {
            "total_prompt_tokens": total.prompt_tokens,
            "total_completion_tokens": total.completion_tokens,
            "total_cached_tokens": total.cached_tokens,
            "total_steps": len(steps),
        },
    }


def _atif_step(message: Message, usage: Usage | None, opened: Sequence[Opened]) -> dict[str, object]:
    text = "".join(
        part.text if isinstance(part, Text) else _picture(part) for part in message.parts if isinstance(part, Text | Image)
    )
    if message.role != "assistant":
        return {"source": "system" if message.role == "system" else "user", "message": text}
    step: dict[str, object] = {"source": "agent", "message": text, "llm_call_count": 0 if usage is None else 1}
    if message.calls:
        step["tool_calls"] = [_atif_call(call) for call in message.calls]
    if usage is None:
        # A call that kcode made in the model's name: no answer of the model, so no metrics and no reasoning.
        return step
    if message.thinking:
        step["reasoning_content"] = message.thinking
    if opened:
        step["model_name"] = opened[-1].model
    metrics: dict[str, object] = {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens}
    metrics["cached_tokens"] = usage.cached_tokens
    if message.token_ids:
        metrics["completion_token_ids"] = list(message.token_ids)
    return step | {"metrics": metrics}


def _atif_call(call: ToolCall) -> dict[str, object]:
    try:
        arguments = json.loads(call.arguments or "{}")
    except ValueError:
        arguments = None
    plain: dict[str, object] = {"tool_call_id": call.id, "function_name": call.name}
    if isinstance(arguments, dict):
        return plain | {"arguments": arguments}
    # As the model wrote them they are no JSON object.
    return plain | {"arguments": {}, "extra": {"raw_arguments": call.arguments}}


def _title(records: Sequence[Record]) -> str:
    said = next((record.text for record in records if isinstance(record, Turn)), "a session without a message")
    return " ".join(said.split())[:100]


def _about(records: Sequence[Record]) -> str:
    header = next(record for record in records if isinstance(record, Header))
    models = dict.fromkeys(record.model for record in records if isinstance(record, Opened))
    return f"kcode {header.kcode}, session {header.session_id} of {header.created}, in {header.project}, with {', '.join(models)}"


def _readable(arguments: str) -> str:
    try:
        return json.dumps(json.loads(arguments), ensure_ascii=False, indent=2)
    except ValueError:
        return arguments


def _with_pictures(result: ToolResult) -> str:
    return result.text + "".join(_picture(image) for image in result.images)


def _picture(image: Image) -> str:
    return f"\n[picture: {image.media_type}, {len(image.data) * 3 // 4} bytes]"
