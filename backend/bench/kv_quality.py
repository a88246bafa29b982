"""What int8 and int4 caches change in a model's predictions: KL divergence and first choices against the f16 cache.

Two measurements on one text: its beginning with everything computed over the quantised cache, and its last tokens behind a long
context, whose keys and values were computed once with f16 and then stored in each kind (so what quantisation does to the keys of
later layers is missing there). The text is all .py files of a folder, sorted by name, one after another.

    python backend/bench/kv_quality.py MODEL.gguf --context 4096
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kcode_backend.kernels import native, ops, reference
from kcode_backend.kernels.pages import KVKind
from kcode_backend.kv.cache import KVCache
from kcode_backend.kv.pool import BLOCK_TOKENS
from kcode_backend.models.batch import Batch
from kcode_backend.models.load import load
from kcode_backend.models.model import Model

CHUNK = 128
TEXT = Path(__file__).resolve().parents[1] / "kcode_backend" / "engine"


@dataclass(frozen=True)
class Pass:
    """One text over one cache."""

    model: Model
    ids: Tensor
    kv: KVCache

    def logprobs(self, start: int, end: int, *, kept: bool) -> Tensor:
        """float32 [end - start, vocab] of what follows each token, or nothing when they are not `kept`."""
        parts: list[Tensor] = []
        for first in range(start, end, CHUNK):
            where = torch.arange(first, min(first + CHUNK, end))
            batch = Batch(
                token_ids=self.ids[where],
                positions=where,
                slots=where,
                seq_starts=torch.tensor([0, len(where)], dtype=torch.int32),
                block_tables=torch.arange(self.kv.blocks, dtype=torch.int32)[None],
                context_lens=torch.tensor([int(where[-1]) + 1], dtype=torch.int32),
                logit_rows=torch.arange(len(where) if kept else 0),
            )
            parts.append(torch.log_softmax(self.model.forward(batch, self.kv), dim=-1))
        return torch.cat(parts)


def new_pass(model: Model, ids: Tensor, kind: KVKind) -> Pass:
    return Pass(model, ids, KVCache.allocate(model.config, -(-len(ids) // BLOCK_TOKENS), BLOCK_TOKENS, kind))


def convert(source: KVCache, target: KVCache, tokens: int) -> None:
    """Store the first `tokens` keys and values of `source` again; what the cache leaves out of keys is left out already."""
    slots = torch.arange(tokens, dtype=torch.int32)
    for old, new in zip(source.layers, target.layers, strict=True):
        k, v = (x.flatten(0, 1)[:tokens].contiguous() for x in reference.read_kv(old))
        ops.store_kv(k, v, new, slots)


def report(name: str, expected: Tensor, actual: Tensor) -> None:
    divergence = (expected.exp() * (expected - actual)).sum(dim=1)
    same = (expected.argmax(dim=1) == actual.argmax(dim=1)).float().mean()
    print(
        f"{name:28} KL mean {divergence.mean():.1e}  median {divergence.median():.1e}  largest {divergence.max():.2f}  "
        f"same first choice {same:.1%} of {len(divergence)}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, default=TEXT, help="folder of .py files")
    parser.add_argument("--begin", type=int, default=512, help="tokens at the beginning of the text")
    parser.add_argument("--end", type=int, default=256, help="tokens at the end of the context")
    parser.add_argument("--context", type=int, default=4096)
    given = parser.parse_args()
    if native.active() is not None:
        torch.set_num_threads(1)
    model = load(given.model)
    text = "".join(path.read_text(encoding="utf-8") for path in sorted(given.text.glob("*.py")))
    ids = torch.tensor(model.tokenizer.encode(text)[: given.context])
    if len(ids) < given.context:
        raise SystemExit(f"{given.text} has {len(ids)} tokens, --context asks for {given.context}")
    with torch.inference_mode():
        started = time.monotonic()
        plain, late = new_pass(model, ids, KVKind.F16), len(ids) - given.end
        expected = plain.logprobs(0, given.begin, kept=True)
        for kind in (KVKind.INT8, KVKind.INT4):
            report(
                f"{kind.value}, tokens 0-{given.begin}", expected, new_pass(model, ids, kind).logprobs(0, given.begin, kept=True)
            )
        plain.logprobs(given.begin, late, kept=False)
        expected = plain.logprobs(late, len(ids), kept=True)
        for kind in (KVKind.INT8, KVKind.INT4):
            quantised = new_pass(model, ids, kind)
            convert(plain.kv, quantised.kv, late)
            report(f"{kind.value}, tokens {late}-{len(ids)}", expected, quantised.logprobs(late, len(ids), kept=True))
        print(f"{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
