"""One decision of the model among things that exist.

A small model that is asked in a conversation answers with what it likes best, whatever was said. The same model, going on with a
text of a few examples, decides well: so each alternative is scored as the end of such a text. A model that cannot score is asked,
its answer bound to the alternatives.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

from kcode.errors import EngineDied, ModelError
from kcode.model import Sampling, TextModel
from kcode.steps import Steps
from kcode.turn import Ask

CHOICE_TOKENS = 200
SCORED_AT_ONCE = 4


def bound_to(alternatives: Sequence[str]) -> str:
    """The Lark grammar of an answer that is one of the alternatives."""
    return "start: " + " | ".join(json.dumps(text, ensure_ascii=False) for text in alternatives)


async def preferences(steps: Steps, examples: str, alternatives: Sequence[str]) -> list[float] | None:
    """How likely (natural logarithm) the model holds each alternative as what follows `examples`; None when it cannot say."""
    model = steps.model
    if not isinstance(model, TextModel):
        return None
    start = len(examples.encode())

    async def score(alternative: str) -> float:
        scored = await model.score(f"{examples} {alternative}\n", start, 1)
        steps.spend(scored.usage)
        return sum(token.logprob for token in scored.tokens)

    try:
        # The first one brings the examples into the engine's cache, where the others find them.
        found = [await score(alternatives[0])]
        for at in range(1, len(alternatives), SCORED_AT_ONCE):
            found += await asyncio.gather(*map(score, alternatives[at : at + SCORED_AT_ONCE]))
    except EngineDied:
        raise
    except ModelError as error:
        steps.notice("warning", f"the alternatives were not scored: {error}")
        return None
    return found


async def decide(steps: Steps, examples: str, question: str, alternatives: Sequence[str], seed: int) -> str:
    """The alternative the model prefers: as the end of `examples`, else asked the `question`; "" when it gave none.

    A single alternative is taken without asking.
    """
    if len(alternatives) == 1:
        return alternatives[0]
    scores = await preferences(steps, examples, alternatives)
    if scores is None:
        return await choose(steps, question, alternatives, seed)
    return alternatives[scores.index(max(scores))]


async def choose(steps: Steps, question: str, alternatives: Sequence[str], seed: int) -> str:
    """The model's answer, bound to the alternatives; "" when it gave none of them. The model forgets question and answer."""
    mark = steps.mark()
    sampling = Sampling(temperature=0.0, seed=seed, max_tokens=CHOICE_TOKENS)
    how = Ask(grammar=bound_to(alternatives), sampling=sampling, offer_tools=False, silent=True)
    answer = (await steps.ask(how, say=question)).message.text.strip()
    steps.rewind(mark)
    return answer if answer in alternatives else ""
