"""From a model on disk to a model that runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from kcode_backend.catalog import check_header
from kcode_backend.config import ModelConfig
from kcode_backend.config_gguf import read_config
from kcode_backend.config_json import read_config_json, read_json
from kcode_backend.errors import ModelFileError
from kcode_backend.layers.build import MakeExperts, resident_experts
from kcode_backend.layers.stored import StoredMaker
from kcode_backend.models import deepseek, llama, qwen2, qwen3
from kcode_backend.models.model import Model, Network
from kcode_backend.plan import available_memory, expert_room, kv_room, kv_token_bytes
from kcode_backend.tokenizer import Tokenizer, read_vocabulary
from kcode_backend.tokenizer_json import read_chat_template
from kcode_backend.tokenizer_tiktoken import read_folder_tokenizer
from kcode_backend.vision.build import build_tower, read_shape
from kcode_backend.vision.tower import VisionTower
from kcode_backend.weights.ahead import AheadFile
from kcode_backend.weights.checkpoint import Checkpoint, expert_bytes, naming
from kcode_backend.weights.compressed import read_quantization
from kcode_backend.weights.expert_store import ExpertMemory, ExpertStore
from kcode_backend.weights.fingerprint import fingerprint
from kcode_backend.weights.metadata import Metadata
from kcode_backend.weights.reader import LoadProgress, WeightReader
from kcode_backend.weights.safetensors import SafetensorsFolder

BUILDERS: dict[str, Callable[[ModelConfig, WeightReader, MakeExperts], Network]] = {
    "deepseek2": deepseek.build,
    "llama": llama.build,
    "qwen2": qwen2.build,
    "qwen3": qwen3.build,
    "qwen3moe": qwen3.build,
}


def load(
    path: Path, on_progress: LoadProgress | None = None, ahead: AheadFile | None = None, memory: ExpertMemory | None = None
) -> Model:
    """Loads a GGUF file or a folder of safetensors; ModelFileError names the file and the value when it is damaged or unknown.

    `ahead`: the file at `path` as somebody has opened it; it is left here. With `memory` experts that are more than it stay in
    their files and are read when they are chosen; None: all are held in memory.
    """
    if path.is_dir():
        return _load_folder(path, on_progress, memory)
    return _load_gguf(path, on_progress, ahead or AheadFile(path, expert_ram=memory.ram_bytes if memory else None), memory)


def _load_gguf(path: Path, on_progress: LoadProgress | None, ahead: AheadFile, memory: ExpertMemory | None) -> Model:
    file = ahead.file
    with naming(path), ahead:
        check_header(path, file.header())
        config = read_config(file.metadata, file.tensors)
        tokenizer = Tokenizer(read_vocabulary(file.metadata))
        ahead.hurry()
        store = expert_store(config, file, memory)
        network = _build(config, WeightReader(file, on_progress, ahead), store)
        chat_template = file.metadata.optional_text("tokenizer.chat_template") or ""
        return _model(config, tokenizer, file, chat_template, network, store)


def _load_folder(path: Path, on_progress: LoadProgress | None, memory: ExpertMemory | None) -> Model:
    folder = SafetensorsFolder(path)
    with naming(path / "config.json"):
        stated = read_json(path / "config.json")
        config = read_config_json(stated, folder.tensors, path.resolve().name)
        if quantization := read_quantization(stated):
            quantization.check(folder.linear_modules())
    tokenizer = read_folder_tokenizer(path, stated, config.vocab)
    with naming(path):
        store = expert_store(config, folder, memory)
        network = _build(config, WeightReader(folder, on_progress), store)
        vision = _build_vision(config, stated, folder)
        return replace(_model(config, tokenizer, folder, read_chat_template(path), network, store), vision=vision)


def _build_vision(config: ModelConfig, stated: Metadata, folder: SafetensorsFolder) -> VisionTower | None:
    shape = read_shape(stated, folder.tensors)
    if shape is None:
        return None
    if shape.output != config.hidden:
        raise ModelFileError(f"tensor mm_projector.proj.2.weight has {shape.output} rows, the hidden size is {config.hidden}")
    return build_tower(shape, folder)


def expert_store(config: ModelConfig, source: Checkpoint, memory: ExpertMemory | None) -> ExpertStore | None:
    """None when all experts have their place in memory."""
    if memory is None or config.moe is None:
        return None
    ram_bytes, in_experts = memory.ram_bytes, expert_bytes(source.tensors)
    if ram_bytes is None:
        available = available_memory()
        others = sum(info.size for info in source.tensors.values()) - in_experts
        ram_bytes = expert_room(available, others, kv_room(available, kv_token_bytes(config), config.context_length))
    return None if in_experts <= ram_bytes else ExpertStore(memory, ram_bytes)


def _build(config: ModelConfig, weights: WeightReader, store: ExpertStore | None) -> Network:
    network = BUILDERS[config.architecture](config, weights, StoredMaker(store) if store else resident_experts)
    weights.finish()
    return network


def _model(
    config: ModelConfig, tokenizer: Tokenizer, source: Checkpoint, template: str, network: Network, store: ExpertStore | None
) -> Model:
    mark = fingerprint(source)
    if store is not None:
        store.open(mark)
    return Model(config, tokenizer, mark, template, network, experts=store)
