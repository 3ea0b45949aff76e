"""`torch.ops.torchce.linear_cross_entropy`: a linear layer's loss with one chunk of logits alive.

Rows are taken in chunks: a GEMM writes the chunk's logits, the one-pass kernel turns them into
their gradient where they lie, two GEMMs bring it to `input` and `linear_weight`. All GEMMs are the
library's. Registered as one operator so that torch.compile and torch.export see one node, and
memory stays as planned here.

Work     6 N D V operations for loss and gradients (2 N D V for the loss alone, 8 N D V where the
         gradients wait for the backward pass).
Memory   beyond inputs and gradients: one chunk of logits, and `linear_weight`'s gradient in
         `accumulate_dtype` where that is not its own dtype.
"""

from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from . import _ops
from .arguments import MEAN, NONE

# What a chunk costs beside its GEMMs (6 rows D V operations) does not depend on its rows: reading
# linear_weight (a CPU's GEMM also packs it anew), and adding to its gradient in `accumulate_dtype`.
# Enough rows make that small; below, a share of all rows still saves most of the memory.
# CPU (two cores, AMD EPYC): 2048 x 512 x 32000 float32 takes, as a multiple of the bare GEMMs, 1.37
# with 128 rows, 1.19 with 256, 1.10 with 512, 1.09 with 1024. 64 rows in chunks of 16 take three
# times as long as in one. CUDA: not yet measured; by bytes, 4096 rows cost 6 %.
_CPU_BOUND = (4, 512, 128 << 20)
_CUDA_BOUND = (2, 4096, 2 << 30)
_TILE_ROWS = 128  # of a GEMM: chunks of some of them are whole multiples; not measured
# Of linear_weight or of its gradient, in float32, where a dtype is converted on the way. On a CPU
# the slice stays in cache: bfloat16, 2048 x 512 x 32000: 1.09 of the bare GEMMs, 1.14 with 8 MiB.
# On a CUDA device the GEMM of a slice has to fill the device: 64 MiB are 4096 rows at D = 4096, a
# thousand tiles of 128 x 128 for a hundred multiprocessors, where 2 MiB are 32. Not yet measured.
_CPU_SLICE_BYTES = 2 << 20
_CUDA_SLICE_BYTES = 64 << 20
# Each row of a chunk begins at a multiple of so many bytes: with a vocabulary like 50257 a GEMM
# could otherwise neither load rows in vectors nor copy them asynchronously. On a CPU 4096 x 256 x
# 50257 float32 takes 0.95 of the bare GEMMs' time, and 1.13 without. CUDA: not yet measured.
_ROW_ALIGNMENT = 64


