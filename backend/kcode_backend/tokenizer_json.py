"""The vocabulary of a folder of transformers: tokenizer.json with tokenizer_config.json."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, JsonValue, ValidationError

from kcode_backend.errors import ModelFileError
from kcode_backend.tokenizer import SPLIT_PATTERNS, TokenKind, Vocabulary
from kcode_backend.weights.checkpoint import naming
from kcode_backend.weights.metadata import Metadata

_LLAMA3_PRES = frozenset(pre for pre, pattern in SPLIT_PATTERNS.items() if pattern == SPLIT_PATTERNS["llama3"])


class _AddedToken(BaseModel):
    id: int
    content: str
    special: bool


class _Bpe(BaseModel):
    type: str
    vocab: dict[str, int]
    merges: list[str] | list[tuple[str, str]]


class _Pattern(BaseModel):
    Regex: str | None = None


class _PreTokenizer(BaseModel):
    type: str
    pretokenizers: list[_PreTokenizer] = []
    pattern: _Pattern | None = None
    use_regex: bool = True
    individual_digits: bool = False


class _Tokenizer(BaseModel):
    model: _Bpe
    added_tokens: list[_AddedToken] = []
    pre_tokenizer: _PreTokenizer | None = None


class _Names(BaseModel):
    """tokenizer_config.json: a token is its text or an object with it."""

    eos_token: str | dict[str, JsonValue] | None = None
    bos_token: str | dict[str, JsonValue] | None = None
    add_bos_token: bool | None = None
    chat_template: str | list[dict[str, str]] | None = None


def read_vocabulary_json(folder: Path, config: Metadata, vocab: int) -> Vocabulary:
    """`config`: config.json; `vocab`: rows of the embedding, to which the tokens are filled up with unused ones."""
    path = folder / "tokenizer.json"
    with naming(path):
        try:
            stored = _Tokenizer.model_validate_json(path.read_bytes())
        except OSError as error:
            raise ModelFileError(f"cannot be opened: {error.strerror}") from error
        except ValidationError as error:
            raise ModelFileError(f"is no byte-level BPE tokenizer: {error.errors()[0]['msg']}") from error
        if stored.model.type != "BPE":
            raise ModelFileError(f"model.type is {stored.model.type!r}; only 'BPE' is supported")
        tokens, kinds = _tokens(stored, vocab)
        pre = _pre(stored.pre_tokenizer)
    names = _names(folder)
    ids = {token.content: token.id for token in stored.added_tokens} | stored.model.vocab
    eos = _named_id(names.eos_token, ids, config, "eos_token_id")
    if eos is None:
        raise ModelFileError(f"{folder}: neither tokenizer_config.json nor config.json names the eos token")
    return Vocabulary(
        tokens=tokens,
        kinds=kinds,
        merges=[merge if isinstance(merge, str) else " ".join(merge) for merge in stored.model.merges],
        pre=pre,
        eos_id=eos,
        bos_id=_named_id(names.bos_token, ids, config, "bos_token_id"),
        # Llama 3's tokenizer adds it in its post-processor and does not say so here.
        add_bos=pre in _LLAMA3_PRES if names.add_bos_token is None else names.add_bos_token,
    )


def read_chat_template(folder: Path) -> str:
    """The Jinja text that belongs to the tokenizer; empty when there is none."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = _names(folder).chat_template
    if isinstance(template, list):
        return next((item.get("template", "") for item in template if item.get("name") == "default"), "")
    return template or ""


def _tokens(stored: _Tokenizer, vocab: int) -> tuple[list[str], list[int]]:
    tokens = [f"[UNUSED{i}]" for i in range(vocab)]
    kinds = [int(TokenKind.UNUSED)] * vocab
    normal = ((token, i, TokenKind.NORMAL) for token, i in stored.model.vocab.items())
    added = (
        (token.content, token.id, TokenKind.CONTROL if token.special else TokenKind.USER_DEFINED) for token in stored.added_tokens
    )
    for token, i, kind in (*normal, *added):
        if not 0 <= i < vocab:
            raise ModelFileError(f"token {token!r} has the id {i}, but the model has {vocab} tokens")
        tokens[i], kinds[i] = token, int(kind)
    return tokens, kinds


def _pre(pre: _PreTokenizer | None) -> str:
    """The name of the splitting rule, as GGUF files call it."""
    steps = [] if pre is None else pre.pretokenizers if pre.type == "Sequence" else [pre]
    kinds = [step.type for step in steps]
    if kinds == ["ByteLevel"] and steps[0].use_regex:
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and steps[0].individual_digits and steps[1].use_regex:
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and not steps[1].use_regex and steps[0].pattern is not None:
        pattern = steps[0].pattern.Regex
        known = next((name for name, known in SPLIT_PATTERNS.items() if known == pattern), None)
        if known is not None:
            return known
        raise ModelFileError(f"its splitting expression is not known: {pattern!r}")
    raise ModelFileError(f"its pre-tokenizer {' + '.join(kinds) or 'none'} is not known")


def _names(folder: Path) -> _Names:
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return _Names()
    try:
        return _Names.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ModelFileError(f"{path}: is no tokenizer configuration: {error.errors()[0]['msg']}") from error


def _named_id(token: str | dict[str, JsonValue] | None, ids: dict[str, int], config: Metadata, key: str) -> int | None:
    text = token.get("content") if isinstance(token, dict) else token
    if isinstance(text, str) and text in ids:
        return ids[text]
    value = config.values.get(key)
    if isinstance(value, tuple):
        value = value[0] if value else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None
