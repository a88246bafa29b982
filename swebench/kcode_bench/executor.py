"""Where the parts of a run are worked on: threads of this process, or a Ray cluster. There is no queue of our own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol, TypeVar

from kcode.errors import StartError

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


class Executor(Protocol):
    def run(self, work: Callable[[Item], Outcome], items: Sequence[Item]) -> Iterator[Outcome]:
        """What `work` made of each item, as it is finished. What it raises is raised here and ends the run; closing the iterator
        leaves what has not begun undone."""
        ...


@dataclass(frozen=True, slots=True)
class LocalWorkers:
    """So many items at a time, in threads: the work is done by processes of their own."""

    count: int

    def run(self, work: Callable[[Item], Outcome], items: Sequence[Item]) -> Iterator[Outcome]:
        with ThreadPoolExecutor(max_workers=self.count, thread_name_prefix="kcode-worker") as pool:
            futures = [pool.submit(work, item) for item in items]
            try:
                for future in as_completed(futures):
                    yield future.result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True, slots=True)
class RayWorkers:
    """A Ray task for each item, with `cpus` of a node. `address` as in ray.init; "local" starts a cluster of this machine.

    The nodes need kcode of the same version and the folders of the run under the same paths, as on a shared file system. `work`
    and the items are pickled.
    """

    address: str
    cpus: float = 1.0

    def run(self, work: Callable[[Item], Outcome], items: Sequence[Item]) -> Iterator[Outcome]:
        try:
            ray = import_module("ray")
        except ImportError as error:
            raise StartError("--executor ray: ray is not installed; pip install 'kcode-agent[ray]'") from error
        ray.init(address=self.address, ignore_reinit_error=True, log_to_driver=False, include_dashboard=False)
        try:
            task = ray.remote(num_cpus=self.cpus)(work)
            pending = [task.remote(item) for item in items]
            while pending:
                finished, pending = ray.wait(pending, num_returns=1)
                outcome: Outcome = ray.get(finished[0])
                yield outcome
        finally:
            ray.shutdown()


def executor_named(name: str, workers: int) -> Executor:
    """`local`, `ray` for a cluster of this machine, or `ray:ADDRESS`. Raises StartError for any other."""
    if name == "local":
        return LocalWorkers(workers)
    kind, _, address = name.partition(":")
    if kind != "ray":
        raise StartError(f"--executor {name}: it is neither local nor ray nor ray:ADDRESS")
    return RayWorkers(address or "local")
