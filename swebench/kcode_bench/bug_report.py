"""What a run over the development set came to: totals for a program, a table for a person."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median

from pydantic import TypeAdapter

from kcode.errors import StartError
from kcode_bench.bug_run import Result

RESULT = TypeAdapter(Result)


def read_results(folder: Path) -> dict[str, Result]:
    """The last line of each id; a half-written last line (a killed run) is dropped."""
    path = folder / "results.jsonl"
    results: dict[str, Result] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else [], 1):
        if not line.endswith("\n"):
            break
        try:
            result = RESULT.validate_json(line)
        except ValueError as error:
            raise StartError(f"{path}:{number} is not a result line; mend it or choose another --out") from error
        results[result.id] = result
    return results


def append_result(folder: Path, result: Result) -> None:
    """One line, on disk before this returns; starts a new line after a half-written one."""
    path = folder / "results.jsonl"
    torn = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
    if torn:
        path.write_bytes(path.read_bytes().rpartition(b"\n")[0] + b"\n")
    with path.open("a", encoding="utf-8") as lines:
        lines.write(result.line())


def totals(results: Sequence[Result]) -> dict[str, str | int | float]:
    """Over the finished ones; errors are counted apart and are in no average."""
    done = [result for result in results if result.outcome == "done"]
    return {
        "resolved": sum(result.resolved for result in done),
        "total": len(done),
        "median_s": round(median(result.seconds for result in done), 1) if done else 0.0,
        "mean_attempts": round(fmean(result.attempts for result in done), 2) if done else 0.0,
        "model": "+".join(sorted({result.model for result in results})),
        "commit": "+".join(sorted({result.commit for result in results})),
        "split": "+".join(sorted({result.split for result in results})),
        "first_attempt": sum(result.resolved and result.attempts == 1 for result in done),
        "mean_s": round(fmean(result.seconds for result in done), 1) if done else 0.0,
        "mean_prompt_tokens": round(fmean(result.prompt_tokens for result in done)) if done else 0,
        "mean_cached_tokens": round(fmean(result.cached_tokens for result in done)) if done else 0,
        "mean_completion_tokens": round(fmean(result.completion_tokens for result in done)) if done else 0,
        "errors": len(results) - len(done),
    }


def totals_line(results: Sequence[Result]) -> str:
    return json.dumps(totals(results))


def row(name: str, results: Sequence[Result]) -> str:
    done = [result for result in results if result.outcome == "done"]
    if not done:
        return f"{name:18} {0:4} / {0:<4} {'':5} errors {len(results)}"
    resolved = sum(result.resolved for result in done)
    return (
        f"{name:18} {resolved:4} / {len(done):<4} {resolved / len(done):5.0%} {median(result.seconds for result in done):8.1f} s"
        f" {fmean(result.attempts for result in done):8.2f} {fmean(result.completion_tokens for result in done):10.0f}"
    )


def table(results: Sequence[Result]) -> str:
    """By kind of mistake, worst first, then the total and the ids that are not resolved."""
    kinds: dict[str, list[Result]] = {}
    for result in results:
        kinds.setdefault(result.kind, []).append(result)
    share = {kind: sum(item.resolved for item in items) / len(items) for kind, items in kinds.items()}
    lines = [f"{'kind':18} {'resolved':>11} {'':5} {'median':>10} {'attempts':>8} {'tokens out':>10}"]
    lines += [row(kind, kinds[kind]) for kind in sorted(kinds, key=lambda kind: (share[kind], kind))]
    lines.append(row("all", results))
    left = [
        f"{result.id} ({result.kind}, {result.status}, {result.tests_failed}/{result.tests} fail)"
        for result in results
        if not result.resolved
    ]
    return "\n".join([*lines, *(["not resolved:", *(f"  {item}" for item in left)] if left else [])])
