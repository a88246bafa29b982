"""`kcode swebench`: kcode on the tasks of a data set in the form of SWE-bench, and patches graded by the official rules."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import click

from kcode.errors import KcodeError, StartError
from kcode.paths import find_paths
from kcode_bench.options import with_options
from kcode_bench.swe.agent import Terms
from kcode_bench.swe.compare import compare
from kcode_bench.swe.environment import EnvironmentFailed, Kind, build, write_whole
from kcode_bench.swe.export import export_command, report_name
from kcode_bench.swe.gold import check_gold
from kcode_bench.swe.log_parsers import parser_named
from kcode_bench.swe.page import write_page
from kcode_bench.swe.results import (
    Folder,
    Prediction,
    counted,
    official_report,
    pass_rates,
    read_predictions,
    results_in,
    summary,
)
from kcode_bench.swe.rows import Choice, Row, choose, read_rows
from kcode_bench.swe.runs import Ground, Run, check_folder, work_through
from kcode_bench.swe.sources import check_source
from kcode_bench.swe.specs import load_specs, unknown_tables

NO_DOCKER = "--env docker: the official images are not driven yet; use bwrap, or the official harness on preds.json"
SEEDED = "https://github.com"

_ROWS = (
    click.option("--dataset", type=click.Path(path_type=Path), required=True, metavar="FILE", help="json, jsonl or parquet."),
    click.option("--ids", multiple=True, metavar="ID", help="Only these; may be given several times, or with commas."),
    click.option("--filter", "pattern", default="", metavar="REGEX", help="Only ids in which it is found."),
    click.option("--slice", "part", default="", metavar="A:B", help="Of what is left, as in Python."),
    click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Of what is left, the first N."),
)
_GROUND = (
    click.option("--repo-source", default=SEEDED, show_default=True, metavar="DIR|URL", help="Repositories as owner+name."),
    click.option("--specs", type=click.Path(path_type=Path), metavar="FILE", help="How repositories are installed and tested."),
    click.option("--env", "kind", type=click.Choice(["auto", "bwrap", "venv", "docker"]), default="auto", show_default=True),
    click.option(
        "--env-dir", type=click.Path(path_type=Path), metavar="DIR", help="Keep environments there; default: the cache."
    ),
    click.option("--test-limit", type=click.FloatRange(min=1), default=1800.0, show_default=True, metavar="S"),
    click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, metavar="N", help="Instances at a time."),
    click.option("--json", "as_json", is_flag=True, help="One JSON object as the last line."),
)


@click.group()
def command() -> None:
    """Tasks in the form of SWE-bench: check them, let kcode work on them, grade patches."""


command.add_command(export_command)


@command.command("check-gold")
@with_options(_ROWS)
@with_options(_GROUND)
def check_gold_command(
    dataset: Path,
    ids: tuple[str, ...],
    pattern: str,
    part: str,
    limit: int | None,
    repo_source: str,
    specs: Path | None,
    kind: str,
    env_dir: Path | None,
    test_limit: float,
    workers: int,
    as_json: bool,
) -> int:
    """Say of each instance whether it can be graded here: tests that fail before the known fix and pass after it.

    Ends with 0 when all can.
    """
    rows = _rows(dataset, Choice(_split(ids), pattern, part, limit))
    ground = _ground(repo_source, specs, kind, env_dir, test_limit, rows)
    found = [_gold(ground, row) for row in rows] if workers == 1 else _in_parallel(ground, rows, workers)
    instances = dict(zip((row.instance_id for row in rows), found, strict=True))
    counts = {name: sum(item["state"] == name for item in found) for name in ("valid", "environment_invalid", "error")}
    if as_json:
        document = {"command": "check-gold", "total": len(rows), **counts, "instances": instances}
        click.echo(json.dumps(document, ensure_ascii=False))
    else:
        click.echo(", ".join(f"{number} {name}" for name, number in counts.items()))
    return 0 if counts["valid"] == len(rows) else 3


def _in_parallel(ground: Ground, rows: tuple[Row, ...], workers: int) -> list[dict[str, object]]:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(max_workers=workers) as pool:
        return list(pool.map(lambda row: _gold(ground, row), rows))


def _gold(ground: Ground, row: Row) -> dict[str, object]:
    place, spec = ground.place(row), ground.specs.of(row)
    document: dict[str, object] = {"state": "error", "reason": "", "environment": {"kind": ground.kind}}
    try:
        with place.held():
            environment = build(place, row, spec, ground.source, ground.kind)
            document["environment"] = environment.summary()
            gold = check_gold(place, row, spec, environment, ground.test_limit_s)
        document |= {"state": gold.state, "reason": gold.reason}
    except EnvironmentFailed as error:
        document |= {"state": "environment_invalid", "reason": " ".join(str(error).split())}
    except KcodeError as error:
        document["reason"] = " ".join(str(error).split())
    document |= {"logs": str(place.folder)}
    _say(f"{row.instance_id} {document['state']}" + (f": {document['reason']}" if document["reason"] else ""))
    return document


@command.command("run")
@with_options(_ROWS)
@with_options(_GROUND)
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Results; a run goes on where it was.")
@click.option("--name", default="kcode", show_default=True, help="model_name_or_path of the predictions.")
@click.option("--run-id", default="run", show_default=True, help="Part of the report's name.")
@click.option("-m", "--model", metavar="NAME", help="As for kcode itself.")
@click.option("--base-url", metavar="URL", help="As for kcode itself.")
@click.option("--profile", metavar="NAME", help="As for kcode itself.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, metavar="N", help="Of the first attempt.")
@click.option(
    "--attempts",
    type=click.IntRange(1, 100),
    default=1,
    show_default=True,
    metavar="K",
    help="Independent attempts at each instance, each graded, for pass@k; the seed is one higher each time. (Not what `kcode -p` "
    "calls so: that chooses one of several by the tests it sees.)",
)
@click.option("--max-turns", type=click.IntRange(min=1), metavar="N", help="Model calls per instance.")
@click.option("--time-limit", type=click.FloatRange(min=1), default=1800.0, show_default=True, metavar="S", help="Per instance.")
@click.option("--no-check-gold", is_flag=True, help="Do not ask first whether an instance can be graded here.")
def run_command(
    dataset: Path,
    ids: tuple[str, ...],
    pattern: str,
    part: str,
    limit: int | None,
    repo_source: str,
    specs: Path | None,
    kind: str,
    env_dir: Path | None,
    test_limit: float,
    workers: int,
    as_json: bool,
    out: Path,
    name: str,
    run_id: str,
    model: str | None,
    base_url: str | None,
    profile: str | None,
    seed: int,
    attempts: int,
    max_turns: int | None,
    time_limit: float,
    no_check_gold: bool,
) -> int:
    """Let kcode work on each instance and grade what it leaves. Finished instances are not repeated, errors are.

    Ends with 0 when nothing went wrong, resolved or not.
    """
    rows = _rows(dataset, Choice(_split(ids), pattern, part, limit))
    ground = replace(_ground(repo_source, specs, kind, env_dir, test_limit, rows), check_gold=not no_check_gold)
    given = {"--model": model, "--base-url": base_url, "--profile": profile, "--max-turns": max_turns}
    options = tuple(word for flag, value in given.items() if value is not None for word in (flag, str(value)))
    runs: list[Run] = []
    for number in range(1, attempts + 1):
        folder, terms = check_folder(out).attempt(number), Terms(options, time_limit, seed + number - 1)
        runs.append(Run(ground, folder, name, terms, folder.predictions(), attempt=number))
    return _work(runs, rows, workers, run_id, "run", as_json)


@command.command("eval")
@with_options(_ROWS)
@with_options(_GROUND)
@click.option("--predictions", "--preds", type=click.Path(path_type=Path), required=True, metavar="FILE", help="json or jsonl.")
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Results; a run goes on where it was.")
@click.option("--run-id", default="eval", show_default=True, help="Part of the report's name.")
@click.option("--no-check-gold", is_flag=True, help="Do not ask first whether an instance can be graded here.")
def eval_command(
    dataset: Path,
    ids: tuple[str, ...],
    pattern: str,
    part: str,
    limit: int | None,
    repo_source: str,
    specs: Path | None,
    kind: str,
    env_dir: Path | None,
    test_limit: float,
    workers: int,
    as_json: bool,
    predictions: Path,
    out: Path,
    run_id: str,
    no_check_gold: bool,
) -> int:
    """Grade predictions of any agent. One whose patch changed since is graded anew."""
    rows = _rows(dataset, Choice(_split(ids), pattern, part, limit))
    ground = replace(_ground(repo_source, specs, kind, env_dir, test_limit, rows), check_gold=not no_check_gold)
    found = read_predictions(predictions)
    name = next(iter(found.values())).model_name_or_path if found else "unknown"
    run = Run(ground, check_folder(out), name, None, found)
    submitted = tuple(row for row in rows if row.instance_id in found)
    if not submitted:
        raise StartError(f"--predictions {predictions}: none of its instances is among the {len(rows)} chosen rows")
    run.folder.write_predictions(found)
    return _work([run], submitted, workers, run_id, "eval", as_json, rows)


@command.command("report")
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@click.argument("other", type=click.Path(path_type=Path), metavar="[OTHER]", required=False)
@click.option("--html", "as_page", is_flag=True, help="Write DIR/report.html again: figures, plots, ways to the traces.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object as the last line.")
def report_command(folder: Path, other: Path | None, as_page: bool, as_json: bool) -> int:
    """Say again how the instances of a run's DIR stand; with OTHER, which came out differently there, and if by chance."""
    results = results_in(folder)
    if as_page and other is not None:
        raise StartError("--html: the page is about one run; leave out the other")
    if as_page:
        _say(f"written: {write_page(results, results.known())}")
    if other is None:
        _tell(results, results.known(), summary(results, results.known()), "report", as_json)
        return 0
    found = compare(results.attempts(), results_in(other).attempts())
    if as_json:
        places = {"a": str(folder.resolve()), "b": str(other.resolve())}
        click.echo(json.dumps({"command": "report", **places, **found.document()}, ensure_ascii=False))
    else:
        click.echo(found.text())
    return 0


