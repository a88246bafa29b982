"""Where a verified repair goes when the user asked for it: a branch on a remote, a pull or merge request.

Who asks is the command line alone. Where to is taken from it, from the checkout's own remotes and from the job's variables, never
from a task. The token is taken out of the environment before anything else runs; it is given to git through the environment
of that one process and to the forge in a header, over an encrypted connection.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Literal
from urllib.parse import quote, urlsplit, urlunsplit

import httpx

from kcode.ci.clean import one_line
from kcode.ci.git import Git, GitFailed
from kcode.ci.report import Proposal
from kcode.ci.repository import Checkout
from kcode.errors import InfrastructureError, StartError

Kind = Literal["github", "gitlab"]
TOKENS: dict[Kind, tuple[str, ...]] = {"github": ("GITHUB_TOKEN", "GH_TOKEN"), "gitlab": ("GITLAB_TOKEN",)}
# Of the job; nothing that kcode starts has a use for them.
OTHER_SECRETS = ("ACTIONS_RUNTIME_TOKEN", "ACTIONS_ID_TOKEN_REQUEST_TOKEN", "CI_JOB_TOKEN", "CI_REGISTRY_PASSWORD")
REPOSITORY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(?:/[A-Za-z0-9_][A-Za-z0-9_.-]*)+")
SCP = re.compile(r"(?:[^@/]+@)?(?P<host>[A-Za-z0-9.-]+):(?P<path>[^/].*)")
REQUEST_TIMEOUT_S = 60.0
CREATED = 201
HEADERS = {"User-Agent": "kcode", "Accept": "application/json"}


class ForgeFailed(InfrastructureError):
    """The forge or the remote refused; the message has no secrets in it."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What the command line says of publishing; "" is what the remote and the job's variables say."""

    push: bool = False
    open_pr: bool = False
    remote: str = "origin"
    forge: str = ""
    repo: str = ""
    api_url: str = ""
    base: str = ""
    token_env: str = ""
    draft: bool = False


@dataclass(frozen=True, slots=True)
class Target:
    """A checked wish: `url` is pushed to, `api` and `repo` are "" when no pull request is wanted."""

    url: str
    kind: Kind
    api: str
    repo: str
    base: str
    draft: bool
    token: str = field(repr=False)


def take_token(wish: Wish, environment: MutableMapping[str, str]) -> dict[str, str]:
    """The tokens by the names of their variables, all of which are gone from the environment afterwards."""
    names = [*TOKENS["github"], *TOKENS["gitlab"], *([wish.token_env] if wish.token_env else [])]
    found = {name: environment.pop(name) for name in names if name in environment}
    for name in OTHER_SECRETS:
        environment.pop(name, None)
    return found


def check_wish(
    wish: Wish, checkout: Checkout, branch: str, git: Git, tokens: dict[str, str], variables: Mapping[str, str]
) -> Target:
    """Everything that can be known to be wrong before the work. Raises StartError."""
    url = _remote_url(wish.remote, checkout, git)
    host, path = _place_of(url)
    kind = _kind(wish, host, variables)
    base = wish.base or checkout.branch or variables.get("GITHUB_BASE_REF" if kind == "github" else "CI_COMMIT_BRANCH", "")
    if branch and branch in {base, checkout.branch}:
        raise StartError(f"--branch {branch}: it is the branch to repair; give one that does not exist yet")
    names = (wish.token_env,) if wish.token_env else TOKENS[kind]
    token = next((tokens[name] for name in names if tokens.get(name)), "")
    api = repo = ""
    if wish.open_pr:
        if not base:
            raise StartError("--open-pr: no branch is checked out; name the one to merge into with --base")
        if not token:
            raise StartError(f"--open-pr needs a token in {' or '.join(names)} (--token-env names another variable)")
        api = (wish.api_url or _api(kind, host, variables)).rstrip("/")
        job = variables.get("GITHUB_REPOSITORY" if kind == "github" else "CI_PROJECT_PATH", "")
        repo = wish.repo or job or path
        if not REPOSITORY.fullmatch(repo):
            raise StartError(f"--repo {repo!r}: give OWNER/NAME")
        _check_encrypted("--api-url", api)
    if token and url.startswith("http"):
        _check_encrypted("the remote", url)
    return Target(url, kind, api, repo, base, wish.draft, token)


def _remote_url(remote: str, checkout: Checkout, git: Git) -> str:
    if remote.startswith("-"):
        raise StartError(f"--remote {remote}: it is no remote")
    try:
        url = git("remote", "get-url", "--push", "--", remote, cwd=checkout.root).decode().strip()
    except GitFailed as error:
        raise StartError(f"--remote {remote}: the checkout has no such remote") from error
    if "::" in url or url.startswith("-"):
        raise StartError(f"--remote {remote}: kcode pushes to https, ssh and local repositories only")
    return url


