"""Request bodies as clients send them, checked, and what they mean to the chat format."""

from __future__ import annotations

import json
import re
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, ValidationError

from kcode_backend.chat.binding import Binding, Lines, Values
from kcode_backend.chat.format import ChatMessage, ChatOptions, Retention, Role, ToolDeclaration, WrittenCall
from kcode_backend.engine.request import SamplingParams
from kcode_backend.http.errors import RequestRefused
from kcode_backend.http.parts import parts_of, text_of

_ModelT = TypeVar("_ModelT", bound=BaseModel)

MAX_DEPTH = 64
"""Objects and arrays inside one another; far more than any schema has."""
MAX_ANSWERS = 128
MAX_ALTERNATIVES = 20
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class Lenient(BaseModel):
    """Fields of the OpenAI API that mean nothing here are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Strict(BaseModel):
    """Our own fields: a misspelt one is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ImageUrl(Lenient):
    url: StrictStr


class ContentPart(Lenient):
    type: StrictStr
    text: StrictStr | None = None
    image_url: ImageUrl | StrictStr | None = None


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
    name: StrictStr | None = None
    reasoning_content: StrictStr | None = None
    reasoning: StrictStr | None = None
    kcode: MessageTokens | None = None


class Function(Lenient):
    name: StrictStr
    description: StrictStr | None = None
    parameters: dict[str, object] | None = None
    strict: StrictBool | None = None


class Tool(Lenient):
    type: Literal["function"]
    function: Function


class NamedFunction(Lenient):
    name: StrictStr


class NamedChoice(Lenient):
    type: Literal["function"]
    function: NamedFunction


class Bound(Strict):
    """What an argument of a call may be: one of `enum`, or whole lines of `lines_of`."""

    enum: Annotated[list[object], Field(min_length=1)] | None = None
    lines_of: Annotated[StrictStr, Field(min_length=1)] | None = None


class Extensions(Strict):
    """What OpenAI's API has no word for. `bind` is by tool and argument."""

    grammar: StrictStr | None = None
    prefix: StrictStr | None = None
    priority: StrictInt = 0
    session: StrictStr = ""
    bind: dict[str, dict[str, Bound]] = {}
    draft: StrictStr = ""
    """Text that the answer is likely to resemble: tried, never forced."""
    speculate: StrictBool = True

    def bindings(self) -> dict[str, dict[str, Binding]]:
        """Raises RequestRefused for one that says neither or both."""
        return {
            tool: {name: _binding(bound, f"kcode.bind.{tool}.{name}") for name, bound in arguments.items()}
            for tool, arguments in self.bind.items()
        }


class StreamOptions(Lenient):
    include_usage: StrictBool | None = None


class PlainText(Lenient):
    type: Literal["text"]


class AnyJson(Lenient):
    type: Literal["json_object"]


class NamedSchema(Lenient):
    name: StrictStr
    schema_: Annotated[dict[str, object], Field(alias="schema")]


class SchemaJson(Lenient):
    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = Annotated[PlainText | AnyJson | SchemaJson, Field(discriminator="type")]


