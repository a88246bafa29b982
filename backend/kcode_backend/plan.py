"""What of a model goes where and how fast that can be, before anything is loaded. The loader divides memory by the same rule.

This module imports no torch.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from kcode_backend.config import ModelConfig
from kcode_backend.weights.checkpoint import TensorInfo, expert_bytes
from kcode_backend.weights.names import EMBEDDING

KV_MEMORY_SHARE = 0.25
"""Of the memory that is available when the engine starts."""
KV_CONTEXTS = 2
"""The cache never holds more than this many full contexts: one at work, one of other branches and sessions."""
SPARE_SHARE, SPARE_BYTES = 0.05, 1_000_000_000
"""Of the available memory, and at least: for what passes compute with, and for other programs."""
KERNEL_SHARE = 0.8
"""Of the speed at which memory is read, what products of one token reach."""
COMPUTE_SHARE = 0.3
"""Of the multiply-adds that registers allow, what products of many tokens reach."""
STREAMED_TOKENS = 4096
"""Of a pass that goes through experts in files: it reads nearly all of them, be it for 100 tokens or for thousands."""
LATENT_GROUP = 64


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a model needs."""

    name: str
    embedding_bytes: int
    """Of which a token reads one row."""
    dense_bytes: int
    """All that every token goes through: attention, shared networks, routers, norms and the head."""
    dense_elements: int
    layers: int
    """Those with experts ..."""
    experts: int
    """... and how many of them each has."""
    used: int
    expert_bytes: int
    """Of one."""
    expert_elements: int
    kv_token_bytes: int
    context: int

    @property
    def all_experts(self) -> int:
        return self.layers * self.experts

    @property
    def total_bytes(self) -> int:
        return self.embedding_bytes + self.dense_bytes + self.all_experts * self.expert_bytes


@dataclass(frozen=True, slots=True)
class Machine:
    """Speeds in bytes, or multiply-adds, a second; 0: not known."""

    ram_bytes: int
    ram_speed: float
    disk_speed: float
    pack_speed: float = 0.0
    """At which experts that were read are put into the kernels' order."""
    multiply_speed: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """Where things go. `refusal` says in a sentence with numbers why it cannot work; empty: it can."""

    footprint: Footprint
    machine: Machine
    context: int
    kv_bytes: int
    slots: int
    """Experts in memory."""
    decode_speed: float
    """Tokens a second that the bandwidths allow; 0: not known."""
    prefill_speed: float
    hit_rate: float
    """Of the experts that a token chooses: those in memory."""
    refusal: str = ""

    @property
    def ram_experts_bytes(self) -> int:
        return self.slots * self.footprint.expert_bytes

    @property
    def disk_experts_bytes(self) -> int:
        return (self.footprint.all_experts - self.slots) * self.footprint.expert_bytes


def available_memory() -> int:
    """Bytes that can be had without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def kv_token_bytes(config: ModelConfig, kind: str = "f16") -> int:
    """Of one token in all layers. `kind`: a value of KVKind."""
    if config.mla is not None:
        rank, rope = config.mla.rank, config.mla.rope
        layer = {"f32": 4 * (rank + rope), "int8": rank + math.ceil(rank / LATENT_GROUP) * 4 + 2 * rope}.get(
            kind, 2 * (rank + rope)
        )
    else:
        width = math.ceil(config.head_dim / 16) * 16
        head = {"int8": width + 4, "int4": math.ceil(width / 32) * 20}.get(kind, 2 * width)
        layer = 2 * config.kv_heads * head
    return config.layers * layer


def kv_room(available: int, token_bytes: int, context: int) -> int:
    """Bytes of the cache of keys and values."""
    return min(KV_CONTEXTS * context * token_bytes, int(KV_MEMORY_SHARE * available))


def expert_room(available: int, others: int, kv_bytes: int) -> int:
    """Bytes for experts beside `others`, the model's other weights, and the cache."""
    spare = max(SPARE_BYTES, int(SPARE_SHARE * available))
    return max(0, available - others - kv_bytes - spare)


def footprint_of(config: ModelConfig, tensors: Mapping[str, TensorInfo], kind: str = "f16") -> Footprint:
    """From the sizes of the tensors that are there; those of images and drafts do not count."""
    known = {name: info for name, info in tensors.items() if _is_used(config, name)}
    embedding = known[EMBEDDING].size if EMBEDDING in known else 0
    in_experts = expert_bytes(known)
    total = sum(info.size for info in known.values())
    tied = embedding if config.tied_embeddings else 0
    outside = [info for name, info in known.items() if "_exps." not in name and name != EMBEDDING and not name.endswith("_scale")]
    elements = sum(math.prod(info.shape) for info in outside) + (config.vocab * config.hidden if tied else 0)
    moe = config.moe
    layers = config.layers - moe.dense_layers if moe else 0
    count = layers * moe.experts if moe else 0
    return Footprint(
        name=config.name,
        embedding_bytes=embedding - tied,
        dense_bytes=total - in_experts - embedding + tied,
        dense_elements=elements,
        layers=layers,
        experts=moe.experts if moe else 0,
        used=moe.used if moe else 0,
        expert_bytes=in_experts // count if count else 0,
        expert_elements=3 * config.hidden * moe.mlp if moe else 0,
        kv_token_bytes=kv_token_bytes(config, kind),
        context=config.context_length,
    )


