"""Makes the tensors of one step and runs the model; nothing else in the engine touches torch."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from kcode_backend.engine.scheduler import Step
from kcode_backend.kv.cache import KVCache
from kcode_backend.kv.table import BlockCopy
from kcode_backend.models.batch import Batch
from kcode_backend.models.model import Model


class Runner:
    """One model and its cache; used by one thread."""

    def __init__(self, model: Model, kv: KVCache) -> None:
        self._model = model
        self._kv = kv

    def run(self, step: Step) -> NDArray[np.float32]:
        """Logits [rows, vocab], one writable row per span that samples, in the order of the spans."""
        with torch.inference_mode():
            for copy in step.copies:
                self._copy(copy)
            logits = self._model.forward(build_batch(step, self._kv.block_size), self._kv)
        return logits.numpy()

    def _copy(self, copy: BlockCopy) -> None:
        if copy.source == copy.target:
            return
        for tensor in (*self._kv.keys, *self._kv.values):
            tensor[copy.target] = tensor[copy.source]


def build_batch(step: Step, block_size: int) -> Batch:
    """The tensors of the step's spans, laid end to end."""
    token_ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    starts = [0]
    lengths: list[int] = []
    rows: list[int] = []
    width = max(len(span.sequence.table.blocks) for span in step.spans)
    tables: list[list[int]] = []
    for span in step.spans:
        sequence = span.sequence
        start, end = sequence.computed, sequence.computed + span.count
        blocks = sequence.table.blocks
        token_ids += sequence.ids[start:end]
        positions += range(start, end)
        slots += [blocks[at // block_size] * block_size + at % block_size for at in range(start, end)]
        starts.append(len(token_ids))
        lengths.append(end)
        tables.append(blocks + [0] * (width - len(blocks)))
        if span.samples:
            rows.append(len(token_ids) - 1)
    return Batch(
        token_ids=torch.tensor(token_ids, dtype=torch.int64),
        positions=torch.tensor(positions, dtype=torch.int64),
        slots=torch.tensor(slots, dtype=torch.int64),
        seq_starts=torch.tensor(starts, dtype=torch.int32),
        block_tables=torch.tensor(tables, dtype=torch.int32),
        context_lens=torch.tensor(lengths, dtype=torch.int32),
        logit_rows=torch.tensor(rows, dtype=torch.int64),
    )
