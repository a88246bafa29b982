"""Tokens a second and hits of a model whose experts do not fit into memory, beside what its plan says.

The plan is made twice: with the choices counted while the slots filled, and for a router that chooses evenly.

python backend/bench/expert_store.py MODEL --expert-ram GB [--tokens N] [--prompt N]
MODEL is a folder that `kcode models synth --real --layers 4 --experts 384` has written, for example. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

from kcode_backend import plan_probe
from kcode_backend.kv.cache import KVCache
from kcode_backend.models.batch import Batch
from kcode_backend.models.load import load
from kcode_backend.models.model import Model
from kcode_backend.plan import Machine, available_memory, make_plan
from kcode_backend.residency import expected_hits
from kcode_backend.weights.expert_store import ExpertMemory, ExpertStore

BLOCK = 64


def forward(model: Model, kv: KVCache, tokens: list[int], start: int) -> int:
    """The most likely token after `tokens`, which come after the first `start` ones."""
    positions = torch.arange(start, start + len(tokens))
    batch = Batch(
        token_ids=torch.tensor(tokens),
        positions=positions,
        slots=positions.clone(),
        seq_starts=torch.tensor([0, len(tokens)], dtype=torch.int32),
        block_tables=torch.arange(kv.blocks, dtype=torch.int32)[None],
        context_lens=torch.tensor([start + len(tokens)], dtype=torch.int32),
        logit_rows=torch.tensor([len(tokens) - 1]),
        decode_rows=1 if len(tokens) == 1 else 0,
    )
    with torch.inference_mode():
        return int(model.forward(batch, kv)[0].argmax())


def decode(model: Model, kv: KVCache, store: ExpertStore, count: int, start: int) -> dict[str, float]:
    """Tokens drawn at random, since a random model repeats itself; what each costs is the same."""
    drawn = np.random.default_rng(1).integers(0, model.config.vocab - 256, count).tolist()
    traffic = store.traffic
    before = (traffic.hits, traffic.misses, traffic.read_bytes, traffic.waited_s, traffic.packed_s)
    begun = time.monotonic()
    for number, token in enumerate(drawn):
        forward(model, kv, [token], start + number)
    seconds = time.monotonic() - begun
    after = (traffic.hits, traffic.misses, traffic.read_bytes, traffic.waited_s, traffic.packed_s)
    hits, misses, read, waited, packed = (late - early for late, early in zip(after, before, strict=True))
    return {
        "tokens_per_s": count / seconds,
        "hit_rate": hits / (hits + misses),
        "read_gb_per_s": read / seconds / 1e9,
        "waiting_share": waited / seconds,
        "packing_share": packed / seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--expert-ram", type=float, required=True, metavar="GB")
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--warm", type=int, default=16, help="tokens before, which fill the slots")
    parser.add_argument("--prompt", type=int, default=0, help="tokens of a prompt before, computed in one pass")
    given = parser.parse_args()
    ram = int(given.expert_ram * 1e9)
    started = time.monotonic()
    model = load(given.model, memory=ExpertMemory(ram))
    store = model.experts
    if store is None:
        raise SystemExit("all experts fit; give less with --expert-ram")
    print(f"loaded in {time.monotonic() - started:.1f} s", flush=True)
    kv = KVCache.allocate(model.config, -(-(given.prompt + given.tokens + given.warm) // BLOCK), BLOCK)
    found: dict[str, float] = {}
    if given.prompt:
        begun = time.monotonic()
        forward(model, kv, np.random.default_rng(2).integers(0, model.config.vocab - 256, given.prompt).tolist(), 0)
        found["prompt_tokens_per_s"] = given.prompt / (time.monotonic() - begun)
        print(f"prompt: {found['prompt_tokens_per_s']:.2f} tokens a second", flush=True)
    decode(model, kv, store, given.warm, given.prompt)
    # Speeds of the same minute: those of shared machines change by the hour.
    probes = Machine(
        available_memory(),
        plan_probe.memory_speed(),
        plan_probe.disk_speed(given.model),
        plan_probe.pack_speed(),
        plan_probe.multiply_speed(),
    )
    counts = store.residency.counts()
    found |= decode(model, kv, store, given.tokens, given.prompt + given.warm)
    footprint = plan_probe.read_footprint(given.model)
    plan = make_plan(footprint, probes, expert_ram=ram, hits=partial(expected_hits, counts))
    even = make_plan(footprint, probes, expert_ram=ram)
    found |= {
        "planned_tokens_per_s": plan.decode_speed,
        "planned_hit_rate": plan.hit_rate,
        "planned_tokens_per_s_even": even.decode_speed,
        "planned_hit_rate_even": even.hit_rate,
        "planned_prompt_tokens_per_s": plan.prefill_speed,
        "memory_gb_per_s": probes.ram_speed / 1e9,
        "disk_gb_per_s": probes.disk_speed / 1e9,
        "pack_gb_per_s": probes.pack_speed / 1e9,
    }
    print(json.dumps({name: round(value, 4) for name, value in found.items()}))
    store.close()


if __name__ == "__main__":
    main()
