"""The kernels' resources, without a GPU: the compiler says what each of them takes."""

import shutil
from pathlib import Path

import pytest
import resource_gate as gate

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")

PLANTED = """
__global__ void modest(const float* x, float* y) { y[threadIdx.x] = 2 * x[threadIdx.x]; }

__global__ void __launch_bounds__(1024) spilling(const float* x, float* y) {
  float values[128];
#pragma unroll
  for (int i = 0; i < 128; ++i) values[i] = x[i * 1024 + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 128; ++i) y[i * 1024 + threadIdx.x] = values[i] * values[127 - i];
}

__global__ void indexed(const float* x, float* y, int k) {
  float values[64];
  for (int i = 0; i < 64; ++i) values[i * k % 64] = x[i];
  y[threadIdx.x] = values[k];
}

template <int kFloats>
__global__ void sharing(const float* x, float* y) {
  __shared__ float s[kFloats];
  s[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = s[threadIdx.x ^ 1];
}
template __global__ void sharing<8192>(const float*, float*);
"""
MODEST = {"threads": 256, "registers": 32, "occupancy": 1.0}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> list[gate.Kernel]:
    source = tmp_path_factory.mktemp("planted") / "planted.cu"
    source.write_text(PLANTED)
    return gate.resources([source], [90])


def test_the_kernels_keep_to_their_budget() -> None:
    """As they were recorded."""
    record, kernels = gate.read_record()
    assert record["sources"] == gate.sources_digest(), "python tests/resource_gate.py --write"
    assert {kernel.architecture for kernel in kernels} == set(gate.ARCHITECTURES)
    assert gate.violations(kernels, gate.read_budget()) == []


@pytest.mark.slow
def test_the_record_is_of_these_kernels() -> None:
    """As far as a file that compiles in seconds can say, and another compiler at all."""
    kernels = gate.resources([gate.ROOT / "csrc" / "cuda" / "backward.cu"], [90])
    assert len(kernels) == 12  # of four dtypes and three kinds of terms
    budget = gate.read_budget()
    for kernel in kernels:
        assert gate.kernel_violations(kernel, budget[gate.rule_for(kernel, budget)]) == []
    record, recorded = gate.read_record()
    if record["nvcc"] == gate.nvcc_version().splitlines()[-1]:
        assert set(kernels) <= set(recorded)


def test_a_record_comes_back(planted: list[gate.Kernel], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(gate, "RECORD", tmp_path / "record.json")
    gate.write_record(planted)
    record, kernels = gate.read_record(gate.RECORD)
    assert kernels == sorted(planted)
    assert record == {
        "nvcc": gate.nvcc_version().splitlines()[-1],
        "sources": gate.sources_digest(),
    }


def test_the_digest_follows_the_code(tmp_path: Path, monkeypatch) -> None:
    """Not its comments."""
    source = tmp_path / "kernel.cu"
    monkeypatch.setattr(gate, "kernel_files", lambda: [source])
    digests = []
    for text in ("int a = 1;", "int  a = 1; // one", "int a = 2;"):
        source.write_text(text)
        digests.append(gate.sources_digest())
    assert digests[0] == digests[1] != digests[2]


def test_the_gate_sees_what_a_kernel_takes(planted: list[gate.Kernel]) -> None:
    kernels = {kernel.name: kernel for kernel in planted}
    assert set(kernels) == {"modest", "spilling", "indexed", "sharing<8192>"}
    assert kernels["modest"].registers > 0
    assert kernels["modest"][3:] == (0, 0, 0)
    assert kernels["spilling"].spills > 0 and kernels["spilling"].registers <= 64
    assert kernels["indexed"].stack >= 256 and kernels["indexed"].spills == 0
    assert kernels["sharing<8192>"].static_shared == 32768


def test_the_gate_rejects(planted: list[gate.Kernel]) -> None:
    exceeding = gate.violations(planted, {"": MODEST})
    for name, resource in {
        "spilling": "spills",
        "indexed": "stack",
        "sharing<8192>": "static_shared",
    }.items():
        assert any(f" {name}: {resource} " in line for line in exceeding), exceeding
    assert not any(" modest: " in line for line in exceeding), exceeding
    few_registers = gate.violations(planted, {"": MODEST | {"registers": 2}})
    assert any(" modest: registers " in line for line in few_registers)


def test_every_kernel_has_a_rule_and_every_rule_a_kernel(planted: list[gate.Kernel]) -> None:
    modest = [kernel for kernel in planted if kernel.name == "modest"]
    assert gate.violations(modest, {"^modest$": MODEST}) == []
    assert gate.violations(modest, {"^modest$": MODEST, "^gone<": MODEST}) == [
        "rule without a kernel: ^gone<"
    ]
    assert gate.violations(modest, {}) == ["sm_90 modest: no rule"]


@pytest.mark.parametrize(
    ("architecture", "registers", "threads", "shared", "expected"),
    [
        (90, 32, 256, 0, 1.0),
        (90, 33, 256, 0, 0.75),  # 40 registers: 6 blocks of 8 warps
        (90, 64, 1024, 0, 0.5),
        (90, 65, 1024, 0, 0.0),  # does not even fit once
        (90, 32, 32, 0, 0.5),  # 32 blocks
        (90, 32, 512, 75 << 10, 0.75),  # 3 times 76 KiB
        (80, 32, 512, 80 << 10, 0.5),
        (120, 32, 512, 0, 1.0),
        (120, 32, 1024, 0, 2 / 3),
    ],
)
def test_occupancy(
    architecture: int, registers: int, threads: int, shared: int, expected: float
) -> None:
    kernel = gate.Kernel("", architecture, registers, 0, 0, 0)
    assert gate.occupancy(kernel, threads, shared) == pytest.approx(expected)


def test_the_table_names_every_kernel(planted: list[gate.Kernel], tmp_path: Path) -> None:
    text = gate.table(planted, {"modest": MODEST})
    for kernel in planted:
        assert kernel.name in text
