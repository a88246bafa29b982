"""`kcode models plan`: what of a model goes where, and how fast that can be, before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kcode.commands.models_errors import translated
from kcode.errors import StartError
from kcode.paths import find_paths

if TYPE_CHECKING:
    from kcode_backend.plan import Plan

_SIZE = click.FloatRange(min=0, min_open=True)


@click.command("plan")
@click.argument("path")
@click.option("--ram", type=_SIZE, metavar="GB", help="Memory to plan with; by default what is available now.")
@click.option("--vram", type=_SIZE, metavar="GB", help="Of a GPU: says what it would hold. This version computes on the CPU.")
@click.option("--ram-gbs", type=_SIZE, metavar="GB/S", help="Speed of memory; by default it is measured.")
@click.option("--disk-gbs", type=_SIZE, metavar="GB/S", help="Speed of the disk; by default it is measured on the model's files.")
@click.option("--expert-ram", type=_SIZE, metavar="GB", help="Memory for experts; by default what is left.")
@click.option("--context", type=click.IntRange(min=1), metavar="N", help="Tokens of a conversation; by default the model's most.")
@click.option("--kv", type=click.Choice(["f16", "int8", "int4"]), default="f16", show_default=True, help="Numbers of the cache.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def command(
    path: str,
    ram: float | None,
    vram: float | None,
    ram_gbs: float | None,
    disk_gbs: float | None,
    expert_ram: float | None,
    context: int | None,
    kv: str,
    as_json: bool,
) -> None:
    """Say what of the model PATH goes where and how fast it can be; exit code 1 when it cannot work.

    PATH is a name of `kcode models list`, a .gguf file, a folder of safetensors, or a folder with the config.json and
    model.safetensors.index.json of one.
    """
    from kcode_backend import plan_probe
    from kcode_backend.catalog import find
    from kcode_backend.plan import Machine, available_memory, make_plan

    paths = find_paths()
    with translated():
        place = Path(path).expanduser()
        place = place if (place / "config.json").is_file() else find(path, paths.models)
        model = plan_probe.read_footprint(place, kv)
        machine = Machine(
            ram_bytes=int(ram * 1e9) if ram else available_memory(),
            ram_speed=ram_gbs * 1e9 if ram_gbs else plan_probe.memory_speed(),
            disk_speed=disk_gbs * 1e9 if disk_gbs else plan_probe.disk_speed(place),
            # What is said of another machine's memory says nothing of its cores.
            pack_speed=plan_probe.pack_speed() if model.all_experts and not ram_gbs else 0.0,
            multiply_speed=0.0 if ram_gbs else plan_probe.multiply_speed(),
        )
        hits = plan_probe.read_hits(place, model, paths.expert_counts)
        made = make_plan(model, machine, context, int(expert_ram * 1e9) if expert_ram else None, hits)
    basis = "an even router" if hits is None else "choices counted in earlier runs"
    click.echo(json.dumps(_facts(made, basis)) if as_json else "\n".join(_table(made, vram, basis)))
    if made.refusal:
        raise StartError(made.refusal)


def _facts(plan: Plan, basis: str) -> dict[str, object]:
    model, machine = plan.footprint, plan.machine
    return {
        "model": model.name,
        "total_bytes": model.total_bytes,
        "dense_bytes": model.dense_bytes,
        "embedding_bytes": model.embedding_bytes,
        "experts": model.all_experts,
        "expert_bytes": model.expert_bytes,
        "experts_in_ram": plan.slots,
        "experts_on_disk_bytes": plan.disk_experts_bytes,
        "context": plan.context,
        "kv_token_bytes": model.kv_token_bytes,
        "kv_bytes": plan.kv_bytes,
        "ram_bytes": machine.ram_bytes,
        "ram_bytes_per_s": machine.ram_speed,
        "disk_bytes_per_s": machine.disk_speed,
        "pack_bytes_per_s": machine.pack_speed,
        "hit_rate": plan.hit_rate,
        "hit_rate_by": basis,
        "decode_tokens_per_s": plan.decode_speed,
        "prefill_tokens_per_s": plan.prefill_speed,
        "refusal": plan.refusal or None,
    }


def _table(plan: Plan, vram: float | None, basis: str) -> list[str]:
    model, machine = plan.footprint, plan.machine
    rows = [
        ("every token's weights", model.dense_bytes, "memory", "attention, shared networks, routers, head"),
        ("embedding", model.embedding_bytes, "memory", "one row a token"),
    ]
    if model.all_experts:
        counted = f"{plan.slots:,} of {model.all_experts:,}, {model.expert_bytes / 1e6:.1f} MB each"
        rows.append(("experts kept", plan.ram_experts_bytes, "memory", counted))
        if plan.slots < model.all_experts:
            rows.append(("other experts", plan.disk_experts_bytes, "disk", "read when they are chosen"))
    tokens = plan.kv_bytes // model.kv_token_bytes
    rows.append(("keys and values", plan.kv_bytes, "memory", f"{tokens:,} tokens of {model.kv_token_bytes:,} bytes"))
    lines = [f"{model.name}: {model.total_bytes / 1e9:.1f} GB; {machine.ram_bytes / 1e9:.1f} GB of memory"]
    lines += [f"  {what:<22} {size / 1e9:9.2f} GB  {where:<7} {note}" for what, size, where, note in rows]
    speeds = [("memory", machine.ram_speed), ("disk", machine.disk_speed)]
    lines.append("  " + ", ".join(f"{name} {speed / 1e9:.2f} GB/s" if speed else f"{name} not known" for name, speed in speeds))
    if plan.slots < model.all_experts:
        lines.append(f"experts found in memory: {plan.hit_rate:.0%} of those chosen, by {basis}")
    if plan.decode_speed:
        lines.append(f"decoding: at most about {plan.decode_speed:.2f} tokens a second")
    else:
        lines.append("decoding: not known; give --ram-gbs and --disk-gbs")
    if plan.prefill_speed:
        lines.append(f"prompts: about {plan.prefill_speed:.1f} tokens a second where they are long")
    if vram:
        held = int(vram * 1e9) - model.dense_bytes - model.embedding_bytes - plan.kv_bytes
        fits = f"and {held // model.expert_bytes:,} experts" if held > 0 and model.all_experts else "and nothing else"
        lines.append(
            f"a GPU of {vram:g} GB would hold every token's weights, keys and values {fits}; this version computes on the CPU"
            if held >= 0
            else f"a GPU of {vram:g} GB is {-held / 1e9:.1f} GB too small for every token's weights and the cache"
        )
    return lines
