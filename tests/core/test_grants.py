"""The model may ask for a host or a folder; only the user opens the sandbox for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from kcode.approval import Answer, Question, Reply
from kcode.events import CallFinished
from kcode.grants import Grant, Impossible, checked, standing_grants, store_grants, stored_grants, widened
from kcode.paths import Paths
from kcode.settings import Settings
from kcode.tools.request_grant import Wish
from kcode_sandbox.policy import Policy, parse_network
from tests.core.conftest import Open, call, collect

WALLS = Settings(sandbox="workspace-write", approval_mode="auto")


def test_what_was_granted_widens_and_nothing_narrows(tmp_path: Path) -> None:
    host, read, write = Grant("host", "a.org:8443"), Grant("read", "/r"), Grant("write", "/w")
    policy = widened(Policy(tmp_path), [host, read, write, write])
    assert (policy.network_text, policy.readable, policy.writable) == ("a.org:8443", (Path("/r"),), (Path("/w"),))
    assert widened(Policy(tmp_path, network="on"), [host]).network == "on"
    listed = Policy(tmp_path, network="allow-list", hosts=parse_network("b.org")[1])
    assert widened(listed, [host]).network_text == "b.org, a.org:8443"


@pytest.mark.parametrize(
    "wish",
    [
        Wish("host", "*.org", ""),
        Wish("host", "a.org,b.org", ""),
        Wish("host", "localhost", ""),
        Wish("read", "/etc", ""),
        Wish("read", "/", ""),
        Wish("read", "relative", ""),
        Wish("read", "HOME", ""),
        Wish("read", "HOME/.ssh", ""),
        Wish("read", "HOME/link", ""),
        Wish("write", "HOME/kcode/config", ""),
    ],
)
def test_what_is_never_opened(wish: Wish, tmp_path: Path) -> None:
    home = (tmp_path / "h").resolve()
    for name in (".ssh", "kcode/config", "project"):
        (home / name).mkdir(parents=True)
    (home / "link").symlink_to(home / ".ssh")
    own = home / "kcode"
    paths = Paths(own / "config", own / "data", own / "state", own / "cache", own / "run")
    with pytest.raises(Impossible):
        checked(Wish(wish.kind, wish.target.replace("HOME", str(home)), ""), Policy(home / "project"), paths, home)


def test_what_is_granted_always_is_kept_by_folder(paths: Paths, workspace: Path, tmp_path: Path) -> None:
    host, gone = Grant("host", "a.org"), Grant("read", str(tmp_path / "gone"))
    store_grants(paths, workspace, [host, gone, host])
    assert stored_grants(paths, workspace) == (host, gone)
    assert standing_grants(paths, workspace) == (host,)
    assert stored_grants(paths, tmp_path) == ()
    store_grants(paths, workspace, [])
    assert stored_grants(paths, workspace) == ()


async def test_without_a_person_the_answer_is_no_with_the_reason(open_session: Open) -> None:
    wish = call("request_grant", kind="host", target="a.org", reason="to fetch")
    session = await open_session({"calls": [wish]}, {"text": "Done."}, settings=WALLS)
    (result,) = [event.result for event in await collect(session, "go") if isinstance(event, CallFinished)]
    assert result.is_error
    assert "Nobody is there to decide" in result.text
    assert "--network a.org" in result.text


@pytest.mark.parametrize(
    ("answer", "later", "kept"), [("allow", False, 0), ("allow-session", True, 0), ("allow-always", True, 1)]
)
async def test_a_granted_folder_opens_and_the_shell_goes_on(
    open_session: Open,
    paths: Paths,
    workspace: Path,
    tmp_path_factory: pytest.TempPathFactory,
    answer: Answer,
    later: bool,
    kept: int,
) -> None:
    # Not below /tmp, which is another one inside.
    outside = Path.home().resolve() / f".kcode-test-{tmp_path_factory.mktemp('x').name}-{answer}"
    outside = outside.with_name(outside.name.lstrip("."))
    outside.mkdir(exist_ok=True)
    (outside / "note").write_text("read me\n")
    asked: list[Question] = []

    async def ask(question: Question) -> Reply:
        asked.append(question)
        return Reply(answer)

    look = call("bash", command=f"cat {outside}/note; echo $KEPT; pwd")
    try:
        session = await open_session(
            {"calls": [call("bash", command="export KEPT=yes; mkdir -p d; cd d")]},
            {"calls": [call("request_grant", kind="read", target=str(outside), reason="to read")]},
            {"calls": [look]},
            {"text": "Done."},
            {"calls": [look]},
            {"text": "Done."},
            ask=ask,
            settings=WALLS,
        )
        before, granted, after = [e.result.text for e in await collect(session, "go") if isinstance(e, CallFinished)]
        assert "started anew" in granted, (before, granted)
        assert after.splitlines() == ["read me", "yes", str(workspace / "d")]
        (again,) = [e.result.text for e in await collect(session, "again") if isinstance(e, CallFinished)]
        assert ("read me" in again) is later, again
    finally:
        (outside / "note").unlink()
        outside.rmdir()
    assert [question.is_grant for question in asked] == [True]
    assert len(stored_grants(paths, workspace)) == kept