class SamplingFields(Lenient):
    """What both kinds of completion have in common. Unset and null mean the same, as in the OpenAI API."""

    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[StrictInt, Field(ge=0)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    seed: StrictInt | None = None
    stop: StrictStr | Annotated[list[StrictStr], Field(max_length=64)] | None = None
    n: Annotated[StrictInt, Field(ge=1, le=MAX_ANSWERS)] | None = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def usage_in_stream(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def sampling(self, default: SamplingParams, vocab_size: int) -> SamplingParams:
        """The parameters of this request over the defaults. Raises RequestRefused for a bias of no token."""
        return SamplingParams(
            temperature=default.temperature if self.temperature is None else self.temperature,
            top_p=default.top_p if self.top_p is None else self.top_p,
            top_k=default.top_k if self.top_k is None else self.top_k,
            min_p=default.min_p if self.min_p is None else self.min_p,
            repetition_penalty=default.repetition_penalty if self.repetition_penalty is None else self.repetition_penalty,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            bias=_bias(self.logit_bias or {}, vocab_size),
            # Any integer is a seed; the generator takes those that are not negative.
            seed=None if self.seed is None else self.seed % 2**64,
        )


class TemplateFields(Lenient):
    """What the templates of models with thinking take, under the names other servers have for it."""

    thinking: StrictBool | None = None
    enable_thinking: StrictBool | None = None
    preserve_thinking: StrictBool | None = None


class Thinking(Lenient):
    """As the official API of the Kimi models has it; `keep` says what becomes of past reasoning."""

    type: Literal["enabled", "disabled"] | None = None
    keep: Literal["all"] | None = None


class WritingFields(Lenient):
    """How the conversation is written for the model."""

    chat_template_kwargs: TemplateFields | None = None
    thinking: Thinking | None = None
    thinking_retention: Retention | None = None

    def options(self) -> ChatOptions:
        template, thinking = self.chat_template_kwargs or TemplateFields(), self.thinking or Thinking()
        thinks = template.enable_thinking if template.thinking is None else template.thinking
        if thinking.type is not None:
            thinks = thinking.type == "enabled"
        kept = template.preserve_thinking
        retention: Retention | None = "all" if thinking.keep or kept else None if kept is None else "tool_cycle"
        return ChatOptions(thinks, self.thinking_retention or retention)


class ChatBody(SamplingFields, WritingFields):
    """POST /v1/chat/completions. `kcode` is None for clients that know the OpenAI API alone."""

    messages: list[Message]
    tools: list[Tool] | None = None
    tool_choice: Literal["auto", "none", "required"] | NamedChoice | None = None
    parallel_tool_calls: StrictBool | None = None
    response_format: ResponseFormat | None = None
    logprobs: StrictBool | None = None
    top_logprobs: Annotated[StrictInt, Field(ge=0, le=MAX_ALTERNATIVES)] | None = None
    max_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    kcode: Extensions | None = None

    @property
    def own(self) -> Extensions:
        return self.kcode or Extensions()

    @property
    def limit(self) -> int | None:
        """Most tokens of the answer."""
        return self.max_completion_tokens if self.max_tokens is None else self.max_tokens

    @property
    def alternatives(self) -> int | None:
        """How many likely tokens are shown in each place; None asks for no likelihoods."""
        if not self.logprobs:
            if self.top_logprobs:
                raise RequestRefused(400, "invalid_value", "top_logprobs: it needs logprobs to be true", "top_logprobs")
            return None
        return self.top_logprobs or 0


class CountBody(WritingFields):
    """POST /v1/kcode/tokenize: the tokens of a prompt, or with `texts` those of each text by itself."""

    messages: list[Message] = []
    tools: list[Tool] | None = None
    texts: list[str] | None = None


def read_body(model: type[_ModelT], text: bytes) -> tuple[_ModelT, dict[str, object]]:
    """The checked body and the JSON object it was read from. Raises RequestRefused naming the first wrong value."""
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestRefused(400, "invalid_json", f"the body is not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise RequestRefused(400, "invalid_json", f"the body has to be a JSON object, got {type(raw).__name__}")
    _check_depth(raw)
    if _SURROGATE.search(text):
        # Texts cut in the middle of an emoji have half a surrogate pair, which is no character.
        whole = json.dumps(raw, ensure_ascii=False).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        raw = json.loads(whole)
    try:
        return model.model_validate(raw), raw
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        value = json.dumps(first["input"], ensure_ascii=False, default=str)[:200]
        raise RequestRefused(400, "invalid_value", f"{where}: {first['msg']}, got {value}", where) from error


_UNSUPPORTED = {
    "functions": "it is deprecated; use tools",
    "function_call": "it is deprecated; use tool_choice",
    "audio": "this server writes text only",
    "web_search_options": "this server has no access to the web",
}
"""Fields that change what is answered, so that ignoring them would mislead. All others that are not known are ignored."""


def refuse_unsupported(raw: dict[str, object]) -> None:
    """Raises RequestRefused."""
    for name, reason in _UNSUPPORTED.items():
        if raw.get(name) is not None:
            raise RequestRefused(400, "unsupported_parameter", f"{name}: {reason}", name)
    best_of, count = raw.get("best_of"), raw.get("n") or 1
    if best_of is not None and best_of != count:
        reason = f"it has to be n, which is {count}, got {best_of}; ask for n answers and choose"
        raise RequestRefused(400, "unsupported_parameter", f"best_of: {reason}", "best_of")


def _check_depth(raw: dict[str, object]) -> None:
    """Beyond some depth, code that walks a value runs out of stack."""
    level: list[object] = [raw]
    for _ in range(MAX_DEPTH):
        inner: list[object] = []
        for value in level:
            inner += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        level = [value for value in inner if isinstance(value, dict | list)]
        if not level:
            return
    raise RequestRefused(400, "invalid_value", f"the body has values nested deeper than {MAX_DEPTH} levels")


def _binding(bound: Bound, where: str) -> Binding:
    if (bound.enum is None) == (bound.lines_of is None):
        raise RequestRefused(400, "invalid_value", f"{where}: give either enum or lines_of", where)
    return Values(tuple(bound.enum)) if bound.enum is not None else Lines(bound.lines_of or "")


def _bias(biases: dict[str, float], vocab_size: int) -> tuple[tuple[int, float], ...]:
    for token in biases:
        if not (token.isascii() and token.isdigit() and len(token) < 10 and int(token) < vocab_size):
            message = f"logit_bias: {token[:40]!r} is none of the {vocab_size} token ids"
            raise RequestRefused(400, "invalid_value", message, "logit_bias")
    return tuple((int(token), bias) for token, bias in biases.items())


def chat_messages(messages: list[Message], fingerprint: str, vocab_size: int) -> list[ChatMessage]:
    """The conversation; sampled ids of another model's messages are left out, their text stands in."""
    return [_chat_message(message, number, fingerprint, vocab_size) for number, message in enumerate(messages)]


def declarations(tools: list[Tool] | None, raw: object) -> list[ToolDeclaration]:
    """The tools; each is shown to the model as the client wrote it, key order included."""
    written = raw if isinstance(raw, list) else []
    found = [
        ToolDeclaration(
            tool.function.name, tool.function.parameters or {"type": "object"}, declared, tool.function.strict is True
        )
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
    return ChatMessage(
        role,
        text_of(message.content),
        calls,
        token_ids,
        reasoning=message.reasoning_content or message.reasoning or "",
        call_id=message.tool_call_id or "",
        name=message.name or "",
        parts=parts_of(message.content, f"messages.{number}.content"),
    )
