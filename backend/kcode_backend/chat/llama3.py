"""Llama 3's header format, for conversations without tools."""

from __future__ import annotations

from collections.abc import Sequence

from kcode_backend.chat.answer import HermesParser
from kcode_backend.chat.format import AnswerParser, BadConversation, CallMarkers, ChatMessage, ToolDeclaration
from kcode_backend.engine.request import SamplingParams
from kcode_backend.tokenizer import Tokenizer


class Llama3:
    """Immutable; see ChatFormat."""

    family = "llama"
    markers: CallMarkers | None = None

    def __init__(self, tokenizer: Tokenizer, sampling: SamplingParams) -> None:
        self.sampling = sampling
        self._tokenizer = tokenizer
        self._end = tokenizer.special_id("<|eot_id|>")
        self.stop_ids = frozenset([self._end, tokenizer.eos_id])

    def prompt(self, messages: Sequence[ChatMessage], tools: Sequence[ToolDeclaration]) -> list[int]:
        """See ChatFormat."""
        if tools or any(message.calls or message.role == "tool" for message in messages):
            raise BadConversation("Llama 3 models are offered no tools; ask without tools or use a Qwen model")
        if not messages:
            raise BadConversation("messages is empty; a conversation needs at least one message")
        ids = [self._tokenizer.special_id("<|begin_of_text|>")]
        for message in messages:
            ids += self._header(message.role)
            if message.token_ids is None:
                ids += [*self._tokenizer.encode(message.text.strip()), self._end]
            else:
                ids += message.token_ids
                ids += [] if message.token_ids[-1:] == (self._end,) else [self._end]
        return ids + self._header("assistant")

    def answer_ids(self, text: str) -> list[int]:
        return self._tokenizer.encode(text)

    def parser(self, tools: Sequence[ToolDeclaration]) -> AnswerParser:
        return HermesParser(self._tokenizer, None, self.stop_ids, frozenset(tool.name for tool in tools))

    def _header(self, role: str) -> list[int]:
        special = self._tokenizer.special_id
        opening, closing = special("<|start_header_id|>"), special("<|end_header_id|>")
        return [opening, *self._tokenizer.encode(role), closing, *self._tokenizer.encode("\n\n")]
