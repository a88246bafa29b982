"""`python -m kcode_bench.small_bugs`: kcode on the development set of one-file bugs.

Progress and tables go to stderr; the last line of stdout is one JSON object with the totals. A run is resumed by starting
it again with the same --out: finished bugs are not run twice, errors are. Exit codes: 0 all bugs were judged, 1 could not
start, 2 some ended in an error of kcode or its model and are not judged.
"""

from __future__ import annotations

import difflib
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from kcode.errors import KcodeError, StartError
from kcode_bench.bug_report import append_result, read_results, table, totals, totals_line
from kcode_bench.bug_run import Result, Terms, solve
from kcode_bench.bug_set import MANIFEST, VERIFY_LIMIT_S, Bug, Entry, build, load, read_manifest, run_project, write_manifest
from kcode_bench.bug_tests import test_file
from kcode_sandbox.policy import Profile

MAX_ERRORS_IN_A_ROW = 3
INCOMPLETE = 2
SANDBOXES: tuple[Profile, ...] = ("workspace-write", "danger-full-access")


def say(text: str) -> None:
    click.echo(text, err=True)


def commit_name() -> str:
    """Short hash of this checkout, with -dirty when tracked files differ from it; "unknown" outside of git."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() or "unknown"


def select(entries: Sequence[Entry], split: str, ids: str | None, limit: int | None) -> list[Entry]:
    """In the order of the manifest, which is by hash: the first N are a fair sample."""
    if ids:
        wanted = [item for item in re.split(r"[\s,]+", ids) if item]
        known = {entry.id: entry for entry in entries}
        for item in wanted:
            if item not in known:
                near = difflib.get_close_matches(item, known, n=1, cutoff=0.3)
                raise StartError(f"no bug {item!r} in {MANIFEST.name}" + (f"; did you mean {near[0]}?" if near else ""))
        return [known[item] for item in wanted][:limit]
    return [entry for entry in entries if split in ("all", entry.split)][:limit]


def progress_line(number: int, count: int, result: Result, results: Sequence[Result]) -> str:
    so_far = totals(results)
    verdict = "resolved" if result.resolved else "ERROR" if result.outcome == "error" else "not resolved"
    return (
        f"[{number}/{count}] {result.id} ({result.kind}): {verdict}, {result.status},"
        f" attempts {result.attempts}, {result.seconds:.0f} s"
        f" | so far {so_far['resolved']}/{so_far['total']}, median {so_far['median_s']} s"
    )


def run_all(entries: Sequence[Entry], terms: Terms, out: Path) -> list[Result]:
    """Run what is not finished yet; stops early after several errors in a row. Raises StartError when kcode does not start."""
    out.mkdir(parents=True, exist_ok=True)
    finished = {id: result for id, result in read_results(out).items() if result.outcome == "done"}
    commit = commit_name()
    wanted = terms.model or "default"
    others = {result.requested_model for result in finished.values()} - {wanted}
    if others:
        raise StartError(f"{out} holds results of the model {', '.join(sorted(others))}, not {wanted}; choose another --out")
    results = {entry.id: finished[entry.id] for entry in entries if entry.id in finished}
    if results:
        say(f"{len(results)} of {len(entries)} bugs are finished in {out}; their results are kept")
    errors = 0
    for number, entry in enumerate(entries, 1):
        if entry.id in results:
            continue
        result = solve(load(entry), terms, out / entry.id, commit)
        append_result(out, result)
        results[entry.id] = result
        say(progress_line(number, len(entries), result, list(results.values())))
        errors = errors + 1 if result.outcome == "error" else 0
        if errors == MAX_ERRORS_IN_A_ROW:
            where = out / entry.id / "kcode.log"
            say(f"stopped: {errors} errors in a row, last: {result.reason}; see {where}, then start again to go on")
            break
    return list(results.values())


def show(bug: Bug, gold: bool) -> str:
    """The repository as the model sees it and what its tests print; the fix only with `gold`."""
    name = bug.problem.entry_point
    entry = bug.entry
    parts = [
        f"{entry.id} · {entry.kind} · {entry.split} · {entry.failed} of {entry.failed + entry.passed} tests fail",
        f"--- {name}.py\n{bug.source}",
        f"--- test_{name}.py\n{test_file(bug.problem)}",
        f"--- python -m unittest\n{run_project(bug.problem, bug.source, VERIFY_LIMIT_S).output}",
    ]
    if gold:
        lines = difflib.unified_diff(
            bug.source.splitlines(True), bug.problem.source.splitlines(True), f"a/{name}.py", f"b/{name}.py"
        )
        parts.append("--- fix\n" + "".join(lines))
    return "\n".join(parts)


def default_folder(model: str | None) -> Path:
    return Path("out", "small_bugs", re.sub(r"[^\w.-]+", "-", f"{commit_name()}-{model or 'default'}"))


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--split",
    type=click.Choice(["tune", "held", "all"]),
    default="tune",
    show_default=True,
    help="Improve kcode on tune; report held.",
)
@click.option("--limit", type=click.IntRange(min=1), help="At most this many bugs.")
@click.option("--ids", help="These bugs instead of a split, separated by commas.")
@click.option("--model", "-m", help="Passed to kcode.")
@click.option("--base-url", help="Passed to kcode: an OpenAI-style server.")
@click.option(
    "--attempts", type=click.IntRange(min=1), default=3, show_default=True, help="A fix in a later attempt does not count."
)
@click.option("--whole", type=click.IntRange(min=1), default=1, help="Passed to kcode as --attempts: whole attempts, in copies.")
@click.option("--seed", type=int, help="Passed to kcode.")
@click.option(
    "--sandbox", type=click.Choice(SANDBOXES), default=SANDBOXES[0], show_default=True, help="Of kcode and of the judge."
)
@click.option("--time-limit", type=click.FloatRange(min=1), default=300.0, show_default=True, help="Seconds per bug.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Results; default out/small_bugs/COMMIT-MODEL.")
@click.option("--kcode", default=shlex.join([sys.executable, "-m", "kcode"]), help="The command to measure.")
@click.option(
    "--report", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Only print the table of these results."
)
@click.option("--show", "shown", metavar="ID", help="Only print this bug and its failing tests.")
@click.option("--gold", is_flag=True, help="With --show: the fix as well.")
@click.option("--build", "rebuild", is_flag=True, help="Only choose and verify the bugs again and rewrite the list.")
def main(
    split: str,
    limit: int | None,
    ids: str | None,
    model: str | None,
    base_url: str | None,
    attempts: int,
    whole: int,
    seed: int | None,
    sandbox: Profile,
    time_limit: float,
    out: Path | None,
    kcode: str,
    report: Path | None,
    shown: str | None,
    gold: bool,
    rebuild: bool,
) -> None:
    """Run kcode on small repositories that each have one bug, and count what it fixes."""
    # Ended by a supervisor as by Ctrl-C: kcode is stopped with us.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if rebuild:
            write_manifest(MANIFEST, build(say))
        elif shown:
            click.echo(show(load(select(read_manifest(), "all", shown, 1)[0]), gold))
        elif report:
            results = list(read_results(report).values())
            say(table(results))
            click.echo(totals_line(results))
        else:
            terms = Terms(tuple(shlex.split(kcode)), model, base_url, seed, sandbox, attempts, time_limit, whole)
            results = run_all(select(read_manifest(), split, ids, limit), terms, (out or default_folder(model)).absolute())
            say(table(results))
            click.echo(totals_line(results))
            if any(result.outcome == "error" for result in results):
                sys.exit(INCOMPLETE)
    except KcodeError as error:
        say(f"error: {error}")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
