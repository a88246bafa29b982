"""How a repository is installed and tested: specs.toml, and files of the same form that the user names."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from importlib import resources
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kcode.errors import ConfigError
from kcode_bench.swe.log_parsers import PARSERS
from kcode_bench.swe.rows import Row

# Test data beside tests: no runner takes it as a test.
DATA_ENDINGS = (".json", ".png", "csv", ".txt", ".md", ".jpg", ".jpeg", ".pkl", ".yml", ".yaml", ".toml")
CHANGED = re.compile(r"^diff --git a/.* b/(.*)$", re.MULTILINE)
BETWEEN = re.compile(r"^: '>>>>> Start Test Output'\n(.*?)^: '>>>>> End Test Output'$", re.MULTILINE | re.DOTALL)
EXIT_CODE_LINE = re.compile(r"^SWEBENCH_TEST_EXIT_CODE=.*\n?", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Spec:
    """`names` says how `test` is told the test files: as paths, or as the modules that Django's runner wants."""

    python: str
    pins: tuple[str, ...]
    install: tuple[str, ...]
    test: str
    parser: str
    names: Literal["files", "django"]
    environment: tuple[tuple[str, str], ...] = ()
    system_site_packages: bool = False


class _Table(BaseModel):
    """One [[spec]]: for which rows, and what it says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    repos: tuple[str, ...] = Field(min_length=1)
    versions: tuple[str, ...] = ()
    python: str | None = Field(None, pattern=r"^3\.\d+$")
    pins: tuple[str, ...] | None = None
    install: tuple[str, ...] | None = None
    test: str | None = None
    parser: str | None = None
    names: Literal["files", "django"] | None = None
    environment: dict[str, str] | None = None
    system_site_packages: bool | None = None

    def counts_for(self, row: Row) -> bool:
        return bool({"*", row.repo} & set(self.repos)) and (not self.versions or row.version in self.versions)

    def over(self, spec: Spec) -> Spec:
        said = {field.name: getattr(self, field.name) for field in fields(Spec)}
        if self.environment is not None:
            said["environment"] = tuple(sorted(self.environment.items()))
        return replace(spec, **{name: value for name, value in said.items() if value is not None})


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    spec: tuple[_Table, ...]


@dataclass(frozen=True, slots=True)
class Specs:
    tables: tuple[_Table, ...]

    def of(self, row: Row) -> Spec:
        """The tables that count for the row, one over the other; what the row itself says of its tests comes last."""
        spec = Spec("3.9", (), (), "", "pytest", "files")
        for table in self.tables:
            if table.counts_for(row):
                spec = table.over(spec)
        return replace(spec, parser=row.log_parser) if row.log_parser else spec


def load_specs(file: Path | None) -> Specs:
    """kcode's own table, and `file` behind it. Raises ConfigError naming the file and the place in it."""
    own = (resources.files("kcode_bench.swe") / "specs.toml").read_bytes()
    tables = _parse(own, "specs.toml")
    if file is not None:
        try:
            tables += _parse(file.read_bytes(), f"--specs {file}")
        except OSError as error:
            raise ConfigError(f"--specs {file}: {error.strerror}") from error
    return Specs(tables)


def _parse(text: bytes, source: str) -> tuple[_Table, ...]:
    try:
        document = _Document.model_validate(tomllib.loads(text.decode("utf-8")))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{source}: {place}: {first['msg']}") from error
    except ValueError as error:
        raise ConfigError(f"{source} is not valid TOML: {error}") from error
    for table in document.spec:
        if table.parser is not None and table.parser not in PARSERS:
            raise ConfigError(f"{source}: parser is {table.parser!r}, it must be one of {', '.join(PARSERS)}")
    return document.spec


def changed_files(patch: str) -> tuple[str, ...]:
    """The files that a patch of git's form touches, by their names after it."""
    return tuple(dict.fromkeys(CHANGED.findall(patch)))


def tested_names(spec: Spec, test_patch: str) -> tuple[str, ...]:
    """What of a test patch a runner is told to run."""
    files = [name for name in changed_files(test_patch) if not name.endswith(DATA_ENDINGS)]
    if spec.names == "files":
        return tuple(files)
    modules = [name.removesuffix(".py").removeprefix("tests/").replace("/", ".") for name in files]
    return tuple(dict.fromkeys(modules))


def tests_line(spec: Spec, row: Row) -> str:
    """Lines for bash. A row that brings its own script is tested as that says, but for the script's prologue."""
    own = BETWEEN.search(row.eval_script)
    if own is not None:
        return EXIT_CODE_LINE.sub("", own[1]).strip()
    return " ".join((spec.test, *map(_quoted, tested_names(spec, row.test_patch))))


def _quoted(name: str) -> str:
    return name if re.fullmatch(r"[\w./+-]+", name) else "'" + name.replace("'", "'\\''") + "'"


def unknown_tables(specs: Specs, rows: Sequence[Row]) -> tuple[str, ...]:
    """The repositories of `rows` that no table names."""
    named = {repo for table in specs.tables for repo in table.repos}
    return tuple(sorted({row.repo for row in rows} - named))
