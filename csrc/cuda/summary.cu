// What surrounds the rows: the targets' check, the loss's sum and the mean's divisor.
//
// Moves   rows * (4 + index bytes) in: nothing beside the logits.
// Bound   latency: one launch up to kBlockRows rows, two beyond.
// Why     every sum is taken in double, over blocks of rows that do not depend on the device, and
//         each in a fixed tree: the same bits every time, without an atomic.
#include "device.cuh"
#include "row.cuh"
#include "team.cuh"
#include "totals.cuh"

namespace torchce::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int64_t kBlockRows = 8192;  // 16 rows a thread; not yet measured

template <class Acc>
__device__ Totals sum_rows(const Problem& problem, const Summary& summary, int64_t begin,
                           int64_t end) {
  Totals totals;
#pragma unroll 4
  for (int64_t row = begin + threadIdx.x; row < end; row += kThreads) {
    if (summary.row_loss != nullptr) totals.loss += static_cast<const Acc*>(summary.row_loss)[row];
    if (summary.weigh_targets) {
      const RowTarget target(problem, row);
      if (target.column >= 0) totals.weight += weight_of<Acc>(problem, target.column);
    }
  }
  return totals;
}

template <class Acc>
__global__ void __launch_bounds__(kThreads)
    sum_rows_kernel(const __grid_constant__ Problem problem,
                    const __grid_constant__ Summary summary) {
  Block<double> block(dynamic_shared());
  const int64_t begin = blockIdx.x * kBlockRows, next = begin + kBlockRows;
  const Totals totals = block.reduce(
      sum_rows<Acc>(problem, summary, begin, next < problem.rows ? next : problem.rows),
      AddTotals{});
  if (block.leads()) static_cast<Totals*>(summary.partials)[blockIdx.x] = totals;
}

// One block: over the rows themselves, or over the partial sums where there are any.
template <class Acc>
__global__ void __launch_bounds__(kThreads)
    summary_kernel(const __grid_constant__ Problem problem,
                   const __grid_constant__ Summary summary) {
  Block<double> block(dynamic_shared());
  Totals totals;
  if (summary.row_loss == nullptr && !summary.weigh_targets) {
    // the divisor is known, and there is nothing to add up
  } else if (summary.partials == nullptr) {
    totals = sum_rows<Acc>(problem, summary, 0, problem.rows);
  } else {
    totals = sum_partials(summary.partials, (problem.rows + kBlockRows - 1) / kBlockRows);
  }
  totals = block.reduce(totals, AddTotals{});
  if (!block.leads()) return;
  const double divisor = summary.normalizer != nullptr
                             ? *static_cast<const double*>(summary.normalizer)
                         : summary.weigh_targets ? totals.weight
                                                 : summary.divisor;
  write_quotient<Acc>(totals.loss, divisor, summary.loss, summary.divisor_out);
}

template <class Acc>
cudaError_t launch_summary_of(const Problem& problem, const Summary& summary, cudaStream_t stream) {
  const size_t shared = kExchangeBytes;
  if (summary.partials != nullptr) {
    const unsigned blocks = static_cast<unsigned>((problem.rows + kBlockRows - 1) / kBlockRows);
    const cudaError_t error =
        launch(sum_rows_kernel<Acc>, Grid{blocks, kThreads, 1, shared}, stream, problem, summary);
    if (error != cudaSuccess) return error;
  }
  return launch(summary_kernel<Acc>, Grid{1, kThreads, 1, shared}, stream, problem, summary);
}

struct Larger {
  __device__ __forceinline__ int64_t operator()(int64_t a, int64_t b) const {
    return a < b ? b : a;
  }
};

// One block, so that the first row is named: a synchronisation follows, and speed is no concern.
__global__ void __launch_bounds__(kThreads)
    check_targets_kernel(const __grid_constant__ Problem problem, TargetError* record) {
  Block<double> block(dynamic_shared());
  int64_t rest = 0;  // rows from the first bad one on
  for (int64_t row = threadIdx.x; row < problem.rows && rest == 0; row += kThreads) {
    if (!RowTarget(problem, row).valid) rest = problem.rows - row;
  }
  rest = block.reduce(rest, Larger{});
  if (block.leads() && rest > 0) report(problem, problem.rows - rest, record);
}

}  // namespace

int64_t summary_partials_bytes(int64_t rows) {
  return rows <= kBlockRows ? 0 : (rows + kBlockRows - 1) / kBlockRows * int64_t{sizeof(Totals)};
}

cudaError_t launch_summary(const Problem& problem, const Summary& summary, cudaStream_t stream) {
  return problem.logits.dtype == DType::float64
             ? launch_summary_of<double>(problem, summary, stream)
             : launch_summary_of<float>(problem, summary, stream);
}

cudaError_t launch_check_targets(const Problem& problem, TargetError* record, cudaStream_t stream) {
  return launch(check_targets_kernel, Grid{1, kThreads, 1, kExchangeBytes}, stream, problem,
                record);
}

}  // namespace torchce::cuda
