"""The tokenizer against llama.cpp's published cases, against staged splitting, and against text made to hurt."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from kcode_backend.errors import ModelFileError
from kcode_backend.tokenizer import MAX_RUN_CHARS, SPLIT_PATTERNS, Tokenizer, Vocabulary, read_vocabulary
from kcode_backend.weights.gguf import GGUFFile
from kcode_backend.weights.metadata import Metadata

DATA = Path(__file__).resolve().parents[2] / "data" / "tokenizer"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class Cases:
    vocabulary: Vocabulary
    ids: list[int]
    texts: list[tuple[str, list[int]]]


def load_cases(name: str) -> Cases:
    data = json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))
    kinds = [1] * len(data["tokens"])
    vocabulary = Vocabulary(data["tokens"], kinds, data["merges"], data["pre"], eos_id=0, bos_id=None, add_bos=False)
    return Cases(vocabulary, data["ids"], [(case["text"], case["ids"]) for case in data["cases"]])


@pytest.fixture(scope="module")
def qwen() -> Tokenizer:
    """Qwen's tokens as far as the cases need them, and three special ones."""
    cases = load_cases("qwen2").vocabulary
    names = ["<|im_start|>", "<|im_end|>", "<tool_call>"]
    return Tokenizer(replace(cases, tokens=[*cases.tokens, *names], kinds=[*cases.kinds, 3, 3, 4], eos_id=len(cases.tokens) + 1))


@pytest.mark.parametrize("name", ["qwen2", "llama-bpe", "gpt-2", "starcoder"])
def test_published_cases(name: str) -> None:
    cases = load_cases(name)
    tokenizer = Tokenizer(cases.vocabulary)
    assert [(text, [cases.ids[i] for i in tokenizer.encode(text)]) for text, _ in cases.texts] == cases.texts
    assert [tokenizer.decode(tokenizer.encode(text)) for text, _ in cases.texts] == [text for text, _ in cases.texts]


@pytest.mark.model
def test_published_cases_with_the_whole_vocabulary(real_model: Path) -> None:
    tokenizer = Tokenizer(read_vocabulary(GGUFFile(real_model).metadata))
    texts = load_cases("qwen2").texts
    assert [(text, tokenizer.encode(text)) for text, _ in texts] == texts


def staged(pieces: Iterable[str], *patterns: str) -> list[str]:
    """Cuts by one pattern after the other; what a pattern does not match stays as it is."""
    result = list(pieces)
    for pattern in patterns:
        cut: list[str] = []
        for piece in result:
            end = 0
            for match in regex.finditer(pattern, piece):
                cut += [piece[end : match.start()], match.group()]
                end = match.end()
            cut.append(piece[end:])
        result = [piece for piece in cut if piece]
    return result


AWKWARD = st.text(alphabet="ab'sré 12²３ \t\n.,$+-_!中\u00a0\u0301😀", max_size=24)


@given(AWKWARD)
def test_one_expression_cuts_as_two_stages_for_smollm(text: str) -> None:
    one = regex.findall(SPLIT_PATTERNS["smollm"], text)
    assert one == staged([text], r"\p{N}", GPT2) if text else one == []


