"""A folder's own configuration counts only once the user trusts the folder, and only to narrow."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kcode.errors import ConfigError
from kcode.paths import Paths
from kcode.project import in_project
from kcode.settings import Settings, Value
from kcode.trust import distrust, is_trusted, trust, trusted_folders
from tests.core.conftest import Open


def configure(workspace: Path, text: str) -> None:
    (workspace / ".kcode").mkdir(exist_ok=True)
    (workspace / ".kcode/config.toml").write_text(text)


def test_trust_is_for_the_folder_itself_and_can_be_taken_back(paths: Paths, workspace: Path, tmp_path: Path) -> None:
    (workspace / "below").mkdir()
    (tmp_path / "link").symlink_to(workspace)
    assert not is_trusted(paths, workspace)
    assert trust(paths, tmp_path / "link")
    assert not trust(paths, workspace)
    assert (is_trusted(paths, workspace), is_trusted(paths, workspace / "below")) == (True, False)
    assert trusted_folders(paths) == (workspace,)
    assert distrust(paths, workspace)
    assert not distrust(paths, workspace)
    assert not is_trusted(paths, workspace)


def test_a_list_that_cannot_be_read_trusts_nobody(paths: Paths, workspace: Path) -> None:
    trust(paths, workspace)
    (paths.config / "trusted.json").write_text('{"folders": "/"}')
    with pytest.raises(ConfigError, match=r"trusted\.json is no list"):
        is_trusted(paths, workspace)


def test_an_untrusted_folder_gives_one_notice_and_nothing_else(paths: Paths, workspace: Path) -> None:
    configure(workspace, 'sandbox = "read-only"\nnonsense')
    settings, notices = in_project(Settings(), workspace, paths)
    assert settings == Settings()
    assert [notice.level for notice in notices] == ["info"]
    assert "not trusted" in notices[0].text


def test_without_a_file_there_is_nothing_to_say(paths: Paths, workspace: Path) -> None:
    assert in_project(Settings(network="on"), workspace, paths) == (Settings(network="on"), ())


@pytest.mark.parametrize(
    ("own", "line", "key", "value"),
    [
        (Settings(network="on"), 'network = "off"', "network", "off"),
        (Settings(network="on"), 'network = "example.org"', "network", "example.org"),
        (Settings(network="a.org,b.org"), 'network = "b.org"', "network", "b.org"),
        (Settings(), 'sandbox = "read-only"', "sandbox", "read-only"),
        (Settings(approval_mode="auto"), 'approval_mode = "ask"', "approval_mode", "ask"),
        (Settings(), 'approval_mode = "plan"', "approval_mode", "plan"),
        (Settings(), "max_turns = 20", "max_turns", 20),
        (Settings(time_limit_s=60.0), "time_limit_s = 5.5", "time_limit_s", 5.5),
    ],
)
def test_a_trusted_project_narrows(paths: Paths, workspace: Path, own: Settings, line: str, key: str, value: Value) -> None:
    trust(paths, workspace)
    configure(workspace, line)
    settings, notices = in_project(own, workspace, paths)
    assert (getattr(settings, key), notices) == (value, ())


@pytest.mark.parametrize(
    ("own", "line", "named"),
    [
        (Settings(), 'network = "on"', 'network = "on"'),
        (Settings(), 'network = "example.org"', 'network = "example.org"'),
        (Settings(network="a.org"), 'network = "a.org,b.org"', 'network = "a.org,b.org"'),
        (Settings(network="a.org"), 'network = "*.a.org"', 'network = "*.a.org"'),
        (Settings(sandbox="read-only"), 'sandbox = "workspace-write"', 'sandbox = "workspace-write"'),
        (Settings(), 'sandbox = "danger-full-access"', 'sandbox = "danger-full-access"'),
        (Settings(), 'approval_mode = "auto"', 'approval_mode = "auto"'),
        (Settings(approval_mode="plan"), 'approval_mode = "ask"', 'approval_mode = "ask"'),
        (Settings(max_tokens=100), "max_tokens = 101", 'max_tokens = "101"'),
        (Settings(max_tokens=100), "max_tokens = 0", 'max_tokens = "0"'),
    ],
)
def test_even_a_trusted_project_never_widens(paths: Paths, workspace: Path, own: Settings, line: str, named: str) -> None:
    trust(paths, workspace)
    configure(workspace, line)
    settings, notices = in_project(own, workspace, paths)
    assert settings == own
    assert [notice.level for notice in notices] == ["warning"]
    assert named in notices[0].text


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('base_url = "http://example.org"', "'base_url' is not a project's to set"),
        ("colour = 1", "'colour' is no setting"),
        ('network = "a b"', "network"),
        ('sandbox = "none"', "sandbox is 'none'"),
        ("max_turns = ", "not valid TOML"),
    ],
)
def test_a_trusted_file_that_is_wrong_stops_the_start(paths: Paths, workspace: Path, text: str, named: str) -> None:
    trust(paths, workspace)
    configure(workspace, text)
    with pytest.raises(ConfigError) as caught:
        in_project(Settings(), workspace, paths)
    assert named in str(caught.value)
    assert "config.toml" in str(caught.value)


def test_a_link_or_a_pipe_in_its_place_is_not_read(paths: Paths, workspace: Path) -> None:
    trust(paths, workspace)
    (workspace / ".kcode").mkdir()
    (workspace / ".kcode/config.toml").symlink_to(paths.config_file)
    with pytest.raises(ConfigError, match="cannot read"):
        in_project(Settings(), workspace, paths)
    (workspace / ".kcode/config.toml").unlink()
    os.mkfifo(workspace / ".kcode/config.toml")
    with pytest.raises(ConfigError, match="no plain file"):
        in_project(Settings(), workspace, paths)


async def test_a_session_is_opened_under_the_narrowed_settings(open_session: Open, paths: Paths, workspace: Path) -> None:
    configure(workspace, 'approval_mode = "plan"\nnetwork = "on"\n')
    session = await open_session()
    assert (session.approval_mode, [notice.level for notice in session.notices]) == ("auto", ["info"])
    trust(paths, workspace)
    session = await open_session()
    assert (session.approval_mode, [notice.level for notice in session.notices]) == ("plan", ["warning"])
