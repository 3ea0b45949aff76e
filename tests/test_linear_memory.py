"""Memory of `linear_cross_entropy` beyond its inputs, measured: one chunk, gradients, nothing else.

As in `test_memory.py` a process of its own measures (`python tests/test_linear_memory.py`).
"""

import json
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from test_memory import MEBIBYTE, RETURN_FREED, growth, pytestmark  # noqa: F401

import torchce_cuda as ce

ROWS, FEATURES, CLASSES = 4096, 512, 32_000
CHUNK_ROWS = 512  # by default, at this shape
LOGITS = 4 * ROWS * CLASSES
CHUNK = 4 * CHUNK_ROWS * CLASSES
GRADIENTS = 4 * FEATURES * (ROWS + CLASSES)
SLACK = 16 * MEBIBYTE  # a chunk's gradient of hidden, what the GEMM packs, pages at ends of blocks


def separate(hidden, head, target):
    return F.cross_entropy(F.linear(hidden, head), target)


def main() -> None:
    """Prints, as JSON, the growth in bytes of each measurement."""
    torch.set_num_threads(2)
    hidden = torch.randn(ROWS, FEATURES, requires_grad=True)
    head = (0.05 * torch.randn(CLASSES, FEATURES)).requires_grad_()
    target = torch.randint(CLASSES, (ROWS,))

    def step(loss, **arguments):
        def run():
            loss(hidden, head, target, **arguments).backward()
            grads = hidden.grad, head.grad
            hidden.grad = head.grad = None
            return grads

        return run

    few = slice(0, 64)
    ce.linear_cross_entropy(hidden[few], head, target[few]).backward()  # threads and their buffers
    hidden.grad = head.grad = None
    results = {
        "step": growth(step(ce.linear_cross_entropy)),
        "step, few rows": growth(step(ce.linear_cross_entropy, chunk_rows=64)),
        "step, deferred": growth(
            step(lambda *tensors: ce.linear_cross_entropy(*tensors, reduction="none").sum())
        ),
        "separate step": growth(step(separate)),
    }
    with torch.no_grad():
        results["loss"] = growth(lambda: ce.linear_cross_entropy(hidden, head, target))
        results["separate loss"] = growth(lambda: separate(hidden, head, target))
    print(json.dumps(results))


@pytest.fixture(scope="module")
def measured() -> dict[str, int]:
    finished = subprocess.run(
        [sys.executable, __file__], capture_output=True, text=True, env=os.environ | RETURN_FREED
    )
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout)


@pytest.mark.slow
def test_peak(measured: dict[str, int]) -> None:
    assert measured["loss"] <= CHUNK + SLACK
    assert measured["step"] <= CHUNK + GRADIENTS + SLACK
    assert measured["step, deferred"] <= CHUNK + GRADIENTS + SLACK
    assert measured["step, few rows"] <= CHUNK // 8 + GRADIENTS + SLACK
    # what the measurement has to find
    assert measured["separate loss"] >= LOGITS
    assert measured["separate step"] >= 2 * LOGITS + GRADIENTS
    assert measured["step"] <= measured["separate step"] / 6


if __name__ == "__main__":
    main()
