"""The soak: a session of hundreds of calls, killed with -9 at random points and resumed until it is done.

Everything is real but the choice of words: kcode's session with its sandbox, tools, checkpoints and transcript, and its engine
with a tiny model whose answers are bound to a plan. First the plan runs undisturbed and is measured; then it runs again with
kills. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from kcode.messages import ToolCall
from kcode.models.local import LocalModel
from kcode.paths import find_paths
from kcode.transcript import Answered, Opened, Record, Said, list_sessions, open_existing
from kcode_bench.soak_agent import engine
from kcode_bench.soak_plan import COUNTER, JOURNAL, LOG

TINY = "--layers 1 --dense-layers 1 --hidden 64 --heads 2 --mlp 64 --context 262144"
DELAY_CALLS = 1.5
"""A kill comes at most so many calls after the chosen one, so that it may hit any part of one."""
MAX_START_DELAY_S = 3.0
_GIT = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}


@dataclass(slots=True)
class Told:
    """What the agents said before they ended: calls and answers that are surely on disk, times, memory."""

    said: list[str] = field(default_factory=list)
    answered: list[str] = field(default_factory=list)
    tools: list[str] = field(default_factory=list)
    own_ms: list[float] = field(default_factory=list)
    own_of: dict[str, list[float]] = field(default_factory=dict)
    rss_mb: float = 0.0
    status: str = ""

    def hear(self, line: str) -> bool:
        """Take one line in; whether a call was answered. A line cut by a kill says nothing."""
        try:
            facts = json.loads(line)
        except ValueError:
            return False
        self.said += facts.get("said", [])
        self.rss_mb = max(self.rss_mb, facts.get("rss_mb", 0.0))
        self.status = facts.get("status", self.status)
        own_ms = facts.get("own_ms")
        if own_ms is not None and self.tools:
            self.own_ms.append(own_ms)
            self.own_of.setdefault(self.tools[-1], []).append(own_ms)
        if "call" in facts:
            self.answered.append(facts["call"])
            self.tools.append(facts["tool"])
        return "call" in facts


@dataclass(slots=True)
class Tally:
    """What the killed sessions came to."""

    kills: int = 0
    resumed: int = 0
    records_lost: int = 0
    effects_doubled: int = 0
    effects_missing: int = 0
    trees_equal: bool = True
    reprefilled_tokens: int = 0
    interrupted_calls: int = 0


def new_workspace(folder: Path) -> Path:
    """A repository with what the plan begins from."""
    folder.mkdir()
    (folder / JOURNAL).write_text("")
    (folder / LOG).write_text("# Log\n")
    (folder / COUNTER).write_text("count 0\n")
    _git(folder, "init", "-q")
    _git(folder, "config", "user.email", "soak@example.org")
    _git(folder, "config", "user.name", "Soak")
    _git(folder, "add", ".")
    _git(folder, "commit", "-q", "-m", "start")
    return folder


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, env={**os.environ, **_GIT}, check=True, capture_output=True, text=True)
    return done.stdout


def state_of(folder: Path) -> dict[str, str]:
    """All files with their text, and the subjects and trees of the commits."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and ".git" not in path.relative_to(folder).parts]
    state = {str(path.relative_to(folder)): path.read_text() for path in files}
    return state | {"<commits>": _git(folder, "log", "--format=%s %T")}


def effects_of(state: Mapping[str, str]) -> Counter[str]:
    """How often each step's effect is there."""
    effects: Counter[str] = Counter()
    for name in (JOURNAL, LOG, "<commits>"):
        effects.update(f"{name}: {' '.join(line.split()[:2])}" for line in state[name].splitlines() if line.startswith("step "))
    return effects


def start_agent(workspace: Path, model: Path, calls: int) -> subprocess.Popen[str]:
    """One process of kcode over the workspace, which begins the plan or goes on with it."""
    command = [sys.executable, "-m", "kcode_bench.soak_agent", str(workspace), str(model), str(calls)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL)


