"""One engine in a process of its own for peers.py: reads jobs as JSON lines, answers each with its times.

Runs under the interpreter that has the engine installed and imports nothing but that engine and numpy. The jobs:

    {"job": "clear"}                   forget everything
    {"job": "extend", "tokens": [..]}  evaluate these after what is cached; the cache then ends with them
    {"job": "decode", "tokens": n}     n greedy tokens after what is cached, which are forgotten again
    {"job": "probe"}                   kcode only: bytes a second that all threads read, what one token has to read, and
                                       how many tokens there are

Processor time is given beside the elapsed time: with one thread it stays comparable when the machine is busy with other work.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np

Times = dict[str, float]
# Any ordinary token does to begin a decode with.
FIRST_TOKEN = 1000
PROBE_BYTES = 256 << 20
PROBE_ROUNDS = 3


class Engine(Protocol):
    """What the jobs need."""

    def clear(self) -> None: ...

    def extend(self, tokens: list[int]) -> Times: ...

    def decode(self, tokens: int) -> Times: ...

    def probe(self) -> Times: ...


class Clock:
    """Elapsed and processor time since it was made."""

    def __init__(self) -> None:
        self._start = time.monotonic(), time.process_time()

    def times(self) -> Times:
        return {"elapsed_s": time.monotonic() - self._start[0], "cpu_s": time.process_time() - self._start[1]}


class Kcode:
    """Our engine; the prefix cache holds what was evaluated."""

    def __init__(self, model: Path, threads: int, context: int) -> None:
        sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
        from kcode_backend.serving import load_serving

        self._serving = load_serving(model, context, threads)
        self._tokens: list[int] = []

    def clear(self) -> None:
        self._serving.engine.pool.clear()
        self._tokens = []

    def extend(self, tokens: list[int]) -> Times:
        self._tokens += tokens
        return self._run(1)[0]

    def decode(self, tokens: int) -> Times:
        return self._run(tokens + 1)[1]

    def _run(self, answer: int) -> tuple[Times, Times]:
        """Times of prefilling what is not cached, and of decoding the tokens after the first one."""
        from queue import SimpleQueue

        from kcode_backend.engine.request import Event, Failed, Finished, Generation, Sampled, SamplingParams

        engine = self._serving.engine
        before = engine.counters.model_s, engine.counters.busy_s
        events: SimpleQueue[Event] = SimpleQueue()
        cpu = [time.process_time()]
        engine.submit(Generation(tuple(self._tokens), events.put, SamplingParams(temperature=0), max_tokens=answer))
        while not isinstance(event := events.get(), Finished):
            if isinstance(event, Failed):
                raise SystemExit(event.message)
            if isinstance(event, Sampled) and len(cpu) == 1:
                cpu.append(time.process_time())
        cpu.append(time.process_time())
        model_s, busy_s = engine.counters.model_s - before[0], engine.counters.busy_s - before[1]
        decode = {"elapsed_s": event.decode_s, "cpu_s": cpu[2] - cpu[1], "outside_model": 1 - model_s / busy_s}
        return {"elapsed_s": event.prefill_s, "cpu_s": cpu[1] - cpu[0]}, decode

    def probe(self) -> Times:
        from kcode_backend.kernels import native

        kernels = native.active()
        if kernels is None:
            raise SystemExit(native.describe().reason)
        data = np.ones(PROBE_BYTES, dtype=np.uint8)
        best_s = float("inf")
        for _ in range(PROBE_ROUNDS):
            start = time.perf_counter()
            kernels.read_probe(data)
            best_s = min(best_s, time.perf_counter() - start)
        return {
            "bytes_per_s": PROBE_BYTES / best_s,
            "token_bytes": float(self._token_bytes()),
            "vocab": self._serving.model.config.vocab,
        }

    def _token_bytes(self) -> int:
        """Weights and cache that decoding one token reads."""
        from kcode_backend.kernels.packed import PackedWeight
        from kcode_backend.kv.cache import bytes_per_block
        from kcode_backend.layers.decoder import Decoder
        from kcode_backend.serving import BLOCK_TOKENS

        model = self._serving.model
        network = model.network
        assert isinstance(network, Decoder)
        weights = [network.head]
        for block in network.blocks:
            for part in (block.attention, block.mlp):
                values = (getattr(part, name) for name in type(part).__dataclass_fields__)
                weights += [value for value in values if isinstance(value, PackedWeight)]
        return (
            sum(weight.nbytes for weight in weights)
            + len(self._tokens) * bytes_per_block(model.config, BLOCK_TOKENS) // BLOCK_TOKENS
        )


class _LlamaContext(Protocol):
    """What is used of llama_cpp.Llama."""

    n_tokens: int

    def reset(self) -> None: ...

    def eval(self, tokens: list[int]) -> None: ...

    def sample(self, *, temp: float) -> int: ...


class LlamaCpp:
    """llama-cpp-python, which is installed beside this interpreter only."""

    def __init__(self, model: Path, threads: int, context: int) -> None:
        make = importlib.import_module("llama_cpp").Llama
        self._llama: _LlamaContext = make(str(model), n_ctx=context, n_threads=threads, n_threads_batch=threads, verbose=False)

    def clear(self) -> None:
        self._llama.reset()

    def extend(self, tokens: list[int]) -> Times:
        clock = Clock()
        self._llama.eval(tokens)
        self._llama.sample(temp=0)
        return clock.times()

    def decode(self, tokens: int) -> Times:
        cached = self._llama.n_tokens
        clock = Clock()
        token = FIRST_TOKEN
        for _ in range(tokens):
            self._llama.eval([token])
            token = self._llama.sample(temp=0)
        times = clock.times()
        # The next evaluation drops what lies behind.
        self._llama.n_tokens = cached
        return times

    def probe(self) -> Times:
        raise SystemExit("the probe is kcode's")


class IkLlama:
    """ik-llama-cpp-python. Its binding cannot drop single positions: what was decoded stays, a few tokens a round."""

    def __init__(self, model: Path, threads: int, context: int) -> None:
        self._binding = importlib.import_module("ik_llama_cpp._internals")
        self._c = importlib.import_module("ik_llama_cpp._ctypes_api")
        make = importlib.import_module("ik_llama_cpp").IkLlama
        # Room for what is never dropped.
        # Kept, since it frees its context when it goes.
        self._llama = make(str(model), n_ctx=context + 1024, n_threads=threads, verbose=False)
        self._context = self._llama._context
        self._vocab = int(self._context.model.n_vocab)
        self._position = 0

    def clear(self) -> None:
        self._context.kv_cache_clear()
        self._position = 0

    def extend(self, tokens: list[int]) -> Times:
        clock = Clock()
        size = self._context._n_ubatch
        for start in range(0, len(tokens), size):
            self._evaluate(tokens[start : start + size])
        self._best()
        return clock.times()

    def decode(self, tokens: int) -> Times:
        clock = Clock()
        token = FIRST_TOKEN
        for _ in range(tokens):
            self._evaluate([token])
            token = self._best()
        return clock.times()

    def _evaluate(self, tokens: list[int]) -> None:
        batch = self._binding.make_batch_range(tokens, pos_start=self._position, logits_last=True)
        failed = self._context.decode(batch)
        self._c.llama_batch_free(batch)
        if failed:
            raise SystemExit(f"ik_llama.cpp failed at position {self._position} with {failed}")
        self._position += len(tokens)

    def _best(self) -> int:
        """Its own sampler is a Python loop over the vocabulary, which would be counted as the engine's time."""
        logits = ctypes.cast(self._context.get_logits(-1), ctypes.POINTER(ctypes.c_float))
        return int(np.ctypeslib.as_array(logits, (self._vocab,)).argmax())

    def probe(self) -> Times:
        raise SystemExit("the probe is kcode's")


ENGINES: dict[str, Callable[[Path, int, int], Engine]] = {"kcode": Kcode, "llama.cpp": LlamaCpp, "ik_llama": IkLlama}


def do(engine: Engine, asked: dict[str, object]) -> Times:
    match asked:
        case {"job": "extend", "tokens": list(tokens)}:
            return engine.extend([int(token) for token in tokens])
        case {"job": "decode", "tokens": int(tokens)}:
            return engine.decode(tokens)
        case {"job": "probe"}:
            return engine.probe()
        case {"job": "clear"}:
            engine.clear()
            return {}
        case _:
            raise SystemExit(f"an unknown job: {asked}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("model", type=Path)
    parser.add_argument("threads", type=int)
    parser.add_argument("context", type=int)
    given = parser.parse_args()
    # What the engines print must not mix with the answers.
    answers, sys.stdout = sys.stdout, sys.stderr
    engine = ENGINES[given.engine](given.model, given.threads, given.context)
    print(json.dumps({}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(do(engine, json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
