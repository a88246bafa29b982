"""The command line: bad input, what it costs to start, and the other commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kcode import __version__
from kcode.paths import find_paths
from kcode.settings import read_environment
from tests.headless.conftest import Inside, Program


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--no-such-flag",), "No such option '--no-such-flag'"),
        (("-p", "x", "--output-format", "yaml"), "'yaml' is not one of"),
        (("-p", "x", "--max-turns", "many"), "--max-turns: max_turns is 'many', it must be a whole number"),
        (("-p", "x", "--max-turns", "-3"), "--max-turns: max_turns is '-3', it must not be negative"),
        (("-p", "x", "--time-limit", "nan"), "--time-limit: time_limit_s is 'nan', it must be a number"),
        (("-p", "x", "--sandbox", "none"), "sandbox is 'none', it must be one of read-only, workspace-write"),
        (("-p", "x", "--approval-mode", "never"), "approval_mode is 'never', it must be one of plan, ask, auto"),
        (("-p", "x", "--cd", "/no/such/folder"), "--cd /no/such/folder: there is no such folder"),
        (("-p", "x", "--cd", "calc.py"), "--cd calc.py: it is not a folder"),
        (("-p", "  ", "-m", "scripted:x"), "the prompt is empty"),
        (("-p", "x", "--prompt-file", "y"), "not with both"),
        (("--prompt-file", "none.md"), "--prompt-file none.md: No such file or directory"),
        (("-p", "x", "-m", "scripted:none.json"), "cannot read the script none.json: No such file"),
        (("-p", "x", "-m", "no/such/model.gguf"), "no/such/model.gguf"),
        (("-p", "x", "-m", "no-such-model"), "there is no model 'no-such-model'; known: qwen"),
        (("-p", "x"), "is not installed; run: kcode models pull qwen2.5-coder-1.5b"),
        (("-p", "x", "-r", "abc", "-m", "scripted:x"), "no session of this folder to continue"),
        (("-p", "x", "--base-url", "nonsense"), "--base-url 'nonsense' is not an http(s) address"),
        (("-p", "x", "-m", "m", "--base-url", "http://127.0.0.1:9"), "cannot reach http://127.0.0.1:9/v1"),
        (("-p", "x", "--output-dir", "calc.py/out", "-m", "scripted:x"), "--output-dir calc.py/out: Not a directory"),
    ],
)
def test_bad_input_is_one_line_with_the_value_and_exit_code_1(inside: Inside, arguments: tuple[str, ...], told: str) -> None:
    code, stdout, stderr = inside(*arguments)
    assert (code, stdout) == (1, "")
    assert told in stderr
    assert stderr.startswith("kcode: ")
    assert stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"colour = 'red'\n", "unknown setting 'colour'"),
        (b"model = \n", "is not valid TOML"),
        (b"model = 3\n", "model is 3, it must be text"),
        (b"max_turns = true\n", "max_turns is True, it must be a whole number"),
        (b"\xff\xfe", "is not UTF-8 text"),
    ],
)
def test_bad_configuration_names_the_file_and_the_key(program: Program, inside: Inside, content: bytes, told: str) -> None:
    file = program.home / "config" / "config.toml"
    file.parent.mkdir()
    file.write_bytes(content)
    code, _, stderr = inside("-p", "x", "-m", "scripted:x")
    assert (code, stderr.count("\n")) == (1, 1)
    assert str(file) in stderr
    assert told in stderr


def test_configuration_that_cannot_be_read_is_named(program: Program, inside: Inside) -> None:
    (program.home / "config" / "config.toml").mkdir(parents=True)
    code, _, stderr = inside("-p", "x", "-m", "scripted:x")
    assert code == 1
    assert "config.toml: Is a directory" in stderr


def test_flags_win_over_environment_over_file(program: Program, inside: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    (program.home / "config").mkdir()
    (program.home / "config" / "config.toml").write_text("max_turns = 1\nmax_tokens = 1\n")
    reply = {"calls": [{"name": "bash", "arguments": {"command": "true"}}]}
    model = program.script(*[reply] * 3, {"text": "made it"})
    arguments = ("-p", "x", "-m", model)
    assert "1 steps, the limit is 1" in inside(*arguments)[2]
    monkeypatch.setenv("KCODE_MAX_TURNS", "9")
    assert "tokens, the limit is 1 " in inside(*arguments)[2]
    assert inside(*arguments, "--max-tokens", "999")[:2] == (0, "made it\n")
    monkeypatch.setenv("KCODE_MAX_TURN", "9")
    assert "KCODE_MAX_TURN: unknown setting 'max_turn'" in inside(*arguments)[2]


def test_the_keys_variable_is_a_setting_and_the_key_is_none(
    program: Program, inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = program.script({"text": "ok"})
    monkeypatch.setenv("KCODE_API_KEY", "secret")
    assert inside("-p", "x", "-m", model)[0] == 0
    monkeypatch.setenv("KCODE_API_KEY_ENV", "MY_KEY")
    monkeypatch.setenv("KCODE_API_KEYS", "typo")
    assert "KCODE_API_KEYS: unknown setting 'api_keys'" in inside("-p", "x", "-m", model)[2]
    assert read_environment(os.environ | {"KCODE_API_KEYS": ""})["api_key_env"] == "MY_KEY"


def test_variables_of_the_engine_and_of_the_tests_are_no_settings() -> None:
    given = {"KCODE_ENGINE_IDLE_S": "30", "KCODE_CPU_ISA": "avx2", "KCODE_ENGINE_OTHER": "x", "KCODE_TEST_MODEL": "m"}
    assert read_environment(given) == {"engine_idle_s": 30.0}


def test_doctor_without_torch_and_compiler_tells_both(program: Program) -> None:
    hidden = program.home / "hidden"
    hidden.mkdir(parents=True)
    (hidden / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\")\n")
    folders = os.pathsep.join([str(hidden), *filter(None, sys.path)])
    done = program.run("doctor", "--json", PYTHONPATH=folders, CXX="no-such-compiler", PATH="/nonexistent")
    findings = {finding["name"]: finding for finding in json.loads(done.stdout)}
    assert findings["engine"]["state"] == "missing"
    assert findings["compiler"]["state"] == "missing"
    assert findings["git"]["state"] == "missing"
    assert "kcode models pull" in findings["models"]["cost"]


@pytest.fixture
def serve(program: Program) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`kcode serve` of some model file, with an engine that prints its arguments and the key."""
    file = program.home / "x.gguf"
    file.write_bytes(b"GGUF")
    engine = program.home / "fake" / "kcode_backend"
    engine.mkdir(parents=True)
    folders = os.pathsep.join(filter(None, sys.path))
    (engine / "__init__.py").write_text(f"__path__ += [p + '/kcode_backend' for p in {folders!r}.split({os.pathsep!r})]\n")
    (engine / "server.py").write_text("import os, sys\nprint(' '.join(sys.argv[1:]), os.environ.get('MY_KEY'))\n")
    path = os.pathsep.join([str(engine.parent), folders])
    common = ("serve", str(file), "--socket", str(program.home / "s"))
    return lambda *arguments, **environment: program.run(*common, *arguments, PYTHONPATH=path, **environment)


