"""`kcode trust`, and what a headless run says of a folder's own configuration."""

from __future__ import annotations

from tests.headless.conftest import Inside, Program


def test_a_folder_is_trusted_listed_and_trusted_no_more(inside: Inside, program: Program) -> None:
    place = program.workspace.resolve()
    assert inside("trust")[:2] == (0, f"{place} is trusted from now on\n")
    assert inside("trust", str(place))[:2] == (0, f"{place} is trusted already\n")
    assert inside("trust", "--list")[:2] == (0, f"{place}\n")
    assert inside("trust", "--remove")[:2] == (0, f"{place} is trusted no more\n")
    assert inside("trust", "--remove")[:2] == (0, f"{place} was not trusted\n")
    assert inside("trust", "--list")[:2] == (0, "")
    code, _, error = inside("trust", "nowhere")
    assert (code, "there is no such folder" in error) == (1, True)


def test_a_run_says_that_the_folders_configuration_does_not_count(inside: Inside, program: Program) -> None:
    (program.workspace / ".kcode").mkdir()
    (program.workspace / ".kcode/config.toml").write_text('approval_mode = "plan"\n')
    model = program.script({"text": "Done."})
    code, _, error = inside("-p", "Hello", "-m", model)
    assert (code, "not trusted" in error) == (0, True)
    inside("trust")
    code, _, error = inside("-p", "Hello", "-m", model)
    assert (code, "not trusted" in error) == (0, False)
