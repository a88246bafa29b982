"""From a model file to a model that runs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from kcode_backend.config import ModelConfig, read_config
from kcode_backend.models import llama, qwen2
from kcode_backend.models.model import Model, Network
from kcode_backend.tokenizer import Tokenizer, read_vocabulary
from kcode_backend.weights.gguf import GGUFFile, naming
from kcode_backend.weights.reader import LoadProgress, WeightReader

BUILDERS: dict[str, Callable[[ModelConfig, WeightReader], Network]] = {"llama": llama.build, "qwen2": qwen2.build}

SAMPLE_BYTES = 1024
"""Of each tensor, from its middle, that go into the fingerprint."""


def load(path: Path, on_progress: LoadProgress | None = None) -> Model:
    """Loads a GGUF file; ModelFileError names the file and the value when it is damaged or of an unknown kind."""
    file = GGUFFile(path)
    with naming(path):
        config = read_config(file.metadata, file.tensors)
        tokenizer = Tokenizer(read_vocabulary(file.metadata))
        weights = WeightReader(file, on_progress)
        network = BUILDERS[config.architecture](config, weights)
        weights.finish()
        chat_template = file.metadata.optional_text("tokenizer.chat_template") or ""
    return Model(config, tokenizer, fingerprint(file), chat_template, network)


def fingerprint(file: GGUFFile) -> str:
    """32 hex digits of the whole header and a sample of every tensor: cheap, and different for different weights."""
    digest = hashlib.sha256(file.bytes_at(0, file.data_start))
    for info in file.tensors.values():
        start = info.start + max(0, info.size - SAMPLE_BYTES) // 2
        digest.update(file.bytes_at(start, min(SAMPLE_BYTES, info.size)))
    return digest.hexdigest()[:32]
