"""kcode's engine against other engines on the same model file, over contexts: same threads, same tokens, rounds interleaved.

Each engine lives in a process of its own, started with the interpreter that has it. The context grows from one measured length
to the next, so a long one is prefilled once; decoding is measured in short rounds from what is cached, with a probe of the
memory's read bandwidth before each. Absolute figures mean little on a shared machine; the ratio of the medians is what counts.

    python backend/bench/peers.py MODEL.gguf --peer llama.cpp=/path/to/python --contexts 512 4096
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import statistics
import subprocess
import sys
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

WORKER = Path(__file__).with_name("peer_worker.py")
MARGIN = 256
"""Context beyond the longest one measured: for what is decoded."""
WARM_UP = 64


class Peer:
    """A running worker."""

    def __init__(self, name: str, python: str, model: Path, threads: int, context: int) -> None:
        self.name = name
        command = [python, str(WORKER), name, str(model), str(threads), str(context)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._read()

    def do(self, job: str, tokens: object = None) -> dict[str, float]:
        assert self._process.stdin is not None, "started with a pipe"
        self._process.stdin.write(json.dumps({"job": job} if tokens is None else {"job": job, "tokens": tokens}) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, float]:
        assert self._process.stdout is not None, "started with a pipe"
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with code {self._process.wait()}; its messages are above")
        return json.loads(line)

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@dataclass
class Measured:
    """One engine at one context. `prefill_s` is the time of the whole context, summed over the lengths before it."""

    name: str
    context: int
    prefill_s: float
    prefill_cpu_s: float
    decode: list[dict[str, float]] = field(default_factory=list[dict[str, float]])
    shares: list[float] = field(default_factory=list[float])
    """Of the read bandwidth that the probe before the round found; kcode only."""

    def decode_s(self, clock: str = "elapsed_s") -> float:
        """Median round."""
        return statistics.median(times[clock] for times in self.decode)

    def spread(self, answer: int) -> tuple[float, float]:
        """Slowest and fastest round, tokens a second."""
        rates = [answer / times["elapsed_s"] for times in self.decode]
        return min(rates), max(rates)


@contextlib.contextmanager
def running(interpreters: dict[str, str], model: Path, threads: int, context: int) -> Generator[list[Peer]]:
    """A worker for each engine, named with the interpreter that has it."""
    with contextlib.ExitStack() as stack:
        peers: list[Peer] = []
        for name, python in interpreters.items():
            peers.append(stack.enter_context(contextlib.closing(Peer(name, python, model, threads, context + MARGIN))))
        yield peers


def measure(peers: Sequence[Peer], contexts: Sequence[int], rounds: int, answer: int) -> Iterator[list[Measured]]:
    """For each context, as soon as it is done, one Measured a peer, in the order of `peers`, the first of which is kcode."""
    vocab = int(peers[0].do("probe")["vocab"])
    for peer in peers:
        peer.do("extend", tokens_of(WARM_UP, 1, vocab))
        peer.do("decode", 4)
        peer.do("clear")
    spent = {peer.name: (0.0, 0.0) for peer in peers}
    have = 0
    for context in sorted(contexts):
        row: list[Measured] = []
        for peer in peers:
            times = peer.do("extend", tokens_of(context, 2, vocab)[have:])
            elapsed, cpu = spent[peer.name]
            spent[peer.name] = elapsed + times["elapsed_s"], cpu + times["cpu_s"]
            row.append(Measured(peer.name, context, *spent[peer.name]))
        have = context
        for _ in range(rounds):
            for peer, measured in zip(peers, row, strict=True):
                probe = peer.do("probe") if peer.name == "kcode" else None
                times = peer.do("decode", answer)
                measured.decode.append(times)
                if probe is not None:
                    measured.shares.append(probe["token_bytes"] * answer / times["elapsed_s"] / probe["bytes_per_s"])
        yield row


def tokens_of(count: int, seed: int, vocab: int) -> list[int]:
    """Ordinary token ids, without the special ones at the end; a longer list begins with the shorter one."""
    return [(seed * 7919 + place * 104729) % (vocab * 9 // 10) for place in range(count)]


HEADING = f"{'context':>7}  {'engine':10}{'prefill tok/s':>14}{'decode tok/s':>13}{'(slowest-fastest)':>19}  kcode is"


def lines_of(row: Sequence[Measured], answer: int) -> list[str]:
    """One context of the table below HEADING."""
    lines: list[str] = []
    for measured in row:
        low, high = measured.spread(answer)
        line = f"{measured.context:7}  {measured.name:10}{measured.context / measured.prefill_s:14.1f}"
        line += f"{answer / measured.decode_s():13.2f}{f'({low:.2f}-{high:.2f})':>19}  "
        lines.append(line + (_about(measured) if measured is row[0] else _against(row[0], measured)))
    return lines


def _about(ours: Measured) -> str:
    outside = statistics.median(times["outside_model"] for times in ours.decode)
    return f"at {statistics.median(ours.shares):.0%} of the read probe in decode; {outside:.1%} of a step is outside the model"


def _against(ours: Measured, other: Measured) -> str:
    prefill, decode = other.prefill_s / ours.prefill_s, other.decode_s() / ours.decode_s()
    prefill_cpu, decode_cpu = other.prefill_cpu_s / ours.prefill_cpu_s, other.decode_s("cpu_s") / ours.decode_s("cpu_s")
    return f"{prefill:.2f} x in prefill, {decode:.2f} x in decode; by processor time {prefill_cpu:.2f} x, {decode_cpu:.2f} x"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON", help="llama.cpp=PATH or ik_llama=PATH")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--contexts", nargs="+", type=int, default=[512, 2048], help="long ones take long: 512 4096 16384 32512")
    parser.add_argument("--answer", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    interpreters = {"kcode": sys.executable, **dict(peer.split("=", 1) for peer in given.peer)}
    print(f"{platform.processor() or platform.machine()}, {given.threads} threads, {given.rounds} rounds, {given.model.name}")
    print(HEADING, flush=True)
    with running(interpreters, given.model, given.threads, max(given.contexts)) as peers:
        for row in measure(peers, given.contexts, given.rounds, given.answer):
            print("\n".join(lines_of(row, given.answer)), flush=True)


if __name__ == "__main__":
    main()