def test_serve_takes_the_model_as_the_other_commands_do(
    program: Program, serve: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    file = program.home / "x.gguf"
    assert f"--model {file} " in serve("-m", str(file)).stdout
    two = serve("--model", "y.gguf")
    assert (two.returncode, f"two models: {file} and -m y.gguf" in two.stderr) == (1, True)
    alone = program.run("serve", "-m", str(program.home / "absent.gguf"))
    assert (alone.returncode, "absent.gguf" in alone.stderr) == (1, True)


def test_serve_keeps_the_key_off_the_command_line(serve: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    arguments, _, key = serve("--api-key-env", "MY_KEY", MY_KEY="secret").stdout.strip().rpartition(" ")
    assert (key, "secret" in arguments, "--api-key-env MY_KEY" in arguments) == ("secret", False, True)
    assert "--api-key-env KCODE_MINE" in serve("--api-key-env", "KCODE_MINE", KCODE_MINE="secret").stdout
    empty = serve("--api-key-env", "MY_KEY", MY_KEY="")
    assert (empty.returncode, "--api-key-env MY_KEY: there is no such" in empty.stderr) == (1, True)


def test_serve_hands_the_engine_what_was_chosen(
    serve: Callable[..., subprocess.CompletedProcess[str]], program: Program, tmp_path: Path
) -> None:
    said = serve().stdout
    assert f"--kv-dir {find_paths({'KCODE_HOME': str(program.home)}).contexts} --kv-disk-budget 10000000000 " in said
    assert "--name x " in said
    assert not any(flag in said for flag in ("--threads", "--context", "--kv ", "--idle-timeout"))
    said = serve(
        *("--name", "coder", "--context", "4096", "--threads", "3", "--kv", "int8"),
        *("--kv-dir", str(tmp_path / "kept"), "--kv-disk-gb", "0.5", "--idle-timeout", "60"),
    ).stdout
    assert f"--name coder --socket {program.home}/s --shutdown-timeout 30" in said
    assert f"--kv-dir {tmp_path}/kept --kv-disk-budget 500000000 " in said
    assert "--context 4096 --threads 3 --kv int8 --idle-timeout 60.0" in said
    said = serve("--kv-disk-gb", "0", "--kv", "f16", KCODE_THREADS="2", KCODE_KV="int4").stdout
    assert ("--kv-dir" in said, "--threads 2 --kv f16 " in said) == (False, True)


def test_version_and_help(inside: Inside) -> None:
    for flag in ("-v", "-V", "--version"):
        assert inside(flag) == (0, f"kcode {__version__}\n", "")
    _, told, _ = inside("--help")
    assert "--output-format" in told
    assert "kcode doctor" in told
    assert "Exit codes" in told


def test_sessions_are_listed(program: Program, inside: Inside) -> None:
    assert "no sessions in" in inside("sessions", "list")[2]
    inside("-p", "the first\nthing", "-m", program.script({"text": "ok"}))
    _, line, _ = inside("sessions", "list")
    assert line.startswith(program.transcripts()[0].stem)
    assert line.endswith("  the first thing\n")


def test_starting_imports_nothing_heavy() -> None:
    heavy = ["torch", "textual", "numpy", "pydantic", "httpx", "asyncio", "tree_sitter"]
    code = f"import sys, kcode.cli, kcode.command_line; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_headless_run_never_imports_torch_textual_or_numpy(program: Program) -> None:
    model = program.script({"text": "ok"})
    code = (
        "import sys; from kcode.command_line import run_command_line as run; "
        f"code = run(['-p', 'x', '-m', {model!r}]); "
        "print(code, [name for name in ('torch', 'textual', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=program.workspace, env=program.environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout == "ok\n0 []\n"


def elapsed_s(arguments: list[str], folder: Path) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, check=True)
    return time.perf_counter() - started


@pytest.mark.slow
def test_version_costs_less_than_100_ms_over_bare_python(tmp_path: Path) -> None:
    """The best of several runs each; on a busy machine of more of them, for only a quiet moment shows what a start costs."""
    bare: list[float] = []
    version: list[float] = []
    while len(bare) < 5 or (min(version) - min(bare) >= 0.1 and len(bare) < 60):
        bare.append(elapsed_s(["-c", "pass"], tmp_path))
        version.append(elapsed_s(["-m", "kcode", "--version"], tmp_path))
    assert min(version) - min(bare) < 0.1, f"{(min(version) - min(bare)) * 1000:.0f} ms"
