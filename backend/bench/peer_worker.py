"""One engine in a process of its own for bench/peers.py: reads jobs as JSON lines, answers each with its times.

Runs under the interpreter that has the engine installed and imports nothing but that engine.
A job {"prompt": [ids], "answer": n} evaluates the prompt from an empty cache and then samples n tokens greedily. Processor time
is given beside the elapsed time: with one thread it stays comparable when the machine is busy with other work.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

Times = dict[str, float]
Job = Callable[[list[int], int], Times]


class LlamaCpp(Protocol):
    """What is used of llama_cpp.Llama."""

    def reset(self) -> None: ...

    def eval(self, tokens: list[int]) -> None: ...

    def sample(self, *, temp: float) -> int: ...


def kcode(model: Path, threads: int) -> Job:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from queue import SimpleQueue

    from kcode_backend.engine.request import Event, Finished, Generation, Sampled, SamplingParams
    from kcode_backend.serving import load_serving

    engine = load_serving(model, 4096, threads).engine

    def job(prompt: list[int], answer: int) -> Times:
        engine.pool.clear()
        before = engine.counters.model_s, engine.counters.busy_s
        events: SimpleQueue[Event] = SimpleQueue()
        engine.submit(Generation(tuple(prompt), events.put, SamplingParams(temperature=0), max_tokens=answer + 1))
        cpu = [time.process_time()]
        while not isinstance(event := events.get(), Finished):
            if isinstance(event, Sampled) and len(cpu) == 1:
                cpu.append(time.process_time())
        cpu.append(time.process_time())
        assert event.cached_tokens == 0, "the prompt was cached"
        model_s, busy_s = engine.counters.model_s - before[0], engine.counters.busy_s - before[1]
        times = {"prefill_s": event.prefill_s, "decode_s": event.decode_s, "outside_model": 1 - model_s / busy_s}
        return times | {"prefill_cpu_s": cpu[1] - cpu[0], "decode_cpu_s": cpu[2] - cpu[1]}

    return job


def llama_cpp(model: Path, threads: int) -> Job:
    """llama-cpp-python, which is installed beside this interpreter only."""
    engine: LlamaCpp = importlib.import_module("llama_cpp").Llama(
        str(model), n_ctx=4096, n_threads=threads, n_threads_batch=threads, verbose=False
    )

    def job(prompt: list[int], answer: int) -> Times:
        engine.reset()
        started, cpu = time.monotonic(), time.process_time()
        engine.eval(prompt)
        token = engine.sample(temp=0)
        first, first_cpu = time.monotonic(), time.process_time()
        for _ in range(answer):
            engine.eval([token])
            token = engine.sample(temp=0)
        times = {"prefill_s": first - started, "decode_s": time.monotonic() - first}
        return times | {"prefill_cpu_s": first_cpu - cpu, "decode_cpu_s": time.process_time() - first_cpu}

    return job


ENGINES: dict[str, Callable[[Path, int], Job]] = {
    "kcode": kcode,
    "llama.cpp": llama_cpp,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("model", type=Path)
    parser.add_argument("threads", type=int)
    given = parser.parse_args()
    # What the engines print must not mix with the answers.
    answers, sys.stdout = sys.stdout, sys.stderr
    job = ENGINES[given.engine](given.model, given.threads)
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(job(asked["prompt"], asked["answer"])), file=answers, flush=True)


if __name__ == "__main__":
    main()
