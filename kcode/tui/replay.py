"""A conversation from its transcript. Imported when a session opens: the transcript's module takes long to import."""

from __future__ import annotations

from collections.abc import Sequence

from kcode.events import OWN_COMMAND
from kcode.messages import Message, Text, ToolCall
from kcode.messages import Thinking as ThinkingPart
from kcode.transcript import Answered, Compacted, Opened, Ran, Record, Said, Turn, TurnEnd
from kcode.tui.blocks import Answer, Block, Thinking
from kcode.tui.blocks import Said as SaidBlock
from kcode.tui.call_block import Call
from kcode.tui.compaction_line import compaction_line
from kcode.tui.turn_end import FINISH, end_of_turn, told_at_end


def has_turns(records: Sequence[Record]) -> bool:
    """Whether anything was said."""
    return any(isinstance(record, Turn) for record in records)


def same_conversation(one: Sequence[Record], other: Sequence[Record]) -> bool:
    """Whether they differ in nothing but who opened them when."""
    first, second = ([record for record in records if not isinstance(record, Opened)] for records in (one, other))
    return first == second


def blocks_of(records: Sequence[Record]) -> list[Block]:
    """What the user saw, less what was for the moment: notices, live output, how long thinking took."""
    blocks: list[Block] = []
    calls: dict[str, Call] = {}
    heard = ""
    for record in records:
        match record:
            case Turn(text=text):
                blocks.append(SaidBlock(text))
                heard = ""
            case Said(message=message) if message.role == "assistant":
                blocks += _parts_of(message, calls)
                heard += message.text
            case Answered(result=result, display=display, duration_s=duration_s) if result.call_id in calls:
                calls.pop(result.call_id).finish(display, result.is_error, duration_s)
                heard += result.text if result.name == FINISH else ""
            case Ran(call=call, result=result, display=display, duration_s=duration_s):
                own = Call(call.name)
                own.write(call.name, call.arguments)
                own.finish(display, result.is_error, duration_s)
                own.toggle(True)
                blocks.append(own)
            case TurnEnd(reason=reason) if reason == OWN_COMMAND:
                pass
            case Compacted(before_tokens=before, after_tokens=after, by=by):
                blocks.append(compaction_line(before, after, by))
            case TurnEnd(status=status, reason=reason, usage=usage, result=result):
                if told := told_at_end(result, reason, heard):
                    blocks.append(Answer(told))
                blocks.append(end_of_turn(status, reason, usage, []))
            case _:
                pass
    for call in calls.values():
        call.stop()
    return blocks


def _parts_of(message: Message, calls: dict[str, Call]) -> list[Block]:
    """The blocks of an answer; its calls are also put into `calls` by their ids."""
    blocks: list[Block] = []
    for part in message.parts:
        match part:
            case Text(text=text) if text.strip():
                blocks.append(Answer(text))
            case ThinkingPart(text=text) if text.strip():
                thought = Thinking()
                thought.append(text)
                thought.finish(0)
                blocks.append(thought)
            case ToolCall(id=call_id, name=name, arguments=arguments):
                calls[call_id] = call = Call(name)
                call.write(name, arguments)
                blocks.append(call)
            case _:
                pass
    return blocks
