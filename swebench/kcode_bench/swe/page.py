"""A run as one page for any browser: figures, plots, and each attempt with the way to its trace. It loads and runs nothing."""

from __future__ import annotations

import html
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from kcode_bench.swe.charts import Bar, Point, bars, histogram
from kcode_bench.swe.environment import write_whole
from kcode_bench.swe.grading import APPLY_FAILED, TIMED_OUT
from kcode_bench.swe.results import Folder, State, pass_rates, summary

PAGE = "report.html"
TRACE = "trace.html"
FILES = (TRACE, "patch.diff", "test_output.txt", "report.json", "agent.log")
REPOSITORY = re.compile(r"(.+?)__(.+)-[^-]+")
WORDS = {APPLY_FAILED: "patch does not apply", TIMED_OUT: "tests ran out of time", "empty_patch": "no change was made"}
_STYLE = """
:root{color-scheme:light dark;--good:#1a7f37;--rest:#b35900;--line:#8884}
body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem}
figure{display:inline-block;vertical-align:top;width:min(35rem,100%);margin:0 0 1.5rem}figcaption{font-weight:600}
svg{width:100%}svg text{font:12px system-ui,sans-serif;fill:currentColor}
.good{fill:var(--good)}.rest{fill:var(--rest)}
table{border-collapse:collapse;font-size:13px;width:100%}
th,td{text-align:left;padding:.2rem .5rem;border-bottom:1px solid var(--line)}
th,td{overflow-wrap:anywhere}td.n{text-align:right;white-space:nowrap}
"""
# Whatever a name or a reason holds, a browser runs and fetches nothing.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


@dataclass(frozen=True, slots=True)
class Line:
    """One attempt at one instance. `place` is its folder, from the page's own."""

    state: State
    kind: str
    place: str
    files: tuple[str, ...]


def write_page(results: Folder, ids: Sequence[str]) -> Path:
    """report.html over `ids` in the folder of the results."""
    lines = [line for folder in results.every().values() for line in _lines(results, folder, set(ids))]
    attempts = {name: states for name, states in results.attempts().items() if name in set(ids)}
    file = results.path / PAGE
    write_whole(file, page(results.path.name, summary(results, ids), attempts, lines).encode(errors="backslashreplace").decode())
    return file


def _lines(results: Folder, folder: Folder, ids: set[str]) -> list[Line]:
    found: list[Line] = []
    for name, state in folder.states().items():
        if name not in ids:
            continue
        own = folder.path / name
        # A name that leads elsewhere gets no ways: it cannot be of this run.
        files = tuple(file for file in FILES if (own / file).is_file()) if own.parent == folder.path else ()
        found.append(Line(state, kind_of(state, own / "report.json"), own.relative_to(results.path).as_posix(), files))
    return found


def kind_of(state: State, report: Path) -> str:
    """Why an attempt did not resolve its instance, in words that can be counted; "resolved" when it did."""
    if state.resolved:
        return "resolved"
    if state.outcome == "environment_invalid":
        return "cannot be graded here"
    if state.outcome == "error":
        return "error of kcode or the model"
    failed = _failed(state.instance_id, report)
    if failed is None:
        return WORDS.get(state.reason, f"not graded: {state.reason}" if state.reason else "not graded")
    fixed, kept = failed
    return {(False, True): "bug not fixed", (True, False): "other tests broken"}.get(
        (fixed, kept), "bug not fixed, other tests broken"
    )