def footprint_of_total(config: ModelConfig, total_bytes: int, is_int4: bool, kind: str = "f16") -> Footprint:
    """From the whole's bytes where the tensors are not there: what is not quantised has 16 bits."""
    moe = config.moe
    layers = config.layers - moe.dense_layers if moe else 0
    elements = 3 * config.hidden * moe.mlp if moe else 0
    # INT4 in groups of 32 with 16-bit scales, and the 8 bytes of each matrix's shape.
    expert = (elements * 18 // 32 + 24 if is_int4 else 2 * elements) if moe else 0
    embedding = 2 * config.vocab * config.hidden
    dense = total_bytes - (layers * moe.experts * expert if moe else 0) - (0 if config.tied_embeddings else embedding)
    return Footprint(
        name=config.name,
        embedding_bytes=0 if config.tied_embeddings else embedding,
        dense_bytes=dense,
        dense_elements=dense // 2,
        layers=layers,
        experts=moe.experts if moe else 0,
        used=moe.used if moe else 0,
        expert_bytes=expert,
        expert_elements=elements,
        kv_token_bytes=kv_token_bytes(config, kind),
        context=config.context_length,
    )


def make_plan(
    model: Footprint,
    machine: Machine,
    context: int | None = None,
    expert_ram: int | None = None,
    hits: Callable[[int], float] | None = None,
) -> Plan:
    """`expert_ram` bytes for experts, by default what is left. `hits` gives the share of choices that so many slots serve; by
    default it is that of a router that chooses evenly."""
    length = min(context or model.context, model.context)
    others = model.dense_bytes + model.embedding_bytes
    kv_bytes = kv_room(machine.ram_bytes, model.kv_token_bytes, length)
    room = expert_room(machine.ram_bytes, others, kv_bytes) if expert_ram is None else expert_ram
    slots = min(model.all_experts, room // model.expert_bytes) if model.all_experts else 0
    even = slots / model.all_experts if model.all_experts else 1.0
    hit_rate = even if hits is None else hits(slots)
    decode, prefill = _speeds(model, machine, slots, hit_rate)
    refusal = _refusal(model, machine, length, kv_bytes, slots)
    return Plan(model, machine, length, kv_bytes, slots, decode, prefill, hit_rate, refusal)


def _is_used(config: ModelConfig, name: str) -> bool:
    if not name.startswith("blk."):
        return name.startswith(("token_embd", "output"))
    number = name.split(".", 2)[1]
    return number.isdecimal() and int(number) < config.layers


def _refusal(model: Footprint, machine: Machine, context: int, kv_bytes: int, slots: int) -> str:
    least = model.dense_bytes + model.embedding_bytes + 2 * model.expert_bytes
    what = "everything but the experts" if model.all_experts else "the weights"
    if least + SPARE_BYTES > machine.ram_bytes:
        return (
            f"{model.name} needs {(least + SPARE_BYTES) / 1e9:.1f} GB of memory for {what}; "
            f"{machine.ram_bytes / 1e9:.1f} GB are available: take a smaller model or another machine"
        )
    if model.all_experts and slots < 2:
        return (
            f"{model.name} has experts of {model.expert_bytes / 1e6:.1f} MB, and memory for {slots} of them is left; "
            "at least 2 have to fit: give more memory or a shorter --context"
        )
    whole = context * model.kv_token_bytes
    if kv_bytes < min(whole, 1024 * model.kv_token_bytes):
        return f"{kv_bytes / 1e9:.2f} GB are left for the cache, {kv_bytes // model.kv_token_bytes} tokens; give more memory"
    return ""


def _speeds(model: Footprint, machine: Machine, slots: int, hit_rate: float) -> tuple[float, float]:
    """Tokens a second of decoding and of a long prompt."""
    if machine.ram_speed <= 0 or (slots < model.all_experts and machine.disk_speed <= 0):
        return 0.0, 0.0
    kernel = machine.ram_speed * KERNEL_SHARE
    missed = 1 - hit_rate
    token_bytes = model.layers * model.used * model.expert_bytes
    decode_s = (
        model.dense_bytes / kernel + token_bytes * (1 - missed) / kernel + _streaming_s(machine, token_bytes * missed, kernel)
    )
    if missed:
        # Of each layer the last expert is packed and used when all have been read.
        decode_s += model.layers * _handling_s(machine, model.expert_bytes, kernel)
    if machine.multiply_speed <= 0:
        return 1 / decode_s, 0.0
    work = model.dense_elements + model.layers * model.used * model.expert_elements
    pass_s = STREAMED_TOKENS * work / (machine.multiply_speed * COMPUTE_SHARE)
    # A long prompt goes through all experts, however often each is chosen.
    streamed = (model.all_experts - slots) * model.expert_bytes
    if streamed:
        pack_s = streamed / machine.pack_speed if machine.pack_speed > 0 else 0.0
        pass_s = max(pass_s + pack_s, streamed / machine.disk_speed)
    return 1 / decode_s, STREAMED_TOKENS / pass_s


def _streaming_s(machine: Machine, missed_bytes: float, kernel: float) -> float:
    """Experts are read while those before them are packed and used."""
    return max(missed_bytes / machine.disk_speed, _handling_s(machine, missed_bytes, kernel)) if missed_bytes else 0.0


def _handling_s(machine: Machine, size: float, kernel: float) -> float:
    # What comes from the disk goes into memory first, past the same bus.
    return 2 * size / kernel + (size / machine.pack_speed if machine.pack_speed > 0 else 0.0)