def default_chunk_rows(num_rows: int, features: int, row_bytes: int, on_cpu: bool) -> int:
    """Rows of logits that are alive at a time, of `row_bytes` each; chunks are of about one size.

    An eighth of all rows; or up to 512 where that is at most a quarter of them (on a CUDA device
    4096, and half of them); or so many that a chunk is half as large as `linear_weight`, beside
    which it hardly counts. Rounded up to a multiple of 16, or of 128 from 1024 on; in any case at
    most 128 MiB of logits (2 GiB).
    """
    share, enough, most_bytes = _CPU_BOUND if on_cpu else _CUDA_BOUND
    rows = max(_ceil_div(num_rows, 8), min(_ceil_div(num_rows, share), enough), features // 2)
    rows = max(1, min(rows, most_bytes // max(row_bytes, 1)))
    rows = _ceil_div(num_rows, _ceil_div(num_rows, rows)) if num_rows > 0 else 1
    multiple = _TILE_ROWS if rows >= 8 * _TILE_ROWS else 16
    rounded = _ceil_div(rows, multiple) * multiple
    return rounded if rounded * row_bytes <= most_bytes else rows


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def _gemm_dtype(dtype: torch.dtype, on_cpu: bool) -> torch.dtype:
    """The dtype to multiply in: float32 where a CPU only emulates the 16-bit one, which is slower
    than float32 by a factor."""
    if not on_cpu or dtype not in (torch.bfloat16, torch.float16):
        return dtype
    return dtype if _cpu_multiplies(dtype) else torch.float32


@cache
def _cpu_multiplies(dtype: torch.dtype) -> bool:
    """By the processor's flags, which older versions of torch do not tell; not off Linux."""
    flags = {
        torch.bfloat16: {"avx512_bf16", "amx_bf16", "bf16"},
        torch.float16: {"avx512_fp16", "amx_fp16"},
    }
    try:
        words = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False
    return not flags[dtype].isdisjoint(words)


class _Projection:
    """``hidden @ linear_weight.T + linear_bias``, and back.

    On a CPU a weight of another dtype than the GEMM's is converted slice by slice, since a whole
    copy could outweigh the chunk; on a CUDA device as a whole, once.
    """

    def __init__(self, linear_weight: Tensor, linear_bias: Tensor | None, dtype: torch.dtype):
        if not linear_weight.is_cpu:
            linear_weight = linear_weight.to(dtype)
        self.weight = linear_weight
        self.bias = None if linear_bias is None else linear_bias.to(dtype)
        self.dtype = dtype
        self.slices = _slices(linear_weight, whole=linear_weight.dtype == dtype)

    def logits(self, hidden: Tensor, out: Tensor) -> None:
        for part in self.slices:
            weight = self.weight[part].to(self.dtype)
            if self.bias is None:
                torch.mm(hidden, weight.t(), out=out[:, part])
            else:
                torch.addmm(self.bias[part], hidden, weight.t(), out=out[:, part])

    def grad_hidden(self, grad_logits: Tensor) -> Tensor:
        first, *rest = self.slices
        grad = torch.mm(grad_logits[:, first], self.weight[first].to(self.dtype))
        for part in rest:
            grad.addmm_(grad_logits[:, part], self.weight[part].to(self.dtype))
        return grad


class _WeightGradient:
    """The sum over chunks of ``grad_logits.T @ hidden``: added by the GEMM itself where it can."""

    def __init__(self, linear_weight: Tensor, accumulate_dtype: torch.dtype):
        self.total = torch.empty(
            linear_weight.shape, dtype=accumulate_dtype, device=linear_weight.device
        )
        self.beta = 0  # what is there is kept from the second chunk on

    def add(self, grad_logits: Tensor, hidden: Tensor) -> None:
        total = self.total
        if total.dtype == hidden.dtype:
            total.addmm_(grad_logits.t(), hidden, beta=self.beta)
        elif hidden.is_cuda and _gemm_adds_wider(hidden.dtype, total.dtype, hidden.device):
            _addmm_wider_(total, grad_logits.t(), hidden, self.beta)
        else:
            for part in _slices(total):
                product = torch.mm(grad_logits[:, part].t(), hidden)
                if self.beta == 0:
                    total[part] = product
                else:
                    total[part] += product
        self.beta = 1


def _slices(matrix: Tensor, whole: bool = False) -> list[slice]:
    """Ranges of rows that make a slice, at least one."""
    rows = matrix.shape[0]
    slice_bytes = _CPU_SLICE_BYTES if matrix.is_cpu else _CUDA_SLICE_BYTES
    step = rows if whole else slice_bytes // (4 * max(matrix.shape[1], 1))
    step = max(step, 1)
    return [slice(begin, min(begin + step, rows)) for begin in range(0, max(rows, 1), step)]


def _addmm_wider_(total: Tensor, a: Tensor, b: Tensor, beta: int) -> None:
    torch.ops.aten.addmm.dtype_out(total, a, b, total.dtype, beta=beta, alpha=1, out=total)


@cache
def _gemm_adds_wider(dtype: torch.dtype, wider: torch.dtype, device: torch.device) -> bool:
    """Whether this torch's GEMM adds 16-bit products to a float32 matrix; older ones refuse."""
    if wider != torch.float32:
        return False
    try:
        ones = torch.ones(8, 8, dtype=dtype, device=device)
        _addmm_wider_(ones.float(), ones, ones, beta=1)
    except RuntimeError:
        return False
    return True


def _rows_of_chunks(target: Tensor, ignore_index: int, step: int):
    """Which rows each chunk takes, as slices; or as indices that leave ignored rows out.

    Leaving rows out needs their number on the host, so it is done on the CPU only. There is always
    a chunk, though it be empty: it gives the loss of no rows, and checks its arguments.
    """
    num_rows = target.shape[0]
    if target.is_cpu and target.dim() == 1 and not target.is_floating_point():
        counted = target.to(torch.int64) != ignore_index
        if not counted.all():
            return counted.nonzero().flatten().split(step)
    return [slice(begin, begin + step) for begin in range(0, max(num_rows, 1), step)]


def positions_of(target: Tensor) -> tuple[int, ...]:
    """d1, ..., dk of class indices (N, d1, ...) or probabilities (N, C, d1, ...)."""
    return target.shape[2:] if target.is_floating_point() else target.shape[1:]


def _linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    normalizer: Tensor | None = None,
    grad_loss: Tensor | None = None,
    *,
    num_classes: int,
    wanted: list[bool],
    compute_dtype: torch.dtype,
    accumulate_dtype: torch.dtype,
    chunk_rows: int | None = None,
    ignore_index: int = -100,
    reduction: int = MEAN,
    **options,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    options.update(ignore_index=ignore_index, reduction=reduction)
    dtype = _gemm_dtype(compute_dtype, input.is_cpu)
    num_rows, num_outputs = input.shape[0], linear_weight.shape[0]
    positions = positions_of(target)
    row_bytes = _ceil_div(num_outputs * dtype.itemsize, _ROW_ALIGNMENT) * _ROW_ALIGNMENT
    if chunk_rows is None:
        chunk_rows = default_chunk_rows(num_rows, input.shape[-1], row_bytes, input.is_cpu)
    chunk_rows = max(1, min(chunk_rows, num_rows))

    with torch.no_grad(), torch.autocast(input.device.type, enabled=False):
        memory = input.new_empty((chunk_rows, row_bytes // dtype.itemsize), dtype=dtype)
        memory = memory[:, :num_outputs]
        shape_only = memory.new_empty(()).expand(num_rows, num_classes, *positions)
        divisor = _ops.divisor(shape_only, target, weight, normalizer, **options)
        if reduction == MEAN and normalizer is None:
            normalizer = divisor.to(torch.float64)

        wants_input, wants_weight, wants_bias = wanted
        projection = _Projection(linear_weight, linear_bias, dtype)
        loss = divisor.new_zeros((num_rows, *positions) if reduction == NONE else ())
        total = loss if reduction == NONE else loss.to(torch.float64)
        grad_input = input.new_zeros(input.shape if wants_input else 0)
        grad_weight = _WeightGradient(
            linear_weight if wants_weight else input.new_empty((0, 0)), accumulate_dtype
        )
        grad_bias = divisor.new_zeros(num_outputs if wants_bias else 0)

        of_chunks = options | {"targets_seen": True}
        for rows in _rows_of_chunks(target, ignore_index, chunk_rows):
            hidden = input[rows].to(dtype)
            flat = memory[: hidden.shape[0]]
            projection.logits(hidden, out=flat)
            logits = flat.view(hidden.shape[0], num_classes, *positions)
            if not any(wanted):
                chunk_loss, _ = _ops.forward(logits, target[rows], weight, normalizer, **of_chunks)
            elif grad_loss is None:
                chunk_loss = _ops.forward_backward_(
                    logits, target[rows], weight, normalizer, **of_chunks
                )
            else:
                chunk_loss, state = _ops.forward(
                    logits, target[rows], weight, normalizer, **of_chunks
                )
                grad_rows = grad_loss[rows] if reduction == NONE else grad_loss
                _ops.backward_(grad_rows, logits, target[rows], state, weight, **options)
            if reduction == NONE:
                total[rows] = chunk_loss
            else:
                total += chunk_loss
            if wants_bias:
                grad_bias += flat.sum(0, dtype=grad_bias.dtype)
            if wants_input:
                grad_input[rows] = projection.grad_hidden(flat).to(input.dtype)
            if wants_weight:
                grad_weight.add(flat, hidden)

    return (
        total.to(loss.dtype),
        grad_input,
        grad_weight.total.to(linear_weight.dtype),
        grad_bias.to(input.dtype if linear_bias is None else linear_bias.dtype),
    )


_library = torch.library.Library("torchce", "FRAGMENT")
_options = str(_ops.divisor._schema).partition("*, ")[2].partition(")")[0]  # those of a problem
_library.define(
    "linear_cross_entropy(Tensor input, Tensor linear_weight, Tensor target, "
    "Tensor? linear_bias=None, Tensor? weight=None, Tensor? normalizer=None, "
    "Tensor? grad_loss=None, *, SymInt num_classes, bool[3] wanted, ScalarType compute_dtype, "
    f"ScalarType accumulate_dtype, SymInt? chunk_rows=None, {_options}) "
    "-> (Tensor loss, Tensor grad_input, Tensor grad_linear_weight, Tensor grad_linear_bias)"
)
_library.impl("linear_cross_entropy", _linear_cross_entropy, "CPU")
_library.impl("linear_cross_entropy", _linear_cross_entropy, "CUDA")


@torch.library.register_fake("torchce::linear_cross_entropy", lib=_library)
def _(
    input,
    linear_weight,
    target,
    linear_bias=None,
    weight=None,
    normalizer=None,
    grad_loss=None,
    *,
    wanted,
    compute_dtype,
    reduction=MEAN,
    **options,
):
    positions = positions_of(target)
    loss_shape = (input.shape[0], *positions) if reduction == NONE else ()
    bias_dtype = input.dtype if linear_bias is None else linear_bias.dtype
    return (
        input.new_empty(loss_shape, dtype=_ops.acc_dtype(compute_dtype)),
        input.new_empty(input.shape if wanted[0] else 0),
        linear_weight.new_empty(linear_weight.shape if wanted[1] else (0, 0)),
        input.new_empty(linear_weight.shape[0] if wanted[2] else 0, dtype=bias_dtype),
    )


linear_cross_entropy = torch.ops.torchce.linear_cross_entropy.default
