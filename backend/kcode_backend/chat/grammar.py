"""What the model may sample: calls bound to the offered tools, or a whole answer bound to a grammar, through llguidance."""

from __future__ import annotations

import json
import logging
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from llguidance.tiktoken import lltokenizer_from_encoding
from numpy.typing import NDArray

from kcode_backend.chat.binding import BadGrammar, Binding, Lines, bound_schema, object_rules
from kcode_backend.chat.format import CallMarkers, ToolDeclaration
from kcode_backend.tokenizer import Tokenizer

log = logging.getLogger(__name__)

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.\-]+")
_JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""JSON as the chat formats' training texts write it; free white space only lets a model wander."""
MAX_GRAMMAR_CHARS = 4 << 20
_PREPARED_GRAMMARS = 32


class GrammarVocabulary:
    """The model's tokens as llguidance needs them. Building takes a second or two: once per model. Safe to share."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, stop_ids: frozenset[int]) -> None:
        """`vocab_size` is the number of logits, which may exceed the tokenizer's."""
        self.vocab_size = vocab_size
        self.tokens: LLTokenizer = lltokenizer_from_encoding(tokenizer.encoding, n_vocab=vocab_size, eos_token=sorted(stop_ids))
        self._prepared: OrderedDict[str, LLMatcher] = OrderedDict()
        self._lock = threading.Lock()

    def matcher(self, grammar: str) -> LLMatcher:
        """A matcher at the beginning of a Lark grammar. Raises BadGrammar."""
        if len(grammar) > MAX_GRAMMAR_CHARS:
            raise BadGrammar(f"the grammar is too large: {len(grammar)} characters, at most {MAX_GRAMMAR_CHARS}")
        with self._lock:
            known = self._prepared.get(grammar)
            if known is not None:
                self._prepared.move_to_end(grammar)
                return known.deep_copy()
        matcher = LLMatcher(self.tokens, grammar)
        if matcher.is_error():
            raise BadGrammar(f"the grammar cannot be used: {matcher.get_error().strip()}")
        # The first mask of a grammar builds most of its tables, which copies then share.
        self.mask(matcher)
        with self._lock:
            self._prepared[grammar] = matcher.deep_copy()
            if len(self._prepared) > _PREPARED_GRAMMARS:
                self._prepared.popitem(last=False)
        return matcher

    def schema(self, schema: Mapping[str, object], style: Mapping[str, object], where: str) -> str:
        """The schema as llguidance reads it, checked. Raises BadGrammar when it is invalid, unsupported or impossible."""
        text = json.dumps({**schema, "x-guidance": style}, ensure_ascii=False)
        if len(text) > MAX_GRAMMAR_CHARS:
            raise BadGrammar(f"{where}: its schema is too large: {len(text)} characters, at most {MAX_GRAMMAR_CHARS}")
        failed, messages = LLMatcher.validate_grammar_with_warnings(LLMatcher.grammar_from_json_schema(text), self.tokens)
        said = " ".join("; ".join(messages).split())
        if failed:
            raise BadGrammar(f"{where}: its schema cannot be enforced: {said}")
        if said:
            log.warning("%s: its schema is enforced in part: %s", where, said)
        return text

    def mask(self, matcher: LLMatcher) -> NDArray[np.bool_]:
        """True where an id may follow. Raises BadGrammar when the grammar is beyond llguidance's limits."""
        bits = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
        if matcher.is_error():
            raise BadGrammar(f"the grammar cannot be followed: {matcher.get_error().strip()}")
        return np.unpackbits(bits, count=self.vocab_size, bitorder="little").view(np.bool_)


Bindings = Mapping[str, Mapping[str, Binding]]
"""By tool and argument."""


class CallRules:
    """Lark rules of one call of the offered tools; `call` begins after the opening token and includes the closing one."""

    def __init__(
        self, vocabulary: GrammarVocabulary, markers: CallMarkers, tools: Sequence[ToolDeclaration], bindings: Bindings
    ) -> None:
        """Raises BadGrammar when a tool's name cannot be written or its schema or a binding cannot be met.

        Keywords of a schema that llguidance does not know are left out with a warning unless the tool is strict.
        """
        self._vocabulary = vocabulary
        self.open_id = markers.open_id
        rules: list[str] = []
        for number, tool in enumerate(tools):
            if not _PLAIN_NAME.fullmatch(tool.name):
                raise BadGrammar(f"tool name {tool.name!r} may only have letters, digits, '_', '-' and '.'")
            head = json.dumps(f"{tool.name}{markers.between}", ensure_ascii=False)
            rules += [f"t{number}: {head} a{number}", *self._arguments(f"a{number}", tool, bindings.get(tool.name, {}))]
        names = " | ".join(f"t{number}" for number in range(len(tools)))
        call = f"call: {json.dumps(markers.before)} ({names}) {json.dumps(markers.after)} <[{markers.close_id}]>"
        self.text = "\n".join([call, *rules]) + "\n"

    def _arguments(self, name: str, tool: ToolDeclaration, bound: Mapping[str, Binding]) -> list[str]:
        where = f"kcode.bind.{tool.name}"
        schema = bound_schema(tool.schema, bound, where) if bound else tool.schema
        style: dict[str, object] = {**_JSON_STYLE, "lenient": not tool.strict}
        checked = self._vocabulary.schema(schema, style, f"tool {tool.name}")
        if any(isinstance(binding, Lines) for binding in bound.values()):
            return object_rules(name, schema, bound, where, style)
        return [f"{name}: %json {checked}"]


class CallGrammar:
    """The calls that the offered tools allow. Each call gets its own copy of the prepared matcher."""

    def __init__(
        self,
        vocabulary: GrammarVocabulary,
        markers: CallMarkers,
        tools: Sequence[ToolDeclaration],
        bindings: Bindings | None = None,
    ) -> None:
        """Raises BadGrammar; see CallRules."""
        self.vocabulary = vocabulary
        self.markers = markers
        self._prepared = vocabulary.matcher("start: call\n" + CallRules(vocabulary, markers, tools, bindings or {}).text)

    def begin(self) -> LLMatcher:
        """A matcher that stands right after the opening token."""
        return self._prepared.deep_copy()


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


def json_answer(vocabulary: GrammarVocabulary, schema: Mapping[str, object], calls: CallRules | None, single: bool) -> str:
    """The Lark grammar of an answer that is a JSON value, or calls where these are offered. Raises BadGrammar."""
    answer = f"answer: %json {vocabulary.schema(schema, _JSON_STYLE, 'response_format')}\n"
    if calls is None:
        return f"start: answer\n{answer}"
    return f"start: answer | marked{'' if single else '+'}\nmarked: <[{calls.open_id}]> call\n{answer}{calls.text}"


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
