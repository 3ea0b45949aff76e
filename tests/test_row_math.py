"""The scalar mathematics through the hooks of `_C`, and each instruction set it is compiled for."""

import math
import os
import subprocess
import sys

import pytest

from torchce_cuda import _C

EPS = 2.0**-24  # half a unit in the last place of 1 in float32
PROBE = """
import torch, torch.nn.functional as F, torchce_cuda as ce
from torchce_cuda import _C
torch.manual_seed(0)
for shape in ((5, 2500), (70, 10), (2, 21, 40)):
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        x = (3 * torch.randn(shape)).to(dtype).requires_grad_()
        y = torch.randint(shape[1], (shape[0], *shape[2:]))
        for options in ({}, {"label_smoothing": 0.1}):
            loss = ce.cross_entropy(x, y, **options)
            expected = F.cross_entropy(x.double(), y, **options)
            torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
            grads = [torch.autograd.grad(z, x, retain_graph=True)[0] for z in (loss, expected)]
            torch.testing.assert_close(*grads)
        ce.cross_entropy(x, y, gamma=2.0, label_smoothing=0.1).backward()
        assert x.grad.isfinite().all() and x.grad.abs().sum() > 0
print(_C.build_info()["isa"])
"""


@pytest.mark.parametrize("isa", ["avx2", "baseline"])
def test_lesser_instruction_sets(isa: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", PROBE],
        env={**os.environ, "TORCHCE_ISA": isa},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() in (isa, "baseline")  # a machine may have no more than the baseline


def test_elementary_functions() -> None:
    for i in range(1, 2000):
        x = 87.0 * i / 2000
        assert abs(_C.exp_nonpos_f32(-x) / math.exp(-x) - 1) < (3 + x) * EPS  # x itself is rounded
        assert abs(_C.exp_nonpos_f64(-x) / math.exp(-x) - 1) < 4e-16
        assert abs(_C.exp_of_sum_f32(-x) / math.exp(-x) - 1) < 1.1e-7 + (3 + 2 * x) * EPS
        assert abs(_C.exp_nonpos_coarse_f32(-x) / math.exp(-x) - 1) < 5.4e-6 + (3 + 2 * x) * EPS
        small = x / 87.0
        for log1p in (_C.log1p_nonneg_f32, _C.log1p_unit_f32):
            assert abs(log1p(small) / math.log1p(small) - 1) < 6 * EPS
        assert abs(_C.tanh_f32(x / 10) / math.tanh(x / 10) - 1) < 6 * EPS
        assert abs(_C.one_minus_exp_f32(small) / -math.expm1(-small) - 1) < 6 * EPS
        assert abs(_C.log_positive_f32(small) - math.log(small)) < 6 * EPS * (1 - math.log(small))


def test_elementary_limits() -> None:
    for exp in (
        _C.exp_nonpos_f32,
        _C.exp_nonpos_f64,
        _C.exp_of_sum_f32,
        _C.exp_nonpos_coarse_f32,
    ):
        assert exp(0.0) == 1.0
        assert exp(-math.inf) == 0.0
        assert math.isnan(exp(math.nan))
    assert math.isnan(_C.log_positive_f32(math.nan))
    for log1p in (_C.log1p_nonneg_f32, _C.log1p_unit_f32):
        assert log1p(0.0) == 0.0
        assert math.isnan(log1p(math.nan))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 3.7])
def test_a_row_whose_target_is_almost_certain(gamma: float) -> None:
    """1 - p = 1e-12: in float32 `1 - softmax` is 0, the row's loss and gradient are not."""
    rest = 1e-12
    row = _C.finish_index_row_f32(0.0, rest, 0.0, 1.0, gamma, 0.0)
    assert math.isclose(row["loss"], rest**gamma * rest, rel_tol=1e-4, abs_tol=1e-38)
    expected = -(rest ** (gamma + 1)) * (1 + gamma)
    assert math.isclose(row["target_grad"], expected, rel_tol=1e-4, abs_tol=1e-38)
