"""Where the parts of a run are worked on."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from kcode.errors import StartError
from kcode_bench.executor import LocalWorkers, executor_named


def halved(number: int) -> int:
    if number % 2:
        raise ValueError(f"{number} is odd")
    return number // 2


def test_every_item_is_worked_on_once() -> None:
    assert sorted(LocalWorkers(3).run(halved, range(0, 40, 2))) == list(range(20))


def test_what_is_raised_ends_the_run() -> None:
    with pytest.raises(ValueError, match="7 is odd"):
        list(LocalWorkers(1).run(halved, [2, 7, 4]))


def test_an_unknown_executor_is_refused() -> None:
    with pytest.raises(StartError, match="neither local nor ray"):
        executor_named("slurm", 1)


@pytest.mark.skipif(find_spec("ray") is not None, reason="ray is installed")
def test_ray_that_is_missing_is_named_with_the_way_to_install_it() -> None:
    with pytest.raises(StartError, match=r"kcode-agent\[ray\]"):
        list(executor_named("ray", 1).run(halved, [2]))


@pytest.mark.peer
@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed: pip install 'kcode-agent[ray]'")
def test_ray_works_on_every_item() -> None:
    assert sorted(executor_named("ray", 1).run(halved, [2, 4, 6])) == [1, 2, 3]
