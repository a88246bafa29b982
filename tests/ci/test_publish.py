"""Publishing a verified fix: to a local bare repository and a forge that only records, and never with a secret in sight."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.ci.conftest import FIX, Ended, Inside, Json, Place, bash, git

# In two pieces, so that nothing that looks for keys finds one in this file.
TOKEN = "ghs_thetokenoft" + "hetest0123456789"
BASIC = base64.b64encode(f"x-access-token:{TOKEN}".encode()).decode()
JOB = {"GITHUB_TOKEN": TOKEN, "GITLAB_TOKEN": TOKEN, "ACTIONS_RUNTIME_TOKEN": TOKEN}


@dataclass(slots=True)
class Forge:
    """Answers every POST with `status` and `answer`, every GET (of git) with 403; `asked` is what came."""

    url: str = ""
    status: int = 201
    answer: str = json.dumps({"html_url": "https://forge.test/pull/1", "web_url": "https://forge.test/merge/1"})
    asked: list[tuple[str, dict[str, str], Json]] = field(default_factory=list[tuple[str, dict[str, str], Json]])


@pytest.fixture
def forge() -> Iterator[Forge]:
    found = Forge()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            found.asked.append((self.path, dict(self.headers.items()), sent))
            self._answer(found.status, found.answer)

        def do_GET(self) -> None:
            found.asked.append((self.path, dict(self.headers.items()), {}))
            self._answer(403, f"no push with {TOKEN}")

        def _answer(self, status: int, text: str) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    found.url = f"http://127.0.0.1:{server.server_port}"
    yield found
    server.shutdown()
    server.server_close()


@pytest.fixture
def remote(place: Place) -> Path:
    """A bare repository with the checkout's branch, whose address and a token stand in the checkout's configuration."""
    folder = place.folder / "remote.git"
    git(place.folder, "init", "-q", "--bare", "-b", "main", str(folder))
    git(place.checkout, "remote", "add", "origin", str(folder))
    git(place.checkout, "push", "-q", "origin", "main")
    git(place.checkout, "config", "http.https://github.com/.extraheader", f"AUTHORIZATION: basic {BASIC}")
    return folder


def secrets_in(ended: Ended) -> list[str]:
    """Where the token can be read of all that a run leaves and says."""
    texts = {path.name: path.read_text(errors="replace") for path in ended.output.iterdir()}
    texts |= {"stdout": ended.stdout, "stderr": ended.stderr}
    return [name for name, text in texts.items() if TOKEN in text or BASIC in text]


def test_a_pull_request_is_opened_and_nothing_inside_sees_the_token(place: Place, remote: Path, forge: Forge) -> None:
    thief = (
        "env; cat .git/config; git remote -v; cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline | tr '\\0' '\\n'",
        f"git push origin HEAD:main; git push {remote} HEAD:main; curl -s {forge.url}/stolen; ls {remote}",
        "git commit -qam mine; git update-ref refs/heads/main HEAD~1; (env; cat .git/config) >> notes.txt",
    )
    asked = ["--open-pr", "--forge=github", "--repo=o/r", f"--api-url={forge.url}", "--draft"]
    ended = place.run(bash(*thief, FIX), *asked, **JOB)

    assert ended.code == 0, ended.stderr
    assert ended.summary["pull_request"] == "https://forge.test/pull/1"
    branch, commit = ended.summary["branch"], ended.summary["commit"]
    assert git(remote, "for-each-ref", "--format=%(refname:short) %(objectname)").splitlines() == [
        f"{branch} {commit}",
        f"main {git(place.checkout, 'rev-parse', 'main')}",
    ]
    ((path, headers, sent),) = forge.asked
    assert (path, headers["Authorization"]) == ("/repos/o/r/pulls", f"Bearer {TOKEN}")
    assert {name: sent[name] for name in ("head", "base", "draft")} == {"head": branch, "base": "main", "draft": True}
    assert sent["body"] == (ended.output / "body.md").read_text()
    assert secrets_in(ended) == []


@pytest.mark.slow
def test_without_being_asked_nothing_is_published(place: Place, remote: Path, forge: Forge) -> None:
    ended = place.run(bash(FIX), f"--api-url={forge.url}", **JOB)
    assert (ended.code, ended.summary["pushed"], ended.summary["pull_request"]) == (0, False, None)
    assert (forge.asked, git(remote, "branch", "--format=%(refname:short)")) == ([], "main")


@pytest.mark.slow
def test_no_fix_is_never_published(place: Place, remote: Path, forge: Forge) -> None:
    ended = place.run(bash("echo >> calc.py"), "--open-pr", "--repo=o/r", f"--api-url={forge.url}", **JOB)
    assert (ended.code, forge.asked, git(remote, "branch", "--format=%(refname:short)")) == (5, [], "main")


@pytest.mark.slow
def test_a_merge_request_is_opened_on_gitlab(place: Place, remote: Path, forge: Forge) -> None:
    job = {**JOB, "GITLAB_CI": "true", "CI_API_V4_URL": forge.url, "CI_PROJECT_PATH": "group/sub/project"}
    ended = place.run(bash(FIX), "--open-pr", "--draft", "--branch=fix/add", **job)
    assert (ended.code, ended.summary["pull_request"]) == (0, "https://forge.test/merge/1"), ended.stderr
    ((path, headers, sent),) = forge.asked
    assert (path, headers["PRIVATE-TOKEN"]) == ("/projects/group%2Fsub%2Fproject/merge_requests", TOKEN)
    assert (sent["source_branch"], sent["target_branch"]) == ("fix/add", "main")
    assert str(sent["title"]).startswith("Draft: ")
    assert git(remote, "rev-parse", "fix/add") == ended.summary["commit"]


@pytest.mark.slow
def test_what_the_forge_refuses_is_told_without_the_token(place: Place, remote: Path, forge: Forge) -> None:
    forge.status, forge.answer = 403, f"bad credentials {TOKEN}"
    asked = ["--open-pr", "--repo=o/r", f"--api-url={forge.url}"]
    ended = place.run(bash(FIX), *asked, **JOB)
    assert (ended.code, ended.summary["exit_code"], ended.summary["status"], ended.summary["pushed"]) == (2, 2, "fixed", True)
    assert str(ended.summary["problem"]).endswith("/repos/o/r/pulls answered 403: bad credentials ***")
    assert secrets_in(ended) == []

    git(place.checkout, "remote", "set-url", "origin", f"{forge.url}/o/r.git")
    ended = place.run(bash(FIX), "--push", **JOB)
    assert (ended.code, ended.summary["pushed"]) == (2, False)
    path, headers, _ = forge.asked[-1]
    assert (path, headers["Authorization"]) == ("/o/r.git/info/refs?service=git-receive-pack", f"Basic {BASIC}")
    assert secrets_in(ended) == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--push", "--remote=upstream"], "--remote upstream: the checkout has no such remote"),
        (["--push", "--remote=--upload-pack=x"], "--remote --upload-pack=x: it is no remote"),
        (["--push", "--branch=main"], "--branch main: it is the branch to repair"),
        (["--push", "--branch=x", "--base=x"], "--branch x: it is the branch to repair"),
        (["--open-pr"], "--repo"),
        (["--open-pr", "--repo=o/r/../../x?"], "--repo 'o/r/../../x?'"),
        (["--open-pr", "--repo=o/r", "--token-env=NONE"], "--open-pr needs a token in NONE"),
        (["--open-pr", "--repo=o/r", "--api-url=http://example.org"], "http://example.org is not https"),
        (["--network=on"], "--network on would let"),
    ],
)
def test_what_cannot_be_published_is_said_before_the_work(
    place: Place, remote: Path, inside: Inside, monkeypatch: pytest.MonkeyPatch, arguments: list[str], told: str
) -> None:
    monkeypatch.setenv("GITHUB_TOKEN", TOKEN)
    code, stdout, stderr = inside(place, *arguments)
    assert (code, told in stderr, TOKEN in stdout + stderr) == (1, True, False), stderr
