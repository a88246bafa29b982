"""`make bench`: kcode's engine against llama.cpp in a few figures, all taken in this run: a table, then a line of JSON.

The short version takes some minutes on two cores; --full adds the long contexts and the whole session, which take hours there.
A figure above 1 says how many times as fast kcode is.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import batching
import peers
import resume
from agent_trace import DEFAULT, AgentTrace, read_trace
from peer_env import Interpreters, find_peers
from replay import CONTEXT, Replay, replay
from replay import table as replay_table
from servers import Server, Setup, end_with_children, start_kcode, start_llama

FIGURES = (
    "decode_x_llama",
    "decode_bandwidth_share",
    "prefill2k_x_llama",
    "prefill16k_x_llama",
    "trace_x_llama",
    "resume_x_prefill",
    "batch4_x_single",
)
LONG_CONTEXT = 32_768
"""All that the model was made for."""
NOT_SHORT = "not in the short version: make bench FULL=1"


@dataclass(frozen=True, slots=True)
class Extent:
    """How much is measured. The first context is the one that decoding is judged by."""

    contexts: tuple[int, ...]
    trace_limit_s: float
    resume_tokens: int
    """0: the trace's first request stands in, which has been prefilled anyway."""


SHORT = Extent((512,), 60.0, 0)
FULL = Extent((512, 2048, 4096, 16384, 32512), float("inf"), LONG_CONTEXT - resume.ROOM)


@dataclass
class Report:
    """The figures that were measured, with how; and the reasons for those that were not."""

    values: dict[str, float] = field(default_factory=dict[str, float])
    notes: dict[str, str] = field(default_factory=dict[str, str])

    def put(self, figure: str, value: float, note: str) -> None:
        self.values[figure] = value
        self.notes[figure] = note

    def table(self) -> list[str]:
        lines = [f"{'figure':24}{'value':>8}  how"]
        for figure in FIGURES:
            value = f"{self.values[figure]:.2f}" if figure in self.values else "-"
            lines.append(f"{figure:24}{value:>8}  {self.notes.get(figure, NOT_SHORT)}")
        return lines

    def line(self) -> str:
        return json.dumps({figure: round(self.values[figure], 3) if figure in self.values else None for figure in FIGURES})


def measure_engines(setup: Setup, found: Interpreters, extent: Extent, report: Report) -> None:
    """Decoding and prefilling in the engines themselves."""
    interpreters = {"kcode": sys.executable}
    if found.llama:
        interpreters["llama.cpp"] = found.llama
    if found.ik_llama and (extent is FULL or not found.llama):
        interpreters["ik_llama"] = found.ik_llama
    print(peers.HEADING, flush=True)
    with peers.running(interpreters, setup.model, setup.threads, max(extent.contexts)) as running:
        for row in peers.measure(running, extent.contexts, rounds=5, answer=16):
            print("\n".join(peers.lines_of(row, answer=16)), flush=True)
            _take(row, report)


def _take(row: Sequence[peers.Measured], report: Report) -> None:
    """The figures of one context. Without llama.cpp the second engine of the row stands in, and the note says which."""
    ours = row[0]
    if "decode_bandwidth_share" not in report.values:
        share = sum(ours.shares) / len(ours.shares)
        report.put("decode_bandwidth_share", share, f"context {ours.context}, of the read probe before each of 5 rounds")
    if len(row) == 1:
        return
    other = row[1]
    if "decode_x_llama" not in report.values:
        note = f"context {ours.context}, 16 tokens, medians of 5 interleaved rounds, against {other.name}"
        report.put("decode_x_llama", other.decode_s() / ours.decode_s(), note)
    for context, figure in ((2048, "prefill2k_x_llama"), (16384, "prefill16k_x_llama")):
        if ours.context == context:
            report.put(figure, other.prefill_s / ours.prefill_s, f"{context} tokens, against {other.name}")


