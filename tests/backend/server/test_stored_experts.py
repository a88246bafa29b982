"""A model whose experts do not all fit into memory, behind the real server."""

from __future__ import annotations

import signal
from pathlib import Path

from kcode_backend import plan_probe
from kcode_backend.synth import write
from kcode_backend.synth_config import SynthShape
from tests.backend.server.conftest import StartEngine


def test_answers_are_the_same_and_what_was_read_is_told(start: StartEngine, tmp_path: Path) -> None:
    model, counts = tmp_path / "model", tmp_path / "counts"
    write(model, SynthShape())
    footprint = plan_probe.read_footprint(model)
    ram = str(footprint.expert_bytes * footprint.all_experts // 3)
    whole = start(model, name="whole.sock")
    part = start(model, "--expert-ram", ram, "--expert-counts", str(counts), name="part.sock")
    for engine in (whole, part):
        engine.wait_ready()
    assert part.ask("Which experts?", max_tokens=24)["choices"] == whole.ask("Which experts?", max_tokens=24)["choices"]
    assert 0 < part.metric("kcode_experts_kept") <= footprint.all_experts // 3
    hits, misses = part.metric("kcode_expert_hits_total"), part.metric("kcode_expert_misses_total")
    assert hits > 0
    assert misses > 0
    assert part.metric("kcode_expert_read_bytes_total") >= misses * (footprint.expert_bytes - 24)
    with whole.client() as client:
        assert "kcode_expert" not in client.get("/metrics").text

    assert plan_probe.read_hits(model, footprint, counts) is None
    part.process.send_signal(signal.SIGTERM)
    part.process.wait(timeout=60)
    foretold = plan_probe.read_hits(model, footprint, counts)
    assert foretold is not None
    assert foretold(0) == 0
    assert 0 < foretold(5) < 1
    assert foretold(footprint.all_experts) == 1
