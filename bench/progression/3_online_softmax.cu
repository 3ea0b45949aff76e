// Step 3: online softmax.
//
// Adds    the sum follows the maximum: when a larger logit comes, what was summed is scaled down.
//         Sums over any two parts of a row merge in the same way, so one pass is enough.
// Moves   b per logit.
// Bound   exponentials: two a logit, of 16 a clock and multiprocessor. For 2-byte logits that is
//         slower than device memory.
// Gain    2 by the bytes; less, as the exponentials have doubled.
// Time    not yet measured
#include "sums.cuh"

const Step kStep{/*gradient=*/false, /*passes=*/1};

constexpr int kThreads = 256;

template <class T>
__global__ void forward_kernel(Problem<T> problem) {
  const int64_t row = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / 32;
  if (row >= problem.rows) return;  // whole warps
  const int lane = threadIdx.x % 32;
  const T* const logits = problem.logits + row * problem.cols;

  Sums sums = Sums::none();
  for (int col = lane; col < problem.cols; col += 32) sums = merge(sums, {float(logits[col]), 1});
  sums = merge_warp(sums);
  if (lane == 0) problem.loss[row] = log_sum_exp(sums) - float(logits[problem.target[row]]);
}

template <class T>
cudaError_t run(const Problem<T>& problem, cudaStream_t stream) {
  const Grid grid{blocks_for(problem, kThreads / 32), kThreads};
  return launch(forward_kernel<T>, grid, stream, problem);
}
