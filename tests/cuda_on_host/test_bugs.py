"""Kernels with one mistake each (bugs.cu): is each seen by the builds that should see it?

And kernels without a mistake: is nothing seen there?
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from cuda_on_host.build import HERE, build_host_library, host_environment, why_not

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

ORDERS = ("forward", "reverse", "random")
RUNS = [("plain", order) for order in ORDERS]
RUNS += [("address", "forward"), ("thread", "forward"), ("thread", "random")]
RIGHT, WRONG, FAILED = "right", "wrong", "failed"
RUN_CASES = """
import ctypes, os, sys
library = ctypes.CDLL(sys.argv[1])
library.case_name.restype = ctypes.c_char_p
i = 0
while name := library.case_name(i):
    os.write(2, b"=== %s\\n" % name)
    outcome = library.run_case(i)
    os.write(2, b"=== %s\\n" % [b"right", b"wrong", b"failed"][outcome])
    i += 1
"""


class Result(NamedTuple):
    outcome: str
    report: str


def run_cases(library: Path, kind: str, order: str) -> dict[str, Result]:
    environment = host_environment(kind, halt=False) | {"CUDA_ON_HOST_ORDER": order}
    run = subprocess.run(
        [sys.executable, "-c", RUN_CASES, str(library)],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        timeout=100,
    )
    parts = run.stderr.split("=== ")[1:]
    names, outcomes = parts[::2], parts[1::2]
    assert len(names) == len(outcomes), run.stderr
    return {
        name.split("\n", 1)[0]: Result(outcome.split("\n", 1)[0], name.split("\n", 1)[1])
        for name, outcome in zip(names, outcomes, strict=True)
    }


@pytest.fixture(scope="session")
def results() -> dict[tuple[str, str], dict[str, Result]]:
    libraries = {
        kind: build_host_library([HERE / "bugs.cu"], kind) for kind in dict.fromkeys(dict(RUNS))
    }
    return {run: run_cases(libraries[run[0]], *run) for run in RUNS}


CORRECT = ["tree_sum", "warp_sum", "half_warps", "part_of_a_warp", "copies", "atomics"]
CORRECT += ["cluster_sum", "most_shared_memory"]

# The launch fails, in every build and order, with this message.
FAILS = {
    "barrier_in_a_branch": r"100 threads wait in __syncthreads at .*bugs.cu:\d+, 156 have exited",
    "early_exit": r"200 threads wait in __syncthreads at .*bugs.cu:\d+, 56 have exited",
    "two_barriers": r"other threads of the block are in __syncthreads at .*bugs.cu:\d+",
    "shuffle_in_a_branch": r"waits for lanes 0x\w+, which have exited|exits while other lanes wait",
    "two_shuffles": r"other lanes of mask 0xffffffff are in __shfl_sync .*bugs.cu:\d+",
    "shuffle_from_outside_the_mask": r"__shfl_sync reads lane \d+, which is not in the mask",
    "shuffle_by_a_lane_outside_the_mask": r"lane \d+, which is not in its mask 0x0000ffff",
    "endless_polling": r"endless polling at .*bugs.cu:\d+",
    "missing_cluster_wait": r"exits after cluster_arrive without cluster_wait",
    "cluster_shared_after_exit": r"cluster_shared of block \d, which has exited",
    "one_block_leaves": r"192 threads wait in cluster_wait at .*bugs.cu:\d+, 64 have exited",
    "too_many_threads": r"a block has 1 to 1024 threads",
    "no_blocks": r"a grid has 1 to .* blocks",
    "too_much_shared_memory": r"more dynamic shared memory than a block can have",
    "cluster_too_large": r"a cluster has 1 to 8 blocks",
    "cluster_does_not_divide": r"not a multiple of the cluster",
}
FAILS_AND_RACES = {"cluster_shared_after_exit"}  # some blocks read in time, but only by luck

# TSan names the race; where an order shows it, the values are wrong as well.
RACES = {
    "missing_syncthreads": ORDERS,
    "missing_syncwarp": ("forward", "random"),
    "shared_written_before_all_read": ("forward", "random"),
    "copy_read_by_another_thread": ORDERS,
    "sum_without_atomics": (),
    "missing_cluster_barrier": ORDERS,
    "read_after_exit": ORDERS,
}

# ASan or UBSan names the access.
BAD_ACCESSES = {
    "global_out_of_bounds": r"heap-buffer-overflow .*bugs.cu:\d+ in global_out_of_bounds",
    "static_out_of_bounds": r"bugs.cu:\d+:\d+: runtime error: index 256 out of bounds",
    "dynamic_out_of_bounds": r"heap-buffer-overflow .*bugs.cu:\d+ in dynamic_out_of_bounds",
    "misaligned": r"bugs.cu:\d+:\d+: runtime error: load of misaligned address",
    "read_after_exit": r"use-after-poison .*bugs.cu:\d+ in read_after_exit",
}

# NaN reaches the output, in every build and order.
POISONED = ["static_uninitialised", "dynamic_uninitialised"]
POISONED += ["missing_copy_wait", "missing_copy_commit"]

SANITIZER = re.compile(r"ERROR: AddressSanitizer|WARNING: ThreadSanitizer|runtime error")


def test_every_case_is_expected(results) -> None:
    expected = {*CORRECT, *FAILS, *RACES, *BAD_ACCESSES, *POISONED}
    for found in results.values():
        assert set(found) == expected


@pytest.mark.parametrize("name", CORRECT)
def test_correct_kernels_are_clean(results, name: str) -> None:
    for run in RUNS:
        assert results[run][name] == Result(RIGHT, ""), run


@pytest.mark.parametrize("name", FAILS)
def test_launch_fails(results, name: str) -> None:
    for run in RUNS:
        outcome, report = results[run][name]
        assert outcome == FAILED, run
        assert re.search(FAILS[name], report), (run, report)
        if name not in FAILS_AND_RACES:
            assert not SANITIZER.search(report), (run, report)


@pytest.mark.parametrize("name", RACES)
def test_race(results, name: str) -> None:
    for run in RUNS:
        outcome, report = results[run][name]
        kind, order = run
        if kind == "plain":
            assert outcome == (WRONG if order in RACES[name] else RIGHT), run
        if kind == "thread":
            assert "data race" in report and re.search(rf"{name}.* .*bugs.cu:\d+", report), run


@pytest.mark.parametrize("name", BAD_ACCESSES)
def test_bad_access(results, name: str) -> None:
    assert re.search(BAD_ACCESSES[name], results["address", "forward"][name].report)


@pytest.mark.parametrize("name", POISONED)
def test_poison_reaches_the_output(results, name: str) -> None:
    for run in RUNS:
        outcome, report = results[run][name]
        assert outcome == WRONG, run
        assert not SANITIZER.search(report), (run, report)


def test_random_orders_differ_and_repeat(tmp_path: Path) -> None:
    """The seed decides the order: the same one twice, another one for the next launch."""
    source = tmp_path / "order.cu"
    source.write_text(
        """
        __global__ void number(int* turn, int* y) { y[threadIdx.x] = atomicAdd(turn, 1); }
        extern "C" __attribute__((visibility("default"))) int run(int* turn, int* y) {
          return torchce::cuda::launch(number, {1, 64}, nullptr, turn, y);
        }
        """
    )
    script = """
import ctypes, sys
library = ctypes.CDLL(sys.argv[1])
def run(order, seed=None):
    if seed is not None:
        library.cuda_on_host_set_order(order, seed)
    y = (ctypes.c_int * 64)()
    assert library.run(ctypes.byref(ctypes.c_int()), y) == 0
    return list(y)
assert run(0, 1) == list(range(64))
assert run(1, 1) == list(range(63, -1, -1))
first, second = run(2, 5), run(2)
assert sorted(first) == sorted(second) == list(range(64)) and first != second
assert [run(2, 5), run(2)] == [first, second]
assert library.cuda_on_host_launches() == 6
"""
    library = build_host_library([source])
    subprocess.run([sys.executable, "-c", script, str(library)], env=os.environ, check=True)
