"""kcode's engine against other engines on the same model file: same threads, same tokens, rounds interleaved.

Each engine lives in a process of its own, started with the interpreter that has it. Absolute figures mean little on a shared
machine; the ratio of the medians of interleaved rounds is what counts.

    python backend/bench/peers.py MODEL.gguf --peer llama.cpp=/path/to/python --rounds 5
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

WORKER = Path(__file__).with_name("peer_worker.py")


@dataclass
class Peer:
    """A running worker and what it measured, one entry a round."""

    name: str
    process: subprocess.Popen[str]
    rounds: list[dict[str, float]] = field(default_factory=list)

    def read(self) -> dict[str, float]:
        assert self.process.stdout is not None, "started with a pipe"
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with code {self.process.wait()}; its messages are above")
        return json.loads(line)

    def run(self, prompt: list[int], answer: int) -> None:
        assert self.process.stdin is not None, "started with a pipe"
        self.process.stdin.write(json.dumps({"prompt": prompt, "answer": answer}) + "\n")
        self.process.stdin.flush()
        self.rounds.append(self.read())

    def rate(self, key: str, tokens: int) -> float:
        """Tokens per second in the median round."""
        return tokens / statistics.median(entry[key] for entry in self.rounds)


def start(name: str, python: str, model: Path, threads: int) -> Peer:
    command = [python, str(WORKER), name, str(model), str(threads)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    peer = Peer(name, process)
    peer.read()
    return peer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON", help="llama.cpp=PATH")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--answer", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    interpreters = {"kcode": sys.executable, **dict(peer.split("=", 1) for peer in given.peer)}
    peers = [start(name, python, given.model, given.threads) for name, python in interpreters.items()]
    try:
        for number in range(given.rounds + 1):
            # Ordinary token ids, another prompt each round; the first round warms up and is dropped.
            prompt = [1000 + (number * 7919 + place * 104729) % 50000 for place in range(given.prompt)]
            for peer in peers:
                peer.run(prompt, given.answer)
        for peer in peers:
            del peer.rounds[0]
    finally:
        for peer in peers:
            peer.process.kill()
            peer.process.wait()
    ours = peers[0]
    print(f"{platform.processor() or platform.machine()}, {given.threads} threads, {given.rounds} rounds, {given.model.name}")
    for peer in peers:
        prefill, decode = peer.rate("prefill_s", given.prompt), peer.rate("decode_s", given.answer)
        print(f"{peer.name:10} prefill {prefill:7.1f} tok/s  decode {decode:6.2f} tok/s")
        if peer is ours:
            outside = statistics.median(entry["outside_model"] for entry in peer.rounds)
            print(f"{'':10} {outside:.1%} of the time is spent outside the model")
            continue
        for clock, name in (("s", "elapsed"), ("cpu_s", "processor")):
            ratios = [ours.rate(f"{part}_{clock}", 1) / peer.rate(f"{part}_{clock}", 1) for part in ("prefill", "decode")]
            print(f"{'':10} kcode is {ratios[0]:.2f} x as fast in prefill and {ratios[1]:.2f} x in decode by {name} time")


if __name__ == "__main__":
    main()
