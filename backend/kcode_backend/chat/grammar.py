"""What the model may sample: calls bound to the offered tools, or a whole answer bound to a grammar, through llguidance."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from llguidance.tiktoken import lltokenizer_from_encoding
from numpy.typing import NDArray

from kcode_backend.chat.format import CallMarkers, ToolDeclaration
from kcode_backend.errors import BackendError
from kcode_backend.tokenizer import Tokenizer

log = logging.getLogger(__name__)

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.\-]+")
_JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""JSON as the chat formats' training texts write it; free white space only lets a model wander."""
_ANY_OBJECT: Mapping[str, object] = {"type": "object"}


class BadGrammar(BackendError):
    """A grammar or a schema cannot be used; the message is llguidance's."""


class GrammarVocabulary:
    """The model's tokens as llguidance needs them. Building takes a second or two: once per model. Safe to share."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, stop_ids: frozenset[int]) -> None:
        """`vocab_size` is the number of logits, which may exceed the tokenizer's."""
        self.vocab_size = vocab_size
        self.tokens: LLTokenizer = lltokenizer_from_encoding(tokenizer.encoding, n_vocab=vocab_size, eos_token=sorted(stop_ids))

    def matcher(self, grammar: str) -> LLMatcher:
        """A matcher at the beginning of a Lark grammar. Raises BadGrammar."""
        matcher = LLMatcher(self.tokens, grammar)
        if matcher.is_error():
            raise BadGrammar(f"the grammar cannot be used: {matcher.get_error().strip()}")
        return matcher

    def mask(self, matcher: LLMatcher) -> NDArray[np.bool_]:
        """True where an id may follow."""
        bits = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
        return np.unpackbits(bits, count=self.vocab_size, bitorder="little").view(np.bool_)


class CallGrammar:
    """The calls that the offered tools allow. Each call gets its own copy of the prepared matcher."""

    def __init__(self, vocabulary: GrammarVocabulary, markers: CallMarkers, tools: Sequence[ToolDeclaration]) -> None:
        """Raises BadGrammar when a tool's name cannot be written; a schema beyond llguidance is replaced by any object."""
        self.vocabulary = vocabulary
        self.markers = markers
        rules: list[str] = []
        for number, tool in enumerate(tools):
            if not _PLAIN_NAME.fullmatch(tool.name):
                raise BadGrammar(f"tool name {tool.name!r} may only have letters, digits, '_', '-' and '.'")
            head = json.dumps(f"{tool.name}{markers.between}", ensure_ascii=False)
            rules += [f"t{number}: {head} a{number}", f"a{number}: %json {self._schema(tool)}"]
        names = " | ".join(f"t{number}" for number in range(len(tools)))
        start = f"start: {json.dumps(markers.before)} ({names}) {json.dumps(markers.after)} <[{markers.close_id}]>"
        self._prepared = vocabulary.matcher("\n".join([start, *rules]) + "\n")

    def begin(self) -> LLMatcher:
        """A matcher that stands right after the opening token."""
        return self._prepared.deep_copy()

    def _schema(self, tool: ToolDeclaration) -> str:
        schema = {**tool.schema, "x-guidance": _JSON_STYLE}
        grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema))
        error = LLMatcher.validate_grammar(grammar, self.vocabulary.tokens)
        if error:
            log.warning("tool %s: its schema is not enforced: %s", tool.name, " ".join(error.split()))
            schema = {**_ANY_OBJECT, "x-guidance": _JSON_STYLE}
        return json.dumps(schema, ensure_ascii=False)


class CallConstraint:
    """Free text until the opening token was sampled, then one call as the grammar has it, then free text again.

    See engine.request.Constraint. With `max_calls` the answer ends after that many calls.
    """

    def __init__(self, grammar: CallGrammar, max_calls: int | None = None) -> None:
        self._grammar = grammar
        self._matcher: LLMatcher | None = None
        self._calls = 0
        self._max_calls = max_calls

    def mask(self) -> NDArray[np.bool_] | None:
        """See Constraint."""
        return None if self._matcher is None else self._grammar.vocabulary.mask(self._matcher)

    def accept(self, token: int) -> None:
        """Raises BadGrammar for a token that the call does not allow: possible for forced text only."""
        if self._matcher is None:
            if token == self._grammar.markers.open_id:
                self._matcher = self._grammar.begin()
            return
        consume(self._matcher, token)
        if self._matcher.is_stopped():
            self._matcher = None
            self._calls += 1

    def forced(self) -> list[int]:
        """See Constraint."""
        return [] if self._matcher is None else self._matcher.compute_ff_tokens()

    def finished(self) -> bool:
        return self._max_calls is not None and self._calls >= self._max_calls


class AnswerConstraint:
    """The whole answer follows one Lark grammar. See engine.request.Constraint."""

    def __init__(self, vocabulary: GrammarVocabulary, grammar: str) -> None:
        """Raises BadGrammar."""
        self._vocabulary = vocabulary
        self._matcher = vocabulary.matcher(grammar)

    def mask(self) -> NDArray[np.bool_] | None:
        """See Constraint."""
        return self._vocabulary.mask(self._matcher)

    def accept(self, token: int) -> None:
        """Raises BadGrammar for a token that the grammar does not allow: possible for forced text only."""
        consume(self._matcher, token)

    def forced(self) -> list[int]:
        """See Constraint."""
        return self._matcher.compute_ff_tokens()

    def finished(self) -> bool:
        return self._matcher.is_stopped()


def consume(matcher: LLMatcher, token: int) -> None:
    """Advance by one token. Raises BadGrammar."""
    if not matcher.consume_token(token):
        raise BadGrammar(f"the answer left its grammar: {matcher.get_error().strip()}")
