"""The emulation of a GPU's threads itself: what it computes, and which mistakes of a kernel it shows."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.backend.cuda.conftest import compiled

PROGRAM = r"""
#include "device.cuh"

constexpr int THREADS = 64;

// out[i] = i-th thread's number from the other end, through shared memory.
template <bool BARRIER> static void reverse(u32 *out) {
    KC_DYNAMIC_SHARED(memory);
    u32 *numbers = (u32 *)memory;
    numbers[threadIdx.x] = threadIdx.x;
    if (BARRIER) block_barrier();
    out[threadIdx.x] = numbers[THREADS - 1 - threadIdx.x];
}

static void lanes(u32 *out) {
    const u32 lane = threadIdx.x % WARP;
    out[threadIdx.x] = shuffle_xor_bits(threadIdx.x, 5) * 100 + ones(warp_votes(lane < 3 + threadIdx.x / WARP));
}

static void diverged(u32 *out) {
    if (threadIdx.x < 40) block_barrier();
    out[threadIdx.x] = 1;
}

static void overrun(u32 *out) {
    KC_DYNAMIC_SHARED(memory);
    ((u32 *)memory)[threadIdx.x + 1] = 0;
    out[threadIdx.x] = 1;
}

int main(int, char **argv) {
    void (*const kernels[])(u32 *) = {reverse<true>, reverse<false>, lanes, diverged, overrun};
    u32 out[THREADS], *address = out;
    void *arguments[] = {&address};
    emulate(kernels[atoi(argv[1])], atoi(argv[2]), 1, 1, THREADS, THREADS * 4, arguments);
    for (u32 number : out) printf("%u ", number);
}
"""
REVERSE, WITHOUT_BARRIER, LANES, DIVERGED, OVERRUN = range(5)
ORDERS = pytest.mark.parametrize("backwards", [False, True], ids=["forwards", "backwards"])


@pytest.fixture(scope="module")
def program(request: pytest.FixtureRequest) -> Path:
    return compiled(request, "mistakes", PROGRAM)


def run(program: Path, kernel: int, backwards: bool) -> subprocess.CompletedProcess[str]:
    command = [str(program), str(kernel), str(int(backwards))]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def numbers(done: subprocess.CompletedProcess[str]) -> list[int]:
    assert done.returncode == 0, done.stderr
    return [int(number) for number in done.stdout.split()]


@ORDERS
def test_threads_wait_for_each_other_at_a_barrier(program: Path, backwards: bool) -> None:
    assert numbers(run(program, REVERSE, backwards)) == list(range(63, -1, -1))


@ORDERS
def test_a_missing_barrier_shows_as_memory_that_was_not_written(program: Path, backwards: bool) -> None:
    assert 0xFFFFFFFF in numbers(run(program, WITHOUT_BARRIER, backwards))


@ORDERS
def test_lanes_exchange_and_vote_inside_their_warp(program: Path, backwards: bool) -> None:
    expected = [(thread ^ 5) * 100 + 3 + thread // 32 for thread in range(64)]
    assert numbers(run(program, LANES, backwards)) == expected


@ORDERS
def test_a_barrier_that_not_all_threads_reach_ends_the_process(program: Path, backwards: bool) -> None:
    done = run(program, DIVERGED, backwards)
    assert done.returncode != 0
    assert "40 threads of block 0 wait at a barrier that the others do not reach" in done.stderr


@ORDERS
def test_writing_past_the_shared_memory_ends_the_process(program: Path, backwards: bool) -> None:
    done = run(program, OVERRUN, backwards)
    assert done.returncode != 0
    assert "block 0 wrote past its 256 bytes of shared memory" in done.stderr
