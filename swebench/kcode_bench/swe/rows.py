"""The rows of a data set in the form of SWE-bench, from a file of JSON, JSON lines or parquet."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from kcode.errors import StartError

SAFE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,199}")


class Row(BaseModel):
    """One task. What only newer data sets say is empty when it is missing; further columns are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    repo: str = Field(pattern=r"^[^/\s]+/[^/\s]+$")
    instance_id: str
    base_commit: str = Field(pattern=r"^[0-9a-fA-F]{40}([0-9a-fA-F]{24})?$")
    patch: str = ""
    test_patch: str = Field(min_length=1)
    problem_statement: str = Field(min_length=1)
    version: str = ""
    created_at: str = ""
    FAIL_TO_PASS: tuple[str, ...] = Field(min_length=1)
    PASS_TO_PASS: tuple[str, ...] = ()
    eval_script: str = ""
    log_parser: str = ""
    eval_type: Literal["pass_and_fail", "fail_only"] = "pass_and_fail"

    @field_validator("FAIL_TO_PASS", "PASS_TO_PASS", mode="before")
    @classmethod
    def _names(cls, value: object) -> object:
        """A list, or a list written as JSON text."""
        return json.loads(value) if isinstance(value, str) else value

    @field_validator("patch", "version", "created_at", "eval_script", "log_parser", mode="before")
    @classmethod
    def _text(cls, value: object) -> object:
        return "" if value is None else str(value)

    @field_validator("eval_type", mode="before")
    @classmethod
    def _kind(cls, value: object) -> object:
        return value or "pass_and_fail"

    @field_validator("instance_id")
    @classmethod
    def _folder_name(cls, value: str) -> str:
        if not SAFE_ID.fullmatch(value):
            raise ValueError("it names a folder, so it may hold letters, digits and _.+- only")
        return value


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used, `number` counted from 1, and why in one line."""

    number: int
    name: str
    reason: str

    def __str__(self) -> str:
        return f"row {self.number} ({self.name}): {self.reason}"


@dataclass(frozen=True, slots=True)
class Rows:
    good: tuple[Row, ...]
    bad: tuple[BadRow, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """Which rows are wanted, applied in this order: ids, `pattern` searched in the id, the slice, the limit."""

    ids: tuple[str, ...] = ()
    pattern: str = ""
    part: str = ""
    limit: int | None = None


def read_rows(file: Path) -> Rows:
    """Raises StartError for a file that cannot be read as a whole; a bad row is returned as such."""
    good: dict[str, Row] = {}
    bad: list[BadRow] = []
    for number, item in enumerate(_items(file), 1):
        name = str(item.get("instance_id", "no instance_id")) if isinstance(item, dict) else "no object"
        if isinstance(item, ValueError):
            bad.append(BadRow(number, "no JSON", str(item)))
            continue
        try:
            row = Row.model_validate(item)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(str(part) for part in first["loc"]) or "row"
            bad.append(BadRow(number, name, f"{place}: {first['msg']}"))
            continue
        if row.instance_id in good:
            bad.append(BadRow(number, name, "an earlier row has the same instance_id"))
            continue
        good[row.instance_id] = row
    return Rows(tuple(good.values()), tuple(bad))


def _items(file: Path) -> Iterator[object]:
    """One object per row; a line that is no JSON comes as the ValueError that says so."""
    if file.suffix == ".parquet":
        yield from _parquet(file)
        return
    if file.suffix not in {".json", ".jsonl"}:
        raise StartError(f"--dataset {file}: a data set is a .json, .jsonl or .parquet file")
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise StartError(f"--dataset {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise StartError(f"--dataset {file} is not UTF-8 text (byte {error.start})") from error
    if file.suffix == ".json":
        yield from _json(file, text)
        return
    # Not splitlines: a row may hold any other kind of line end within its text.
    for line in text.split("\n"):
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError as error:
                yield error


def _json(file: Path, text: str) -> Iterable[object]:
    try:
        document: object = json.loads(text)
    except ValueError as error:
        raise StartError(f"--dataset {file} is not JSON: {error}") from error
    if not isinstance(document, list):
        raise StartError(f"--dataset {file}: it holds {type(document).__name__}, a list of rows is expected")
    return document


def _parquet(file: Path) -> Iterable[object]:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise StartError(f"--dataset {file}: parquet needs pyarrow; pip install 'kcode-agent[eval]'") from error
    try:
        rows: list[object] = parquet.read_table(file).to_pylist()
    except (OSError, ValueError) as error:
        raise StartError(f"--dataset {file} cannot be read as parquet: {' '.join(str(error).split())}") from error
    return rows


def choose(rows: Iterable[Row], choice: Choice) -> tuple[Row, ...]:
    """Raises StartError for an id that is not there, a pattern or a slice that is none, and when nothing is left."""
    chosen = list(rows)
    if choice.ids:
        known = {row.instance_id: row for row in chosen}
        missing = [name for name in choice.ids if name not in known]
        if missing:
            raise StartError(f"--ids {missing[0]}: no good row of the data set has this instance_id")
        chosen = [known[name] for name in dict.fromkeys(choice.ids)]
    if choice.pattern:
        try:
            pattern = re.compile(choice.pattern)
        except re.error as error:
            raise StartError(f"--filter {choice.pattern!r} is no regular expression: {error}") from error
        chosen = [row for row in chosen if pattern.search(row.instance_id)]
    if choice.part:
        match = re.fullmatch(r"(-?\d*):(-?\d*)", choice.part)
        if match is None:
            raise StartError(f"--slice {choice.part!r}: write it as START:END, either may be left out")
        start, end = (int(text) if text.strip("-") else None for text in match.groups())
        chosen = chosen[start:end]
    chosen = chosen[: choice.limit]
    if not chosen:
        raise StartError("no row is left; see --ids, --filter, --slice and --limit")
    return tuple(chosen)
