"""The page about a run: figures, plots, ways to traces, and names that try to be more than text."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest

from kcode_bench.swe.charts import MAX_BINS, Point, histogram, nice_step
from kcode_bench.swe.page import write_page
from kcode_bench.swe.results import Folder, State
from tests.swebench.conftest import INSTANCE, Bench
from tests.swebench.test_comparison import write
from tests.swebench.test_swebench import FINISH, FIX

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"
TESTS = {"success": list[str](), "failure": list[str]()}
VOID = {"meta", "rect"}


class Page(HTMLParser):
    """The tags, the ways out and the text of a page; its tags must be closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.ways, self.open = set[str](), list[str](), list[str]()
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.ways += [value or "" for name, value in attrs if name in {"href", "src"} or name.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def plots(text: str) -> dict[str, ElementTree.Element]:
    found = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]
    return {each.attrib["aria-label"]: each for each in found}


def words(plot: ElementTree.Element) -> list[str]:
    return [each.text or "" for each in plot.iter("text")]


def graded(folder: Path, name: str, *, fixed: bool, kept: bool, **figures: object) -> None:
    """An instance whose tests ran."""
    state = {"instance_id": name, "work": "w", "outcome": "done", "resolved": fixed and kept, "turns": 3, **figures}
    Folder(folder).write_state(State.model_validate(state))
    failing = {"success": [], "failure": ["t"]}
    tests = {"FAIL_TO_PASS": TESTS if fixed else failing, "PASS_TO_PASS": TESTS if kept else failing}
    (folder / name / "report.json").write_text(json.dumps({name: {"tests_status": tests}}))


def test_plots_tell_what_the_states_say(tmp_path: Path) -> None:
    run = tmp_path / "run"
    graded(run, "acme__calc-1", fixed=True, kept=True, prompt_tokens=1000, cached_tokens=900, completion_tokens=10, seconds=5.0)
    graded(run, "acme__calc-2", fixed=False, kept=True, prompt_tokens=3000, cached_tokens=0, completion_tokens=10, seconds=50.0)
    graded(run, "acme__other-one-3", fixed=False, kept=False)
    graded(run, "acme__other-one-4", fixed=True, kept=False)
    write(run, {"acme__calc-5": "e", "acme__calc-6": "i"})
    Folder(run).write_state(State(instance_id="acme__calc-7", work="w", outcome="done", reason="patch_apply_failed"))
    text = write_page(Folder(run), Folder(run).known()).read_text()
    assert "1 resolved of 5 locally valid instances" in text
    found = plots(text)
    assert list(found) == ["Resolved by repository", "Failure kinds", "Tokens per attempt", "Time per attempt", "Cache use"]
    assert words(found["Resolved by repository"]) == ["acme/calc", "1 of 3", "acme/other-one", "0 of 2"]
    kinds = words(found["Failure kinds"])
    assert sorted(zip(kinds[::2], kinds[1::2], strict=True)) == [
        ("bug not fixed", "1"),
        ("bug not fixed, other tests broken", "1"),
        ("cannot be graded here", "1"),
        ("error of kcode or the model", "1"),
        ("other tests broken", "1"),
        ("patch does not apply", "1"),
    ]
    assert "22.5% of all prompt tokens came from the cache" in words(found["Cache use"])[-1]


def test_bars_are_to_scale(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for number in range(6):
        graded(run, f"a__big-{number}", fixed=number < 2, kept=True)
    graded(run, "a__small-1", fixed=True, kept=True)
    plot = plots(write_page(Folder(run), Folder(run).known()).read_text())["Resolved by repository"]
    widths = [(box.attrib["class"], float(box.attrib["width"])) for box in plot.iter("rect")]
    unit = widths[2][1]
    assert widths == [("good", pytest.approx(2 * unit, abs=0.2)), ("rest", pytest.approx(4 * unit, abs=0.2)), ("good", unit)]


@pytest.mark.parametrize("most", [0, 0.3, 1, 9.99, 10, 11, 12, 59, 60, 100, 1234, 99999, 1e7])
def test_a_histogram_has_a_place_for_every_value(most: float) -> None:
    values = [most * part / 40 for part in range(41)]
    plot = ElementTree.fromstring(re.findall(r"<svg.*</svg>", histogram("t", [Point(value, False) for value in values], "s"))[0])
    counted = [int(box.text or "") for box in plot.iter("text") if float(box.attrib["y"]) < 140]
    assert sum(counted) == len(values)
    assert most / nice_step(most) < MAX_BINS


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    run = tmp_path / HOSTILE.replace("/", "")
    graded(run, "a__b-1", fixed=True, kept=True, reason=HOSTILE, agent_status=HOSTILE)
    state = {"instance_id": HOSTILE, "work": "w", "outcome": "done", "reason": f"\udcff{HOSTILE}"}
    odd = run / "odd"
    odd.mkdir()
    (odd / "state.json").write_text(json.dumps(state))
    outside = run / "outside"
    outside.mkdir()
    (outside / "state.json").write_text(json.dumps(state | {"instance_id": "../elsewhere"}))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "patch.diff").write_text("secret")
    text = write_page(Folder(run), Folder(run).known()).read_text()
    page = Page(text)
    assert not page.tags & {"script", "img", "iframe", "link"}
    assert page.ways == ["a__b-1/report.json"]
    assert "default-src 'none'" in text
    assert "&lt;script&gt;" in text


@pytest.mark.slow
def test_a_run_has_a_page_with_ways_to_its_traces(bench: Bench) -> None:
    done = bench.start("run", "--out", "out", "-m", bench.script({"calls": [FIX]}, FINISH), "--no-check-gold", "--attempts", "2")
    assert done.returncode == 0, done.stderr
    file = bench.folder / "out" / "report.html"
    assert f"a page about it: {file}" in done.stderr
    page = Page(file.read_text())
    assert [way for way in page.ways if way.endswith("trace.html")] == [
        f"{INSTANCE}/trace.html",
        f"attempts/2/{INSTANCE}/trace.html",
    ]
    assert all((file.parent / unquote(way)).is_file() for way in page.ways)
    assert "str_replace" in (file.parent / INSTANCE / "trace.html").read_text()
    before = file.read_text()
    file.unlink()
    done = bench.start("report", "out", "--html")
    assert (done.returncode, file.read_text()) == (0, before), done.stderr