def measure_servers(setup: Setup, found: Interpreters, trace: AgentTrace, extent: Extent, report: Report) -> None:
    """The agent session, its resumption after a restart, and four requests at once."""
    folder = setup.scratch / "kv"
    with contextlib.ExitStack() as stack:
        servers: list[Server] = [stack.enter_context(contextlib.closing(start_kcode(setup, folder)))]
        if found.llama:
            servers.append(stack.enter_context(contextlib.closing(start_llama(setup, found.llama, cache=False))))
        replays = replay(servers, trace, len(trace.steps), extent.trace_limit_s)
    print("\n" + "\n".join(replay_table(replays)), flush=True)
    if len(replays) > 1:
        _take_replays(replays, trace, report)
    with contextlib.closing(start_kcode(setup, folder)) as server:
        if not extent.resume_tokens:
            first = resume.Resumed(replays[0].answers[0], server.ask(trace.head, trace.tools, 1))
            _take_resumed(first, report)
        together = batching.measure(server, requests=4, answer=24, rounds=3)
    report.put("batch4_x_single", together.ratio, "four decodes at once against one, through the server, 24 tokens, 3 rounds")


def _take_replays(replays: Sequence[Replay], trace: AgentTrace, report: Report) -> None:
    ours, other = replays
    done = len(ours.answers)
    note = f"{done} of {len(trace.steps)} steps, total time, against {other.server.name}'s server"
    report.put("trace_x_llama", other.total_s / ours.total_s, note + (f" ({NOT_SHORT})" if done < len(trace.steps) else ""))
    if "prefill2k_x_llama" not in report.values:
        first = ours.answers[0]
        note = f"first request of the trace, {first.prompt_tokens} tokens, time to the first token, through the servers"
        report.put("prefill2k_x_llama", other.answers[0].first_s / first.first_s, note)


def _take_resumed(found: resume.Resumed, report: Report) -> None:
    note = f"{found.cold.prompt_tokens} tokens after a restart, {found.resumed.cached_tokens} of them found again"
    report.put("resume_x_prefill", found.ratio, note)


def measure_long_resume(setup: Setup, trace: AgentTrace, extent: Extent, report: Report) -> None:
    _take_resumed(resume.measure(setup, trace, extent.resume_tokens), report)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--full", action="store_true", help="all contexts and the whole session")
    parser.add_argument(
        "--llama", metavar="PYTHON", help="interpreter with llama-cpp-python[server]; else one is set up in out/peers"
    )
    parser.add_argument("--ik", metavar="PYTHON", help="interpreter with ik-llama-cpp-python")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--no-install", action="store_true", help="go without the engines that are not there")
    parser.add_argument("--trace", type=Path, default=DEFAULT)
    given = parser.parse_args()
    end_with_children()
    extent = FULL if given.full else SHORT
    found = find_peers(given.llama, given.ik, install=not given.no_install)
    trace = read_trace(given.trace)
    report = Report()
    with tempfile.TemporaryDirectory(prefix="kcode-bench-") as scratch:
        setup = Setup(given.model, CONTEXT, given.threads, Path(scratch))
        measure_engines(setup, found, extent, report)
        measure_servers(setup, found, trace, extent, report)
        if extent.resume_tokens:
            (Path(scratch) / "long").mkdir()
            long = Setup(given.model, LONG_CONTEXT, given.threads, Path(scratch) / "long")
            measure_long_resume(long, trace, extent, report)
    if found.llama is None:
        for figure in ("decode_x_llama", "prefill2k_x_llama", "prefill16k_x_llama", "trace_x_llama"):
            report.notes.setdefault(figure, f"llama-cpp-python: {found.missing}")
    load = os.getloadavg()[0]
    print(f"\n{given.model.name}, {given.threads} threads, load average at the end {load:.1f}; above 1 kcode is faster")
    print("\n".join(report.table()))
    print(report.line())


if __name__ == "__main__":
    main()