def _place_of(url: str) -> tuple[str, str]:
    """The host and the repository's path on it; "" for a local folder."""
    parts = urlsplit(url)
    if parts.scheme in {"http", "https", "ssh", "git"}:
        return parts.hostname or "", parts.path.strip("/").removesuffix(".git")
    scp = SCP.fullmatch(url)
    if scp is not None and not Path(url).exists():
        return scp["host"], scp["path"].removesuffix(".git")
    return "", ""


def _kind(wish: Wish, host: str, variables: Mapping[str, str]) -> Kind:
    match wish.forge:
        case "github":
            return "github"
        case "gitlab":
            return "gitlab"
        case _:
            is_gitlab = variables.get("GITLAB_CI") == "true" or "gitlab" in host
            return "gitlab" if is_gitlab and variables.get("GITHUB_ACTIONS") != "true" else "github"


def _api(kind: Kind, host: str, variables: Mapping[str, str]) -> str:
    if kind == "gitlab":
        return variables.get("CI_API_V4_URL") or f"https://{host or 'gitlab.com'}/api/v4"
    known = variables.get("GITHUB_API_URL")
    return known or ("https://api.github.com" if host in {"", "github.com"} else f"https://{host}/api/v3")


def _check_encrypted(what: str, url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme == "https" or (parts.scheme == "http" and _is_loopback(parts.hostname or "")):
        return
    raise StartError(f"{what} {_bare(url)} is not https; a token would be read on the way")


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def push(target: Target, proposal: Proposal, seed: Path, git: Git) -> None:
    """Make the branch on the remote; one that is there already is never moved back. Raises ForgeFailed."""
    environment = {"GIT_CONFIG_COUNT": "0"}
    parts = urlsplit(target.url)
    if target.token and parts.scheme in {"http", "https"} and not parts.password:
        user = "x-access-token" if target.kind == "github" else "oauth2"
        basic = base64.b64encode(f"{user}:{target.token}".encode()).decode()
        place = urlunsplit((parts.scheme, parts.netloc, "/", "", ""))
        settings = {f"http.{place}.extraHeader": f"Authorization: Basic {basic}", "http.followRedirects": "false"}
        environment = {"GIT_CONFIG_COUNT": str(len(settings))}
        for number, (name, value) in enumerate(settings.items()):
            environment |= {f"GIT_CONFIG_KEY_{number}": name, f"GIT_CONFIG_VALUE_{number}": value}
    try:
        arguments = ["push", "--quiet", "--no-verify", "--", target.url, f"{proposal.commit}:refs/heads/{proposal.branch}"]
        git(*arguments, cwd=seed, environment=environment)
    except GitFailed as error:
        raise ForgeFailed(f"{_bare(target.url)} did not take the branch: {_without(str(error), target)}") from error


async def open_request(target: Target, proposal: Proposal) -> str:
    """Open the pull or merge request; its address. Raises ForgeFailed."""
    title = f"Draft: {proposal.title}" if target.draft and target.kind == "gitlab" else proposal.title
    if target.kind == "github":
        url = f"{target.api}/repos/{target.repo}/pulls"
        sent = {"title": title, "head": proposal.branch, "base": target.base, "body": proposal.body, "draft": target.draft}
        headers = {"Authorization": f"Bearer {target.token}", "X-GitHub-Api-Version": "2022-11-28"}
    else:
        url = f"{target.api}/projects/{quote(target.repo, safe='')}/merge_requests"
        sent = {"title": title, "source_branch": proposal.branch, "target_branch": target.base, "description": proposal.body}
        headers = {"PRIVATE-TOKEN": target.token}
    try:
        async with httpx.AsyncClient(timeout=REQUEST_TIMEOUT_S, follow_redirects=False) as client:
            answer = await client.post(url, json=sent, headers=HEADERS | headers)
            found: object = answer.json() if answer.status_code == CREATED else None
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise ForgeFailed(f"{_bare(url)}: {_without(str(error) or type(error).__name__, target)}") from error
    if not isinstance(found, dict):
        said = one_line(_without(answer.text, target))
        raise ForgeFailed(f"{_bare(url)} answered {answer.status_code}: {said}")
    address = found.get("html_url" if target.kind == "github" else "web_url")
    return one_line(address) if isinstance(address, str) and address.startswith(("https://", "http://")) else ""


def _bare(url: str) -> str:
    """The address without a name and password in it."""
    parts = urlsplit(url)
    return url if "@" not in parts.netloc else urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _without(text: str, target: Target) -> str:
    """`text` without the token, and without a password that the remote's address has."""
    basic = base64.b64encode(f"x-access-token:{target.token}".encode()).decode()
    secrets = [target.token, basic, urlsplit(target.url).password or ""]
    for secret in filter(None, secrets):
        text = text.replace(secret, "***")
    return text