def run_to_end(workspace: Path, model: Path, calls: int, told: Told) -> None:
    """Raises RuntimeError when the plan is not done afterwards."""
    with start_agent(workspace, model, calls) as agent:
        assert agent.stdout is not None
        for line in agent.stdout:
            told.hear(line)
    if agent.returncode or told.status != "finished":
        raise RuntimeError(f"the agent over {workspace} ended with code {agent.returncode}, {told.status or 'nothing said'}")


def kill_after(workspace: Path, model: Path, calls: int, told: Told, point: int, delay_s: float) -> bool:
    """Run until `point` calls were answered in all, and a moment more; False when the plan was done before.

    The moment for a kill that is due at once is counted from the start of the process.
    """
    agent = start_agent(workspace, model, calls)
    assert agent.stdout is not None
    while len(told.answered) < point:
        line = agent.stdout.readline()
        if not line:
            break
        told.hear(line)
    time.sleep(delay_s)
    killed = agent.poll() is None
    agent.send_signal(signal.SIGKILL)
    for line in agent.stdout.read().splitlines():
        told.hear(line)
    code = agent.wait()
    agent.stdout.close()
    if not killed and code:
        raise RuntimeError(f"the agent over {workspace} ended by itself with code {code}")
    return killed


def transcript_of(workspace: Path) -> Path | None:
    """The workspace's only session; None before its first turn is on disk."""
    found = list_sessions(find_paths().sessions(workspace))
    assert len(found) <= 1, f"{len(found)} sessions where one was resumed"
    return found[0].path if found else None


def records_of(path: Path) -> list[Record]:
    transcript = open_existing(path)
    transcript.close()
    return list(transcript.records)


def reprefilled(records: list[Record]) -> int:
    """Tokens that were in the cache and were computed again. Of each answer the last token is sampled and not yet computed."""
    total = known = 0
    for record in records:
        if isinstance(record, Said) and record.usage is not None and record.usage.prompt_tokens:
            total += max(known - record.usage.cached_tokens, 0)
            known = record.usage.prompt_tokens + record.usage.completion_tokens - 1
    return total


def lost(records: list[Record], told: Told) -> int:
    """What an agent had told as done and the transcript does not hold, or holds more than once."""
    calls = [part.id for item in records if isinstance(item, Said) for part in item.message.parts if isinstance(part, ToolCall)]
    answered = Counter(record.result.call_id for record in records if isinstance(record, Answered))
    missing = set(told.said) - set(calls)
    unanswered = [call for call in calls if answered[call] != 1] + [call for call in told.answered if call not in answered]
    return len(missing) + len(unanswered)


def kill_and_resume(
    workspace: Path, model: Path, calls: int, kills: int, call_s: float, chance: random.Random, tally: Tally
) -> Told:
    """One session with so many kills, then run to its end; a call takes about `call_s`."""
    told = Told()
    before = b""
    # A tenth of the kills hits a process that has just been started.
    points = sorted(chance.sample(range(1, calls), min(kills, calls - 1)))
    for point in points:
        due, delay_s = point, chance.uniform(0, DELAY_CALLS * call_s)
        if chance.random() < 0.1:
            due, delay_s = 0, chance.uniform(0, MAX_START_DELAY_S)
        if not kill_after(workspace, model, calls, told, due, delay_s):
            raise RuntimeError(f"the plan was done before it could be killed after call {point}")
        tally.kills += 1
        path = transcript_of(workspace)
        data = path.read_bytes() if path is not None else b""
        if not data.startswith(before):
            tally.records_lost += 1
        before = data[: data.rfind(b"\n") + 1]
    run_to_end(workspace, model, calls, told)
    path = transcript_of(workspace)
    assert path is not None
    if not path.read_bytes().startswith(before):
        tally.records_lost += 1
    records = records_of(path)
    tally.records_lost += lost(records, told)
    tally.reprefilled_tokens += reprefilled(records)
    tally.interrupted_calls += sum(isinstance(item, Answered) and "kcode ended before" in item.result.text for item in records)
    # Each process that reached the session's opening after a kill took it up where it stood.
    tally.resumed += kills if told.status == "finished" else sum(isinstance(item, Opened) for item in records) - 1
    return told


