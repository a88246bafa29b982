"""Request bodies as clients send them, checked, and what they mean to the chat format."""

from __future__ import annotations

import json
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, ValidationError

from kcode_backend.chat.format import ChatMessage, Role, ToolDeclaration, WrittenCall
from kcode_backend.engine.request import SamplingParams
from kcode_backend.http.errors import RequestRefused

_ModelT = TypeVar("_ModelT", bound=BaseModel)


class Lenient(BaseModel):
    """Fields of the OpenAI API that mean nothing here are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Strict(BaseModel):
    """Our own fields: a misspelt one is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ContentPart(Lenient):
    type: StrictStr
    text: StrictStr | None = None


class FunctionCall(Lenient):
    name: StrictStr
    arguments: StrictStr = "{}"


class MessageCall(Lenient):
    id: StrictStr = ""
    function: FunctionCall


class MessageTokens(Lenient):
    token_ids: list[Annotated[StrictInt, Field(ge=0)]] | None = None
    fingerprint: StrictStr | None = None


class Message(Lenient):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: StrictStr | list[ContentPart] | None = None
    tool_calls: list[MessageCall] | None = None
    tool_call_id: StrictStr | None = None
    kcode: MessageTokens | None = None


class Function(Lenient):
    name: StrictStr
    description: StrictStr | None = None
    parameters: dict[str, object] | None = None


class Tool(Lenient):
    type: Literal["function"]
    function: Function


class NamedFunction(Lenient):
    name: StrictStr


class NamedChoice(Lenient):
    type: Literal["function"]
    function: NamedFunction


class Extensions(Strict):
    """What OpenAI's API has no word for."""

    grammar: StrictStr | None = None
    prefix: StrictStr | None = None
    priority: StrictInt = 0
    session: StrictStr = ""


class StreamOptions(Lenient):
    include_usage: StrictBool = True


class ChatBody(Lenient):
    """POST /v1/chat/completions."""

    messages: list[Message]
    tools: list[Tool] | None = None
    tool_choice: Literal["auto", "none", "required"] | NamedChoice | None = None
    parallel_tool_calls: StrictBool | None = None
    stream: StrictBool = False
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[StrictInt, Field(ge=0)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    seed: Annotated[StrictInt, Field(ge=0)] | None = None
    max_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    stop: StrictStr | list[StrictStr] | None = None
    n: Literal[1] | None = None
    kcode: Extensions = Extensions()

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def limit(self) -> int | None:
        """Most tokens of the answer."""
        return self.max_completion_tokens if self.max_tokens is None else self.max_tokens

    def sampling(self, default: SamplingParams) -> SamplingParams:
        """The parameters of this request over those of the model."""
        return SamplingParams(
            temperature=default.temperature if self.temperature is None else self.temperature,
            top_p=default.top_p if self.top_p is None else self.top_p,
            top_k=default.top_k if self.top_k is None else self.top_k,
            min_p=default.min_p if self.min_p is None else self.min_p,
            repetition_penalty=default.repetition_penalty if self.repetition_penalty is None else self.repetition_penalty,
            seed=self.seed,
        )


class CountBody(Lenient):
    """POST /v1/kcode/tokenize."""

    messages: list[Message]
    tools: list[Tool] | None = None


def read_body(model: type[_ModelT], text: bytes) -> tuple[_ModelT, dict[str, object]]:
    """The checked body and the JSON object it was read from. Raises RequestRefused naming the first wrong value."""
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestRefused(400, "invalid_json", f"the body is not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise RequestRefused(400, "invalid_json", f"the body has to be a JSON object, got {type(raw).__name__}")
    try:
        return model.model_validate(raw), raw
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        value = json.dumps(first["input"], ensure_ascii=False, default=str)[:200]
        raise RequestRefused(400, "invalid_value", f"{where}: {first['msg']}, got {value}") from error


def chat_messages(messages: list[Message], fingerprint: str, vocab_size: int) -> list[ChatMessage]:
    """The conversation; sampled ids of another model's messages are left out, their text stands in."""
    return [_chat_message(message, number, fingerprint, vocab_size) for number, message in enumerate(messages)]


def declarations(tools: list[Tool] | None, raw: object) -> list[ToolDeclaration]:
    """The tools; each is shown to the model as the client wrote it, key order included."""
    written = raw if isinstance(raw, list) else []
    found = [
        ToolDeclaration(tool.function.name, tool.function.parameters or {"type": "object"}, declared)
        for tool, declared in zip(tools or [], written, strict=True)
    ]
    names = [tool.name for tool in found]
    for name in names:
        if names.count(name) > 1:
            raise RequestRefused(400, "invalid_value", f"tools: {name!r} is declared {names.count(name)} times")
    return found


def _chat_message(message: Message, number: int, fingerprint: str, vocab_size: int) -> ChatMessage:
    role: Role = "system" if message.role == "developer" else message.role
    calls = tuple(WrittenCall(call.id, call.function.name, call.function.arguments) for call in message.tool_calls or ())
    token_ids: tuple[int, ...] | None = None
    if role == "assistant" and message.kcode and message.kcode.token_ids and message.kcode.fingerprint == fingerprint:
        token_ids = tuple(message.kcode.token_ids)
        if max(token_ids) >= vocab_size:
            raise RequestRefused(
                400, "invalid_value", f"messages.{number}.kcode.token_ids: {max(token_ids)} is beyond the {vocab_size} tokens"
            )
    return ChatMessage(role, _text(message, number), calls, token_ids)


def _text(message: Message, number: int) -> str:
    if message.content is None or isinstance(message.content, str):
        return message.content or ""
    for part in message.content:
        if part.type != "text" or part.text is None:
            raise RequestRefused(
                400, "unsupported_content", f"messages.{number}.content: this model reads text only, got {part.type!r}"
            )
    return "".join(part.text or "" for part in message.content)
