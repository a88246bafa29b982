"""`kcode doctor`: what this machine offers, what is missing, and what each missing thing costs."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import click

from kcode import __version__
from kcode.commands.models import installed_models
from kcode.errors import KcodeError
from kcode.paths import find_paths
from kcode.settings import load_settings

State = Literal["ok", "missing", "broken"]
MARKS: dict[State, str] = {"ok": "ok     ", "missing": "missing", "broken": "broken "}
CPU_FEATURES = ("avx2", "fma", "f16c", "avx512f", "avx512_vnni", "amx_int8", "amx_bf16")
PROBE_TIMEOUT_S = 120
# In a process of its own: torch stays out of kcode, and a crash while loading a library is a finding, not the end.
KERNEL_PROBE = """
import dataclasses, json, torch
from kcode_backend.cuda import launching
from kcode_backend.kernels import native
report = dataclasses.asdict(native.describe())
report["library_path"] = str(report["library_path"] or "")
print(json.dumps({**report, "torch": torch.__version__, "cuda": launching.unavailable() or ""}))
"""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line. `cost` says what goes without it, and the remedy; empty when all is well."""

    name: str
    state: State
    detail: str
    cost: str = ""


def examine_cpu() -> Finding:
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return Finding("cpu", "ok", f"{platform.machine()}, {os.cpu_count()} logical cores")
    entries = dict(line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    values = {key.strip(): value.strip() for key, value in entries.items()}
    flags = set((values.get("flags") or values.get("Features") or "").split())
    found = [feature for feature in CPU_FEATURES if feature in flags]
    usable = len(os.sched_getaffinity(0))
    name = values.get("model name", platform.machine())
    detail = f"{name}, {usable} logical cores usable, {', '.join(found) or 'no vector features'}"
    if platform.machine() == "x86_64" and "avx2" not in flags:
        return Finding("cpu", "missing", detail, "without AVX2 the portable kernels run, several times slower")
    return Finding("cpu", "ok", detail)


def examine_memory() -> Finding:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return Finding("memory", "ok", "unknown on this system")
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if len(line.split()) >= 2}
    total, free = sizes.get("MemTotal", 0), sizes.get("MemAvailable", 0)
    detail = f"{_gigabytes(total)} GB, {_gigabytes(free)} GB available"
    if free < 3 << 30:
        return Finding("memory", "missing", detail, "the default model wants about 2.5 GB; with less the machine swaps")
    return Finding("memory", "ok", detail)


