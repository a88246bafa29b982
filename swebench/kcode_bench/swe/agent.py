"""kcode at work on one instance: a headless session in a process of its own, with the instance's Python on PATH."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

from kcode.errors import Aborted, InfrastructureError, StartError
from kcode_bench.bug_run import GRACE_S, SCORED_EXIT_CODES, START_EXIT_CODE, Report, end_group, last_line, read_report
from kcode_bench.swe.environment import Kind, Place, variables
from kcode_bench.swe.rows import Row
from kcode_bench.swe.specs import Spec
from kcode_prompts.prompt import load

XDG = {"CONFIG": ".config", "DATA": ".local/share", "STATE": ".local/state", "CACHE": ".cache"}
# What would lead the agent's commands to the Python that kcode itself runs on, or name a folder of the user's.
DROPPED = (
    *("VIRTUAL_ENV", "CONDA_PREFIX", "PYENV_ROOT", "PYENV_VERSION", "UV_PYTHON_INSTALL_DIR"),
    *("KCODE_READ_DIR", "KCODE_ADD_DIR"),
)


class AgentFailed(InfrastructureError):
    """The agent gave no answer that counts: the model or kcode itself failed."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What kcode is given. `options` are further words of its command line, such as -m NAME."""

    options: tuple[str, ...]
    time_limit_s: float
    seed: int


class Agents:
    """Those at work now. `stop` ends them and lets no other begin."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._working: set[subprocess.Popen[bytes]] = set()
        self._stopped = False

    def work(self, terms: Terms, place: Place, row: Row, spec: Spec, kind: Kind, folder: Path) -> Report:
        """Let kcode change `place.tree`; `folder` gets prompt.md, agent.log, kcode.json and session/.

        Raises AgentFailed, StartError when kcode could not start, and Aborted after `stop`.
        """
        shutil.rmtree(folder / "session", ignore_errors=True)
        prompt = folder / "prompt.md"
        prompt.write_text(load("swebench", repo=row.repo, issue=row.problem_statement), encoding="utf-8")
        with tempfile.TemporaryDirectory(prefix="kcode-swe-home-") as home:
            exit_code = self._run(_argv(terms, place, kind, prompt, folder), _environment(place, spec, home), terms, folder)
        if self._stopped:
            raise Aborted(f"{row.instance_id}: stopped")
        said = last_line(folder / "agent.log") or f"see {folder}/agent.log"
        if exit_code == START_EXIT_CODE:
            raise StartError(f"kcode could not start: {said}")
        report = read_report(folder)
        if exit_code is None:
            return Report(status="killed", reason=f"it did not end within {terms.time_limit_s + GRACE_S:g} s")
        if report is None or exit_code not in SCORED_EXIT_CODES:
            raise AgentFailed(f"kcode ended with {exit_code}: {(report.reason if report else None) or said}")
        return report

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            working = tuple(self._working)
        for process in working:
            end_group(process)

    def _run(self, argv: list[str], environment: dict[str, str], terms: Terms, folder: Path) -> int | None:
        """The exit code, or None when it had to be killed."""
        with (folder / "kcode.json").open("wb") as stdout, (folder / "agent.log").open("wb") as stderr:
            with self._lock:
                if self._stopped:
                    raise Aborted("stopped")
                process = subprocess.Popen(
                    argv, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, env=environment, start_new_session=True
                )
                self._working.add(process)
            try:
                return process.wait(terms.time_limit_s + GRACE_S)
            except subprocess.TimeoutExpired:
                return None
            finally:
                end_group(process)
                with self._lock:
                    self._working.discard(process)


def _argv(terms: Terms, place: Place, kind: Kind, prompt: Path, folder: Path) -> list[str]:
    walls = ["--sandbox", "workspace-write", "--network", "off", "--read-dir", str(place.venv)]
    return [
        *(sys.executable, "-m", "kcode", "--prompt-file", str(prompt), "--output-format", "json", "--cd", str(place.tree)),
        *("--output-dir", str(folder / "session"), "--time-limit", f"{terms.time_limit_s:g}", "--approval-mode", "auto"),
        *("--seed", str(terms.seed)),
        *(walls if kind == "bwrap" else ["--sandbox", "danger-full-access"]),
        *terms.options,
    ]


def _environment(place: Place, spec: Spec, home: str) -> dict[str, str]:
    """An empty home, so that no toolchain of the user's is shown, with kcode's own folders where they are."""
    kept = {name: value for name, value in os.environ.items() if name not in DROPPED}
    real = Path.home()
    folders = {f"XDG_{name}_HOME": kept.get(f"XDG_{name}_HOME", str(real / below)) for name, below in XDG.items()}
    return kept | folders | variables(place, spec) | {"HOME": home}
