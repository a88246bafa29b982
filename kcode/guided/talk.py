"""What a message wants, and the answer to one that wants only words."""

from __future__ import annotations

import re
from typing import Literal

from kcode.guided.choice import choose, preferences
from kcode.guided.relevance import seed_text
from kcode.guided.sayings import sayings
from kcode.guided.suspects import words_of
from kcode.repomap import TEST_PATH, is_mentioned, load_sources
from kcode.steps import Steps
from kcode.turn import Ask, Ending
from kcode_prompts.prompt import load
from kcode_sandbox.sandbox import Sandbox

FAILURE = re.compile(r"\b(?:fail(?:s|ed|ing|ure|ures)?|broken)\b|(?:^|[\s/])test_\w+|\.test\.", re.IGNORECASE)
MISTAKE = re.compile(
    r"\b(?:fix(?:es|ed)?|bugs?|repair|wrong(?:ly)?|incorrect(?:ly)?|errors?|crash(?:es|ed)?|mistakes?)\b", re.IGNORECASE
)
# What is, and what should be: said of what exists it names a mistake, after `add` it describes a wish.
DIFFERS = re.compile(
    r"\b(?:returns?|gives?|yields?|prints?|raises?|shows?|produces?|gets?|got)\b[^\n]{1,200}?"
    r"\b(?:should|must|ought to|supposed to|expected|instead of|rather than)\b"
    r"|\bexpected\b[^\n]{1,200}?\b(?:got|but)\b|[,;.]\s+(?:but\s+)?(?:it|this|that|they|which)\s+(?:should|must|ought)\b",
    re.IGNORECASE,
)
WISH = re.compile(
    r"\s*(?:please\s+)?(?:add|write|create|implement|introduce|rename|make|let|document|remove|delete|move|use|support)\b",
    re.IGNORECASE,
)
POLITE = re.compile(
    r"\b(?:can|could|would|will)\s+you\s+(?:please\s+|kindly\s+)?(?:fix|repair|correct|mend|change|make|look)\b", re.IGNORECASE
)
EXPLAIN = re.compile(
    r"\s*(?:please\s+)?(?:explain|describe|summari[sz]e|tell me|what|why|where|which|who|when|how)\b", re.IGNORECASE
)
AND_DO = re.compile(
    r"\b(?:and|then)\b.*\b(?:fix|repair|change|add|write|make|rename|remove|correct|update)\b", re.IGNORECASE | re.DOTALL
)
# What is read before a short answer; reading takes longer than answering.
SHOWN_CHARS = 2400
Kind = Literal["task", "question", "greeting"]
KINDS: tuple[Kind, ...] = ("question", "task", "greeting")
# By so much (natural logarithm) a task must be likelier: files are not touched on a mere suspicion that they should be.
CLEAR_MARGIN = 0.7
# By as much a wish may be likelier than the report of a bug, which a small model hardly ever thinks of first: of 49 messages that
# name neither, 22 of 23 reports are above it and, verbs of WISH aside, all 26 wishes below.
REPORT_MARGIN = -1.2
WHAT = "What is the last message: a question, a task that changes the code, or a greeting (also thanks and goodbye)?"


def asks(text: str) -> bool:
    """Whether the message may only want an answer; `can you fix it?` wants more."""
    return "?" in text and POLITE.search(text) is None


def mentions_failure(text: str) -> bool:
    return FAILURE.search(text) is not None


def tells_of_failure(text: str) -> bool:
    """Whether the message is surely about failing tests, so that they can be run at once; a question may not be."""
    return not asks(text) and mentions_failure(text)


def says_what_is_wrong(text: str) -> bool:
    """Whether the message says of a call what it gives and what it should give, and does not ask why."""
    return not asks(text) and bool(sayings(text))


def tells_of_mistake(text: str) -> bool:
    """Whether the message wants something repaired, as failing tests would show."""
    if mentions_failure(text) or MISTAKE.search(text) or says_what_is_wrong(text):
        return True
    return DIFFERS.search(text) is not None and WISH.match(text) is None


async def reports_bug(steps: Steps, text: str) -> bool:
    """Whether the model takes a message without such a word for the report of a bug, which failing tests may show."""
    if WISH.match(text):
        return False
    found = await preferences(steps, load("guided/report", task=" ".join(text.split())), ("bug", "wish"))
    return found is not None and found[0] - found[1] > REPORT_MARGIN


async def kind_of(steps: Steps, text: str, seed: int) -> Kind:
    """What the model takes the message for; in doubt it is a question, since files are not touched on a mere suspicion."""
    if EXPLAIN.match(text) and not AND_DO.search(text):
        return "question"
    task = " ".join(text.split())
    found = await preferences(steps, load("guided/intent", task=task), KINDS)
    if found is not None:
        question, wanted, greeting = found
        if wanted - max(question, greeting) > CLEAR_MARGIN:
            return "task"
        return "greeting" if greeting > question and "?" not in text else "question"
    question = load("guided/choose", question=f"{WHAT}\n\n{task}", alternatives="\n".join(KINDS))
    chosen = await choose(steps, question, KINDS, seed)
    named: dict[str, Kind] = {kind: kind for kind in KINDS}
    return named.get(chosen, "question")


async def names_code(sandbox: Sandbox, text: str) -> bool:
    """Whether the message names a function, class or file of the workspace besides its tests."""
    mentioned = words_of(text)
    files = [file for file in await load_sources(sandbox, mentioned) if not TEST_PATH.search(file.path)]
    return any(is_mentioned(file.path, mentioned) or any(symbol.name in mentioned for symbol in file.symbols) for file in files)


async def greet(steps: Steps, text: str) -> Ending:
    """Answer at once: no file has to do with it, and whatever is said of code makes a small model speak of code."""
    steps.say(text)
    return await said(steps)


async def answer(steps: Steps, sandbox: Sandbox, text: str) -> Ending:
    """Answer in words, from the files the message is about; nothing is run and nothing changed."""
    files = await load_sources(sandbox, words_of(text))
    told = "\n\n".join(message.text for message in steps.messages)
    steps.say(load("guided/answer", files=seed_text(files, text, told, SHOWN_CHARS), task=text))
    return await said(steps)


async def said(steps: Steps) -> Ending:
    """What the model says to the conversation as it is, and to what the person adds meanwhile."""
    while True:
        finished = await steps.ask(Ask(offer_tools=False))
        text = finished.message.text.strip()
        if steps.take_steering():
            continue
        if not text:
            return Ending("error", "the model gave an empty answer")
        if finished.finish == "length":
            return Ending("limit", f"the answer was cut off at {finished.usage.completion_tokens} tokens", text)
        return Ending("finished", "the model answered", text)
