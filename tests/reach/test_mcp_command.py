"""`kcode mcp` as a user types it."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

SERVER = Path(__file__).with_name("plain_server.py")
ROOT = Path(__file__).resolve().parents[2]


def kcode(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    folders = [str(ROOT), *(str(ROOT / name) for name in ("backend", "sandbox", "prompts", "swebench"))]
    environment = {**os.environ, "KCODE_HOME": str(home), "PYTHONPATH": os.pathsep.join(folders)}
    environment.pop("KCODE_TEST_MODEL", None)
    command = [sys.executable, "-m", "kcode", "mcp", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=180, env=environment, cwd=home.parent, check=False)


def test_servers_are_added_tested_and_removed_and_comments_stay(tmp_path: Path) -> None:
    home, file = tmp_path / "home", tmp_path / "home" / "config" / "config.toml"
    file.parent.mkdir(parents=True)
    file.write_text('# mine\ntheme = "x"  # keep\n')
    added = kcode(home, "add", "--env", "A=${HOME}", "--access", "read", "shop", sys.executable, str(SERVER))
    assert (added.returncode, added.stderr) == (0, "")
    assert kcode(home, "add", "web", "https://example.org/mcp", "--header", "K=v").returncode == 0
    stored = tomllib.loads(file.read_text())["mcp"]
    assert stored["shop"] == {"command": sys.executable, "args": [str(SERVER)], "env": {"A": "${HOME}"}, "access": "read"}
    assert stored["web"] == {"url": "https://example.org/mcp", "headers": {"K": "v"}}
    assert file.read_text().startswith('# mine\ntheme = "x"  # keep\n')
    assert "web                  https://example.org/mcp" in kcode(home, "list").stdout
    assert "add " in kcode(home, "test", "shop").stdout
    assert kcode(home, "remove", "shop").returncode == 0
    assert list(tomllib.loads(file.read_text())["mcp"]) == ["web"]


def test_what_is_wrong_is_said_and_nothing_is_written(tmp_path: Path) -> None:
    home = tmp_path / "home"
    for arguments, said in (
        (("add", "a b", "x"), "a server's name has up to 32 letters, digits and hyphens, not 'a b'"),
        (("add", "web", "http://x", "--env", "A=b"), "http://x is a URL: it takes --header, no arguments and no --env"),
        (("add", "--env", "A", "web", "x"), "'A' is not NAME=VALUE"),
        (("remove", "web"), "there is no server web in"),
        (("test", "web"), "there is no server web; there are: none"),
    ):
        done = kcode(home, *arguments)
        assert done.returncode == 1
        assert said in done.stderr
    assert not (home / "config" / "config.toml").exists()


def test_an_untrusted_folder_s_servers_are_named_and_not_used(tmp_path: Path) -> None:
    (tmp_path / ".mcp.json").write_text('{"mcpServers": {"x": {"command": "x"}}}')
    listed = kcode(tmp_path / "home", "list")
    assert listed.stdout == ""
    assert "is not read, since this folder is not trusted" in listed.stderr


def test_a_linked_configuration_stays_a_link_with_its_mode(tmp_path: Path) -> None:
    home, real = tmp_path / "home", tmp_path / "dots" / "config.toml"
    link = home / "config" / "config.toml"
    link.parent.mkdir(parents=True)
    real.parent.mkdir()
    real.write_text("# mine\n")
    real.chmod(0o600)
    link.symlink_to(real)
    assert kcode(home, "add", "demo", "--", "echo", "hi").returncode == 0
    assert (link.is_symlink(), real.stat().st_mode & 0o777) == (True, 0o600)
    assert real.read_text().startswith("# mine\n")
    assert list(tomllib.loads(real.read_text())["mcp"]) == ["demo"]
    assert [file.name for file in real.parent.iterdir()] == ["config.toml"]
