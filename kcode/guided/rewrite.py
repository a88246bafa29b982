"""A rewrite of one function: the prompt, how the answer is bound, and what it means.

The answer begins with the function's own signature and docstring, which the model therefore cannot get wrong, and ends with the
code block; it is plain code, not JSON, because small models write code better than escaped code.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from kcode.guided.surprise import body_start, squeezed
from kcode.guided.suspects import Suspect
from kcode.model import Sampling
from kcode.tools.syntax import language_of
from kcode.turn import Ask
from kcode_prompts.prompt import load

FENCE = "\n```"
MAX_FILE_CHARS = 6000
MAX_FAILING_CHARS = 1200
ANSWER_TOKENS = 700
TEMPERATURES = (0.0, 0.5, 0.8, 1.0)


def brief(task: str, failing: str, suspects: Sequence[Suspect]) -> str:
    """The user message: the task, what fails, and the files of the suspects, whole as long as they are short together."""
    shown: list[str] = []
    room = MAX_FILE_CHARS
    for path in dict.fromkeys(suspect.path for suspect in suspects):
        found = [suspect for suspect in suspects if suspect.path == path]
        text = found[0].file.text
        if len(text) > room:
            text = excerpt(found, room // 4)
        room = max(room - len(text), 0)
        shown.append(f"{path}:\n```{language_of(path) or ''}\n{text.rstrip()}\n```")
    return load("guided/brief", task=task, failing=failing[:MAX_FAILING_CHARS], files="\n\n".join(shown))


def excerpt(suspects: Sequence[Suspect], head_chars: int) -> str:
    """The head of a long file and the suspects in it."""
    head = suspects[0].file.text[:head_chars].rpartition("\n")[0]
    parts = [head, *(suspect.code for suspect in sorted(suspects, key=lambda suspect: suspect.symbol.start_line))]
    return "\n\n# […]\n\n".join(part for part in parts if part)


def question(suspect: Suspect) -> str:
    return load("guided/rewrite", function=suspect.symbol.qualified, path=suspect.path)


def head_of(suspect: Suspect) -> str:
    """The suspect's definition without its indentation, up to where its statements begin."""
    lines = suspect.file.text.encode()[suspect.symbol.start_byte : body_start(suspect)].count(b"\n")
    # Lines as bytes have them: str.splitlines also cuts at form feeds and the like.
    return "".join(line + "\n" for line in suspect.code.split("\n")[:lines])


def ask(suspect: Suspect, attempt: int, seed: int) -> Ask:
    """How the `attempt`th rewrite (from 0) of the suspect is asked."""
    language = language_of(suspect.path) or ""
    sampling = Sampling(
        temperature=TEMPERATURES[min(attempt, len(TEMPERATURES) - 1)], top_p=0.95, seed=seed + attempt, max_tokens=ANSWER_TOKENS
    )
    prefix = f"```{language}\n{head_of(suspect)}"
    return Ask(prefix=prefix, stop=(FENCE,), sampling=sampling, offer_tools=False, draft=suspect.code + FENCE)


def code_of(answer: str) -> str:
    """The code of an answer that began with a fence; "" when there is none."""
    _, _, rest = answer.partition("\n")
    return rest.split(FENCE)[0].rstrip()


def is_new(code: str, tried: set[str]) -> bool:
    """Whether this version was not seen before; remembers it."""
    key = squeezed(textwrap.dedent(code))
    if key in tried:
        return False
    tried.add(key)
    return True