def examine_gpu() -> Finding:
    program = shutil.which("nvidia-smi")
    cost = "models run on the CPU; fine for the small default, slow for anything above 7B"
    if program is None:
        return Finding("gpu", "missing", "no NVIDIA GPU found (there is no nvidia-smi)", cost)
    try:
        query = [program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("gpu", "broken", f"nvidia-smi does not run: {error}", cost)
    if done.returncode != 0 or not done.stdout.strip():
        said = (done.stdout + done.stderr).strip().splitlines() or [f"exit code {done.returncode}"]
        return Finding("gpu", "broken", f"nvidia-smi: {said[0]}", cost)
    return Finding("gpu", "ok", "; ".join(done.stdout.strip().splitlines()), "the engine does not use it yet")


def examine_sandbox() -> Finding:
    from kcode_sandbox.detect import probe

    report = probe()
    if report.works:
        return Finding("sandbox", "ok", report.detail)
    return Finding(
        "sandbox", "broken", report.detail, "kcode refuses to work; the only way without is --sandbox danger-full-access"
    )


def examine_layers() -> Finding:
    """What the sandbox can be built with here; what is missing in it is no fault as long as one works."""
    from kcode_sandbox.machine import machine_means

    means = machine_means()
    missing = "; ".join(f"{one.name}: {one.detail}" for one in means if not one.works)
    return Finding(
        "layers",
        "ok" if not missing else "missing",
        "; ".join(f"{one.name}: {one.detail}" for one in means if one.works),
        missing,
    )


def examine_programs() -> list[Finding]:
    wanted = {
        "git": "no checkpoints: no undo, no diff of the result",
        "bash": "the bash tool does not work",
    }
    findings: list[Finding] = []
    for name, cost in wanted.items():
        place = shutil.which(name)
        findings.append(Finding(name, "ok", place) if place else Finding(name, "missing", f"no {name} on the PATH", cost))
    return findings


def examine_engine() -> list[Finding]:
    """The compiler, torch and the kernels, as the engine's own process sees them."""
    try:
        # Without -P it would import from the folder at hand, which may be anybody's repository.
        done = subprocess.run(
            [sys.executable, "-P", "-c", KERNEL_PROBE], capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return [Finding("engine", "broken", f"its probe took longer than {PROBE_TIMEOUT_S} s", "no local models")]
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        cost = "no local models, only servers with --base-url; install with: pip install 'kcode-agent[local]'"
        engine = Finding("engine", "missing" if "No module named" in said[-1] else "broken", said[-1], cost)
        return [engine, examine_compiler(has_kernels=_has_bundled_kernels())]
    report = json.loads(done.stdout.strip().splitlines()[-1])
    findings = [Finding("engine", "ok", f"torch {report['torch']}"), examine_cuda(report["cuda"])]
    has_kernels = report["isa"] != "reference"
    findings.append(examine_compiler(has_kernels=has_kernels))
    if has_kernels:
        detail = f"{report['isa']} ({report['reason']}): {report['library_path']}; AMX {report['amx']}"
        findings.append(Finding("kernels", "ok", detail))
    else:
        findings.append(Finding("kernels", "missing", report["reason"], "answers come in minutes instead of seconds"))
    return findings


def examine_cuda(missing: str) -> Finding:
    """missing: the engine's own sentence; empty when its CUDA kernels can run."""
    if missing:
        return Finding("cuda", "missing", missing, "needed by nothing yet: the engine computes on the CPU")
    return Finding("cuda", "ok", "the kernels for NVIDIA GPUs can be compiled and run; the engine does not use them yet")


def examine_compiler(*, has_kernels: bool) -> Finding:
    """`has_kernels`: the engine's kernels are compiled already."""
    from kcode_backend.kernels.build import find_compiler

    compiler = find_compiler()
    if compiler is not None:
        return Finding("compiler", "ok", compiler)
    cost = (
        "the CPU kernels cannot be compiled here, and without them the engine is hundreds of times slower; install g++ or clang"
    )
    return Finding("compiler", "missing", "no C++ compiler (c++, g++ or clang++)", "" if has_kernels else cost)


def _has_bundled_kernels() -> bool:
    spec = find_spec("kcode_backend.kernels")
    places = list(spec.submodule_search_locations or []) if spec is not None else []
    return any(any(Path(place).glob("_native-*.so")) for place in places)


def examine_models() -> Finding:
    paths = find_paths()
    found = installed_models(paths.models)
    if not found:
        cost = "nothing can answer until one is there: kcode models pull, or a server with --base-url"
        return Finding("models", "missing", f"none in {paths.models}", cost)
    return Finding("models", "ok", f"{', '.join(found)} in {paths.models}")


def examine_config() -> Finding:
    file = find_paths().config_file
    try:
        load_settings(file, os.environ, {})
    except KcodeError as error:
        return Finding("config", "broken", str(error), "kcode does not start until it is right")
    return Finding("config", "ok", str(file) if file.is_file() else f"defaults (there is no {file})")


def examine() -> list[Finding]:
    """Everything, in the order of the output. Takes some seconds: a sandbox is started and the engine's libraries are loaded."""
    findings = [Finding("kcode", "ok", f"{__version__}, Python {platform.python_version()}, {platform.platform()}")]
    single: tuple[Callable[[], Finding], ...] = (
        examine_config,
        examine_cpu,
        examine_memory,
        examine_gpu,
        examine_sandbox,
        examine_layers,
    )
    findings += [examination() for examination in single]
    return [*findings, *examine_programs(), *examine_engine(), examine_models()]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON document instead of lines.")
def command(as_json: bool) -> int:
    """Say what this machine offers and what is missing. Ends with 1 when something is broken."""
    findings = examine()
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            click.echo(f"{MARKS[finding.state]}  {finding.name:<9} {finding.detail}")
            if finding.cost:
                click.echo(f"{'':<19} {finding.cost}")
    return 1 if any(finding.state == "broken" for finding in findings) else 0


def _gigabytes(size: int) -> str:
    return f"{size / (1 << 30):.1f}"
