"""One model for several users: each closes its own door, and only the owner lets go of the model."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import replace

from kcode.messages import Message
from kcode.model import ChatModel, Continuation, ModelEvent, ModelRequest, ScoredText, TextModel, ToolSpec


class SharedModel:
    """`model` as another's; its requests have at least `priority` (above 0: in the background)."""

    def __init__(self, model: ChatModel, priority: int = 0) -> None:
        self._model = model
        self._priority = priority

    @property
    def name(self) -> str:
        return self._model.name

    @property
    def context_limit(self) -> int | None:
        return self._model.context_limit

    @property
    def binds_answers(self) -> bool:
        return self._model.binds_answers

    @property
    def sees(self) -> bool | None:
        return self._model.sees

    async def start(self) -> None:
        await self._model.start()

    def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent, None]:
        return self._model.stream(replace(request, priority=max(request.priority, self._priority)))

    async def count_tokens(self, messages: tuple[Message, ...], tools: tuple[ToolSpec, ...] = ()) -> int | None:
        return await self._model.count_tokens(messages, tools)

    async def close(self) -> None:
        """The owner's to do."""


class SharedTextModel(SharedModel):
    """A model that also reads plain text."""

    def __init__(self, model: ChatModel, text: TextModel, priority: int = 0) -> None:
        super().__init__(model, priority)
        self._text = text

    async def score(self, text: str, start: int, alternatives: int) -> ScoredText:
        return await self._text.score(text, start, alternatives)

    async def continue_text(self, text: str, stop: str, max_tokens: int, draft: str = "") -> Continuation:
        return await self._text.continue_text(text, stop, max_tokens, draft)


def shared(model: ChatModel, priority: int = 0) -> ChatModel:
    """`model` for one of its users, with all that it can."""
    return SharedTextModel(model, model, priority) if isinstance(model, TextModel) else SharedModel(model, priority)