@contextmanager
def home() -> Generator[Path, None, None]:
    """A home of kcode's own for this run, with an engine over a tiny model; both are gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="kcode-soak-"))
    os.environ["KCODE_HOME"] = str(folder / "home")
    model = folder / "model"
    made = subprocess.run([sys.executable, "-m", "kcode", "models", "synth", str(model), *TINY.split()], check=False)
    if made.returncode:
        sys.exit("the soak needs kcode's engine: pip install 'kcode-agent[local]'")
    local = engine(model, find_paths())
    try:
        asyncio.run(_start(local))
        yield folder
    finally:
        if local.process_id is not None:
            os.kill(local.process_id, signal.SIGTERM)
        shutil.rmtree(folder, ignore_errors=True)


async def _start(local: LocalModel) -> None:
    await local.start()
    await local.close()


def measure(folder: Path, model: Path, calls: int) -> tuple[Told, dict[str, str], int]:
    """The undisturbed run: what it told, the state it left, the tokens it computed again."""
    workspace = new_workspace(folder / "undisturbed")
    told = Told()
    run_to_end(workspace, model, calls, told)
    path = transcript_of(workspace)
    assert path is not None
    return told, state_of(workspace), reprefilled(records_of(path))


def soak(calls: int, kills: int, sessions: int, seed: int) -> dict[str, object]:
    """All figures of a run."""
    chance = random.Random(seed)
    tally = Tally()
    with home() as folder:
        model = folder / "model"
        started = time.monotonic()
        calm, wanted, again = measure(folder, model, calls)
        calm_s = time.monotonic() - started
        tally.reprefilled_tokens += again
        rss_mb = calm.rss_mb
        for number in range(sessions):
            share = kills // sessions + (number < kills % sessions)
            workspace = new_workspace(folder / f"killed{number}")
            told = kill_and_resume(workspace, model, calls, share, calm_s / calls, chance, tally)
            rss_mb = max(rss_mb, told.rss_mb)
            state = state_of(workspace)
            effects = effects_of(state)
            tally.effects_doubled += sum(count - 1 for count in effects.values())
            tally.effects_missing += len(set(effects_of(wanted)) - set(effects))
            if state != wanted:
                tally.trees_equal = False
                different = [name for name in {*state, *wanted} if state.get(name) != wanted.get(name)]
                print(f"session {number}: not as in the undisturbed run: {', '.join(sorted(different))}", file=sys.stderr)
            print(f"session {number}: {share} kills, {tally.resumed} of {tally.kills} resumed so far", file=sys.stderr)
    return {
        "calls": len(calm.answered),
        "kills": tally.kills,
        "resumed": tally.resumed,
        "records_lost": tally.records_lost,
        "effects_doubled": tally.effects_doubled,
        "own_ms_per_call": round(statistics.median(calm.own_ms), 2),
        "rss_mb": round(rss_mb, 1),
        "reprefilled_tokens": tally.reprefilled_tokens,
        "effects_missing": tally.effects_missing,
        "trees_equal": tally.trees_equal,
        "interrupted_calls": tally.interrupted_calls,
        "own_ms_p95": round(statistics.quantiles(calm.own_ms, n=20)[-1], 2),
        "own_ms_by_tool": {name: round(statistics.median(own), 2) for name, own in sorted(calm.own_of.items())},
        "sessions": sessions,
        "ms_per_call": round(calm_s * 1000 / calls, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=300, help="of each session (default %(default)s)")
    parser.add_argument("--kills", type=int, default=100, help="over all sessions (default %(default)s)")
    parser.add_argument("--sessions", type=int, default=5, help="that the kills are spread over (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the points at which it is killed")
    given = parser.parse_args()
    # Ended by a signal too, the engine is not left behind.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    figures = soak(given.calls, given.kills, given.sessions, given.seed)
    print(json.dumps(figures))
    wrong = figures["records_lost"] or figures["effects_doubled"] or figures["effects_missing"] or not figures["trees_equal"]
    sys.exit(1 if wrong or figures["resumed"] != figures["kills"] else 0)


if __name__ == "__main__":
    main()