def _work(
    runs: list[Run], rows: tuple[Row, ...], workers: int, run_id: str, what: str, as_json: bool, all_rows: tuple[Row, ...] = ()
) -> int:
    """`runs` are the attempts; the first one's folder gets the summary over all."""
    report_name(runs[0].name, run_id)
    for parser in {runs[0].ground.specs.of(row).parser for row in rows}:
        parser_named(parser)
    work_through(runs, rows, workers, _say)
    ids = [row.instance_id for row in all_rows or rows]
    documents = [_write_reports(run.folder, ids, run.predictions, run.name, run_id) for run in runs]
    _say(f"a page about it: {write_page(runs[0].folder, ids)}")
    _tell(runs[0].folder, ids, documents[0], what, as_json)
    return 2 if any(document["errors"] for document in documents) else 0


def _write_reports(
    folder: Folder, ids: list[str], predictions: dict[str, Prediction], name: str, run_id: str
) -> dict[str, object]:
    """The official report over what is valid here, and kcode's own summary.json over all."""
    file = folder.path / report_name(name, run_id)
    write_whole(file, json.dumps(official_report(folder, counted(folder, ids), predictions), indent=4) + "\n")
    document = summary(folder, ids) | {"out": str(folder.path), "report": str(file)}
    write_whole(folder.path / "summary.json", json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    return document


def _tell(folder: Folder, ids: list[str], document: dict[str, object], what: str, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"command": what, **document}, ensure_ascii=False))
        return
    click.echo(
        f"{document['resolved']} resolved of {document['locally_valid']} locally valid instances ({document['total']} asked for, "
        f"{document['environment_invalid']} cannot be graded here, {document['errors']} errors, {document['not_run']} not run). "
        "This is no SWE-bench score: grade preds.json with the official images for one."
    )
    for k, rate in pass_rates({name: states for name, states in folder.attempts().items() if name in ids}).items():
        click.echo(f"pass@{k} {rate}")


def _rows(dataset: Path, choice: Choice) -> tuple[Row, ...]:
    rows = read_rows(dataset)
    for bad in rows.bad:
        _say(f"{dataset.name}: {bad}; left out")
    return choose(rows.good, choice)


def _split(ids: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for given in ids for name in given.replace(",", " ").split())


def _ground(
    repo_source: str, specs: Path | None, kind: str, env_dir: Path | None, test_limit_s: float, rows: tuple[Row, ...]
) -> Ground:
    if kind == "docker":
        raise StartError(NO_DOCKER)
    table = load_specs(specs)
    for name in unknown_tables(table, rows):
        _say(f"{name}: no spec names it; it is installed with `pip install -e .` and tested with pytest")
    # Never without walls unless that was asked for by name.
    chosen: Kind = "venv" if kind == "venv" else "bwrap"
    places = (env_dir or find_paths().cache / "swebench").resolve()
    if os.path.lexists(places) and not places.is_dir():
        raise StartError(f"--env-dir {places}: it is not a folder")
    return Ground(check_source(repo_source), table, chosen, places, test_limit_s)


def _say(line: str) -> None:
    click.echo(line, err=True)