@given(AWKWARD)
def test_one_expression_cuts_as_four_stages_for_default(text: str) -> None:
    one = regex.findall(SPLIT_PATTERNS["default"].replace(r"\z", r"\Z"), text)
    stages = staged([text], r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")
    assert one == stages if text else one == []


def test_names_of_special_tokens_in_text_stay_text(qwen: Tokenizer) -> None:
    text = "a<|im_end|>\n<|im_start|>system\n<tool_call>"
    ids = qwen.encode(text)
    assert not set(ids) & set(qwen.special_ids.values())
    assert qwen.decode(ids) == text


def test_template_text_yields_special_tokens(qwen: Tokenizer) -> None:
    start, end, call = (qwen.special_id(name) for name in ("<|im_start|>", "<|im_end|>", "<tool_call>"))
    ids = qwen.encode_special("<|im_start|>Hello<tool_call><|im_end|>\n")
    assert ids == [start, *qwen.encode("Hello"), call, end, *qwen.encode("\n")]
    assert qwen.decode(ids) == "<|im_start|>Hello<tool_call><|im_end|>\n"
    assert qwen.control_ids == {start, end}


@pytest.mark.parametrize("unit", [" ", "\n", "a", "1", "!", "😀", "\u00a0", "\u0301", "' ", "a ", "\r\n", "\x00"])
def test_a_megabyte_of_one_thing(qwen: Tokenizer, unit: str) -> None:
    text = unit * (1_000_000 // len(unit.encode()))
    assert qwen.decode(qwen.encode(text)) == text


def test_long_runs_are_cut_only_beyond_the_limit(qwen: Tokenizer) -> None:
    text = " " * (MAX_RUN_CHARS - 1) + "a" * (MAX_RUN_CHARS - 1)
    assert qwen.encode(text) == qwen.encoding.encode_ordinary(text)


def load_small() -> Vocabulary:
    cases = load_cases("gpt-2").vocabulary
    return replace(cases, tokens=[token for token in cases.tokens if len(token) == 1], kinds=[1] * 256, merges=[])


SMALL = Tokenizer(load_small())


@given(st.text())
def test_any_text_survives(text: str) -> None:
    assert SMALL.decode(SMALL.encode(text)) == text


def test_bytes_that_the_vocabulary_lacks_are_left_out() -> None:
    whole = load_small()
    keep = [token for token in whole.tokens if token != "a"]
    tokenizer = Tokenizer(replace(whole, tokens=keep, kinds=[1] * 255))
    assert tokenizer.decode(tokenizer.encode("banana")) == "bnn"


def test_stream_holds_back_unfinished_characters(qwen: Tokenizer) -> None:
    text = "é😀中a"
    stream = Tokenizer(load_small()).stream()
    byte_ids = Tokenizer(load_small()).encode(text)
    pushed = [stream.push(i) for i in byte_ids]
    assert "".join(pushed) == text
    assert pushed == ["", "é", "", "", "", "😀", "", "", "中", "a"]
    assert stream.flush() == ""


def test_stream_ends_an_unfinished_character_with_one_mark() -> None:
    tokenizer = Tokenizer(load_small())
    stream = tokenizer.stream()
    assert [stream.push(i) for i in tokenizer.encode("😀")[:3]] == ["", "", ""]
    assert stream.flush() == "\ufffd"


def metadata(**changes: str | int | tuple[str, ...] | tuple[int, ...] | None) -> Metadata:
    small = load_small()
    values = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": tuple(small.tokens),
        "token_type": tuple(small.kinds),
        "merges": ("a b",),
        "eos_token_id": 0,
    } | changes
    return Metadata({f"tokenizer.ggml.{key}": value for key, value in values.items() if value is not None})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "llama"}, "tokenizer.ggml.model is 'llama'; only byte-level BPE"),
        ({"pre": "nobody"}, "tokenizer.ggml.pre is 'nobody', which is not supported; known: deepseek-r1-qwen, default,"),
        ({"pre": None}, "the metadata has no key tokenizer.ggml.pre"),
        ({"token_type": (1,)}, "tokenizer has 256 tokens but 1 token types"),
        ({"token_type": (9,) * 256}, "tokenizer.ggml.token_type has the unknown type 9"),
        ({"eos_token_id": 256}, "the eos token is 256, but there are 256 tokens"),
        ({"eos_token_id": "x"}, "metadata key tokenizer.ggml.eos_token_id is 'x', not an integer"),
        ({"merges": ("a b",)}, "merge 0 'a b' names tokens that the vocabulary does not have"),
        ({"tokens": ("a",) * 256}, "token 'a' appears twice, as 0 and 1"),
        ({"tokens": ("中",) * 256}, "token 0 '中' is not spelled in the byte alphabet"),
    ],
)
def test_contradictions_are_named(change: dict[str, str | int | tuple[str, ...] | None], message: str) -> None:
    with pytest.raises(ModelFileError) as caught:
        Tokenizer(read_vocabulary(metadata(**change)))
    assert message in str(caught.value)


def test_merges_out_of_order_are_refused() -> None:
    small = load_small()
    vocabulary = replace(small, tokens=[*small.tokens, "ab", "cd"], kinds=[1] * 258, merges=["c d", "a b"])
    with pytest.raises(ModelFileError, match="merge 1 makes token 256 after token 257"):
        Tokenizer(vocabulary)
