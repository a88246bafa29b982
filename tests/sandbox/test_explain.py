"""What `kcode sandbox explain` is made of: the walls that stand, and what the machine has for them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kcode_sandbox.explain import explain
from kcode_sandbox.landlock import fault_of_kernel
from kcode_sandbox.machine import machine_means
from kcode_sandbox.policy import Policy


async def test_the_layers_of_bubblewrap_are_named(policy: Policy) -> None:
    explanation = await explain(policy)
    assert explanation.stands
    layers = explanation.document["layers"]
    assert isinstance(layers, dict)
    assert {"namespaces", "system calls", "Landlock", "control group"} <= layers.keys()


@pytest.mark.skipif(bool(fault_of_kernel()), reason=fault_of_kernel() or "it can be had")
async def test_the_weaker_walls_say_what_they_leave_open(policy: Policy) -> None:
    explanation = await explain(replace(policy, backend="landlock"))
    assert explanation.document["sandbox"] == "landlock"
    assert explanation.document["degraded"] is True
    assert "left open, which bubblewrap would hold" in dict(explanation.sections)


async def test_what_cannot_stand_names_the_reason_and_the_machine(policy: Policy) -> None:
    explanation = await explain(replace(policy, workspace=Path("/usr")))
    assert not explanation.stands
    assert "folder of the system" in str(explanation.document["reason"])
    assert "this machine" in dict(explanation.sections)


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("user/max_user_namespaces", "0\n", "raise it"),
        ("kernel/unprivileged_userns_clone", "0\n", "only root"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1\n", "AppArmor"),
    ],
)
def test_a_setting_that_denies_namespaces_is_named_with_its_remedy(tmp_path: Path, setting: str, value: str, words: str) -> None:
    (tmp_path / setting).parent.mkdir(parents=True)
    (tmp_path / setting).write_text(value)
    means = {one.name: one for one in machine_means(tmp_path)}
    assert not means["user namespaces"].works
    assert f"sysctl {setting.replace('/', '.')}" in means["user namespaces"].detail
    assert words in means["user namespaces"].detail


def test_a_kernel_without_such_settings_denies_nothing(tmp_path: Path) -> None:
    means = {one.name: one for one in machine_means(tmp_path)}
    assert means["user namespaces"].works
    assert not means["system call filter"].works


async def test_what_hard_links_make_read_only_is_listed_apart(policy: Policy, tmp_path: Path) -> None:
    (tmp_path / "outside").touch()
    linked = policy.workspace / "linked"
    linked.hardlink_to(tmp_path / "outside")
    explanation = await explain(policy)
    assert explanation.document["linked"] == [str(linked)]
    assert str(linked) not in str(explanation.document["protected"])
    assert any("a copy (cp -r) has none" in title for title, _ in explanation.sections)
