"""`kcode swebench export`: what others read of a run, in a folder by itself."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import click

from kcode.errors import StartError
from kcode.export import Format, export
from kcode.transcript import active_records, read_records
from kcode_bench.swe.environment import write_whole
from kcode_bench.swe.results import Folder, counted, official_report, results_in

Part = Literal["preds", "report", "atif"]
TRAJECTORY = "traj.json"


@dataclass(frozen=True, slots=True)
class Exported:
    predictions: int
    report: Path | None
    trajectories: int
    without_session: tuple[str, ...]

    def document(self) -> dict[str, object]:
        report = str(self.report) if self.report else None
        return {
            "predictions": self.predictions,
            "report": report,
            "trajectories": self.trajectories,
            "without_session": list(self.without_session),
        }


def transcript_of(folder: Path) -> Path | None:
    """Of the agent's session in an instance's folder; None where kcode did not work on it or never began."""
    file = folder / "session" / "transcript.jsonl"
    return file if file.is_file() else None


def write_trace(transcript: Path, file: Path, style: Format) -> None:
    """The session as a document of its own. Raises StartError when the transcript is damaged."""
    text = export(active_records(read_records(transcript)), style)
    # A lone surrogate, as of a file name that is no UTF-8, can stand in a transcript but in no file of text.
    write_whole(file, text.encode("utf-8", errors="backslashreplace").decode())


def export_results(results: Folder, to: Path, parts: tuple[Part, ...], run_id: str) -> Exported:
    """Write `parts` of a run into `to`. The official report is over the known instances that can be graded."""
    predictions, known = results.predictions(), results.known()
    to.mkdir(parents=True, exist_ok=True)
    report = None
    if "preds" in parts:
        Folder(to).write_predictions(predictions)
    if "report" in parts:
        name = next((each.model_name_or_path for each in predictions.values()), "unknown")
        report = to / report_name(name, run_id)
        document = official_report(results, counted(results, known), predictions)
        write_whole(report, json.dumps(document, indent=4) + "\n")
    transcripts = {name: transcript_of(results.path / name) for name in known} if "atif" in parts else {}
    for name, transcript in transcripts.items():
        if transcript is not None:
            write_trace(transcript, Folder(to).instance(name) / TRAJECTORY, "atif")
    missing = tuple(name for name, transcript in transcripts.items() if transcript is None)
    return Exported(len(predictions) if "preds" in parts else 0, report, len(transcripts) - len(missing), missing)


def report_name(model: str, run_id: str) -> str:
    """As the official harness calls its report. Raises StartError for a run id that is no part of a file's name."""
    if "/" in run_id or not run_id.strip():
        raise StartError(f"--run-id {run_id!r}: it is part of a file's name, so it may not be empty nor hold a /")
    return f"{model.replace('/', '__')}.{run_id}.json"


@click.command("export")
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@click.argument("to", type=click.Path(path_type=Path), metavar="TO")
@click.option("--only", multiple=True, type=click.Choice(get_args(Part)), help="May be given several times; default: all.")
@click.option("--attempt", type=click.IntRange(min=1), default=1, show_default=True, metavar="N", help="Which attempt's results.")
@click.option("--run-id", default="run", show_default=True, help="Part of the report's name.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object as the last line.")
def export_command(folder: Path, to: Path, only: tuple[Part, ...], attempt: int, run_id: str, as_json: bool) -> int:
    """Write what others read of the run in DIR into the folder TO.

    preds.json and preds.jsonl, the official harness's report, and a trajectory in the ATIF format per instance.
    """
    results = results_in(folder)
    if attempt not in results.every():
        raise StartError(f"--attempt {attempt}: {folder} has {', '.join(map(str, results.every()))}")
    if to.exists() and not to.is_dir():
        raise StartError(f"{to}: it is not a folder")
    if to.resolve().is_relative_to(results.path):
        raise StartError(f"{to}: it lies in the results {folder}; name a folder outside")
    found = export_results(results.attempt(attempt), to.resolve(), only or get_args(Part), run_id)
    for name in found.without_session:
        click.echo(f"{name}: there is no session to export", err=True)
    if as_json:
        click.echo(json.dumps({"command": "export", "to": str(to.resolve()), **found.document()}, ensure_ascii=False))
    else:
        click.echo(
            f"{to}: {found.predictions} predictions, {found.trajectories} trajectories" + (", the report" if found.report else "")
        )
    return 0