def _failed(instance_id: str, report: Path) -> tuple[bool, bool] | None:
    """Whether the bug's tests all passed, and whether the others did; None where nothing was graded."""
    try:
        tests = json.loads(report.read_bytes())[instance_id]["tests_status"]
        return not tests["FAIL_TO_PASS"]["failure"], not tests["PASS_TO_PASS"]["failure"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def repository_of(instance_id: str) -> str:
    match = REPOSITORY.fullmatch(instance_id)
    return f"{match[1]}/{match[2]}" if match else "other"


def page(name: str, figures: Mapping[str, object], attempts: Mapping[str, tuple[State, ...]], lines: Sequence[Line]) -> str:
    """The whole document."""
    title = html.escape(f"kcode swebench: {name}")
    counts = ", ".join(
        f"{figures[key]} {word}"
        for key, word in (
            ("environment_invalid", "cannot be graded here"),
            ("errors", "errors"),
            ("empty_patch", "without a change"),
            ("not_run", "not run"),
        )
    )
    rates = "".join(f"<li>pass@{k} {html.escape(str(rate))}</li>" for k, rate in pass_rates(attempts).items())
    body = [
        f"<h1>{title}</h1>",
        f"<p><strong>{figures['resolved']} resolved of {figures['locally_valid']} locally valid instances</strong> ({counts}). "
        "This is no SWE-bench score; figures in brackets are 95 % intervals.</p>",
        f"<ul>{rates}</ul>",
        '<p>In the plots <span style="color:var(--good)">■ resolved</span>, <span style="color:var(--rest)">■ not resolved</span>'
        "; each attempt counts once.</p>",
        *_plots(lines),
        _table(lines),
    ]
    head = f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{_POLICY}"><title>{title}</title>'
    inside = "\n".join(body)
    return f'<!doctype html><html lang="en"><head>{head}<style>{_STYLE}</style></head>\n<body>\n{inside}\n</body></html>\n'


def _plots(lines: Sequence[Line]) -> list[str]:
    graded = [line for line in lines if line.state.outcome == "done"]
    worked = [line for line in graded if line.state.turns]
    total, good = (Counter(repository_of(line.state.instance_id) for line in each) for each in (graded, _resolved(graded)))
    kinds = Counter(line.kind for line in lines if not line.state.resolved)
    prompt, cached = (
        sum(values) for values in ([line.state.prompt_tokens for line in worked], [line.state.cached_tokens for line in worked])
    )
    share = f"{cached / prompt:.1%} of all prompt tokens came from the cache" if prompt else "no prompt tokens"
    return [
        bars(
            "Resolved by repository",
            [Bar(name, good[name], count, f"{good[name]} of {count}") for name, count in total.most_common()],
        ),
        bars("Failure kinds", [Bar(kind, 0, count, str(count)) for kind, count in kinds.most_common()]),
        histogram(
            "Tokens per attempt",
            [Point(line.state.prompt_tokens + line.state.completion_tokens, line.state.resolved) for line in worked],
            "tokens, prompts and answers",
        ),
        histogram(
            "Time per attempt", [Point(line.state.seconds, line.state.resolved) for line in graded], "seconds, grading included"
        ),
        histogram(
            "Cache use",
            [
                Point(100 * line.state.cached_tokens / line.state.prompt_tokens, line.state.resolved)
                for line in worked
                if line.state.prompt_tokens
            ],
            f"% of an attempt's prompt tokens from the cache; {share}",
        ),
    ]


def _resolved(lines: Sequence[Line]) -> list[Line]:
    return [line for line in lines if line.state.resolved]


def _table(lines: Sequence[Line]) -> str:
    names = (
        "instance",
        "attempt",
        "seed",
        "result",
        "reason",
        "agent",
        "calls",
        "prompt",
        "cached",
        "answers",
        "seconds",
        "files",
    )
    rows = [_row(line) for line in sorted(lines, key=lambda line: (line.state.instance_id, line.state.attempt))]
    return (
        f"<table><thead><tr>{''.join(f'<th>{name}</th>' for name in names)}</tr></thead><tbody>\n{''.join(rows)}</tbody></table>"
    )


def _row(line: Line) -> str:
    state = line.state
    ways = " ".join(f'<a href="{html.escape(quote(f"{line.place}/{file}"))}">{file}</a>' for file in line.files)
    numbers = (state.turns, state.prompt_tokens, state.cached_tokens, state.completion_tokens, f"{state.seconds:.1f}")
    words = (
        state.instance_id,
        state.attempt,
        "" if state.seed is None else state.seed,
        line.kind,
        state.reason,
        state.agent_status,
    )
    cells = [f"<td>{html.escape(str(word))}</td>" for word in words] + [f'<td class="n">{number}</td>' for number in numbers]
    return f"<tr>{''.join(cells)}<td>{ways}</td></tr>\n"
