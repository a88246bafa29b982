"""What the official client sees of a server: run by test_openai_client.py in an environment that has the `openai` package.

Prints one JSON object. Everything here is the client's own API, used as its documentation shows.
"""

from __future__ import annotations

import json
import sys

from openai import APIStatusError, AuthenticationError, BadRequestError, NotFoundError, OpenAI

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "read",
            "description": "Read a file of the project.",
            "parameters": {
                "type": "object",
                "properties": {"path": {"type": "string", "enum": ["a.py", "b.py"]}},
                "required": ["path"],
                "additionalProperties": False,
            },
        },
    }
]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
MESSAGES = [{"role": "user", "content": "Say hello in one short sentence."}]


def chats(client: OpenAI, model: str) -> dict[str, object]:
    whole = client.chat.completions.create(model=model, messages=MESSAGES, temperature=0, max_tokens=12, user="someone")
    stream = client.chat.completions.create(
        model=model, messages=MESSAGES, temperature=0, max_tokens=12, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    plain = list(client.chat.completions.create(model=model, messages=MESSAGES, temperature=0, max_tokens=12, stream=True))
    several = client.chat.completions.create(
        model=model, messages=MESSAGES, n=3, seed=7, temperature=1.2, max_tokens=6, logprobs=True, top_logprobs=2
    )
    return {
        "text": whole.choices[0].message.content,
        "finish": whole.choices[0].finish_reason,
        "tokens": [whole.usage.prompt_tokens, whole.usage.completion_tokens, whole.usage.prompt_tokens_details.cached_tokens],
        "streamed": "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices),
        "stream_usage": chunks[-1].usage.completion_tokens,
        "without_choices": [len(chunk.choices) for chunk in plain].count(0),
        "indexes": [choice.index for choice in several.choices],
        "likely": [[entry.token, entry.logprob, len(entry.top_logprobs)] for entry in several.choices[1].logprobs.content],
        "said": [choice.message.content for choice in several.choices],
    }


def calls(client: OpenAI, model: str) -> dict[str, object]:
    asked = {"model": model, "messages": MESSAGES, "tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False}
    whole = client.chat.completions.create(**asked, temperature=0, max_tokens=100)
    with client.chat.completions.stream(**asked, temperature=0, max_tokens=100) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    formatted = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "Ada is 36. Describe her."}],
        response_format={"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}},
        max_tokens=200,
    )
    return {
        "call": [whole.choices[0].message.tool_calls[0].function.name, whole.choices[0].message.tool_calls[0].function.arguments],
        "streamed": [final.choices[0].message.tool_calls[0].function.name, final.choices[0].finish_reason],
        "person": json.loads(formatted.choices[0].message.content),
    }


def texts(client: OpenAI, model: str) -> dict[str, object]:
    two = client.completions.create(
        model=model, prompt=["def add(a, b):", "def sub(a, b):"], max_tokens=8, temperature=0, logprobs=1
    )
    stream = client.completions.create(model=model, prompt="def add(a, b):", max_tokens=8, temperature=0, stream=True)
    return {
        "texts": [choice.text for choice in two.choices],
        "offsets": two.choices[0].logprobs.text_offset,
        "streamed": "".join(chunk.choices[0].text for chunk in stream),
        "models": [found.id for found in client.models.list()],
        "model": client.models.retrieve(model).id,
    }


def errors(client: OpenAI, model: str, url: str) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, kind, ask in (
        ("bad", BadRequestError, lambda: client.chat.completions.create(model=model, messages=MESSAGES, temperature=-1)),
        (
            "schema",
            BadRequestError,
            lambda: client.chat.completions.create(
                model=model,
                messages=MESSAGES,
                response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "banana"}}},
            ),
        ),
        ("unknown", NotFoundError, lambda: client.models.retrieve("another")),
        ("long", APIStatusError, lambda: client.completions.create(model=model, prompt="x " * 40_000)),
        ("key", AuthenticationError, lambda: OpenAI(base_url=url, api_key="wrong", max_retries=0).models.list()),
    ):
        try:
            ask()
        except kind as error:
            found[name] = [error.status_code, error.code, error.param, error.body["message"]]
    return found


def main() -> None:
    url, key = sys.argv[1:]
    client = OpenAI(base_url=url, api_key=key, max_retries=0, timeout=300)
    model = client.models.list().data[0].id
    said = {"chats": chats(client, model), "calls": calls(client, model), "texts": texts(client, model)}
    print(json.dumps({**said, "errors": errors(client, model, url)}))


if __name__ == "__main__":
    main()
