"""What tells one model's weights from another's. This module imports no torch."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kcode_backend.errors import ModelFileError
from kcode_backend.weights.checkpoint import Checkpoint

SAMPLE_BYTES = 1024
"""Of a tensor, from its middle."""
MAX_EXPERT_TENSORS = 512
"""Of experts, evenly spread over them: a model of many has a hundred thousand tensors. Of all others each is sampled."""
READERS = 16
"""Each sample is a read of its own place on the disk, most of whose time is waiting."""


def fingerprint(source: Checkpoint) -> str:
    """32 hex digits of the whole header and samples of the tensors: cheap, and different for different weights.

    ModelFileError when a file cannot be read.
    """
    experts = [name for name in source.tensors if "_exps." in name]
    kept = set(experts[:: max(1, -(-len(experts) // MAX_EXPERT_TENSORS))])
    names = [name for name in source.tensors if name in kept or "_exps." not in name]
    digest = hashlib.sha256(source.header())
    descriptors = {file: _open(file) for file in sorted({source.file_of(name) for name in names})}
    try:
        with ThreadPoolExecutor(READERS) as readers:
            for sample in readers.map(lambda name: _sample(source, name, descriptors), names):
                digest.update(sample)
    finally:
        for descriptor in descriptors.values():
            os.close(descriptor)
    return digest.hexdigest()[:32]


def _open(file: Path) -> int:
    try:
        return os.open(file, os.O_RDONLY)
    except OSError as error:
        raise ModelFileError(f"{file}: cannot be opened: {error.strerror}") from error


def _sample(source: Checkpoint, name: str, descriptors: dict[Path, int]) -> bytes:
    info = source.tensors[name]
    start = max(0, info.size - SAMPLE_BYTES) // 2
    try:
        return os.pread(descriptors[source.file_of(name)], min(SAMPLE_BYTES, info.size), info.start + start)
    except OSError as error:
        raise ModelFileError(f"{source.file_of(name)}: tensor {name} cannot be read: {error.strerror}") from error
