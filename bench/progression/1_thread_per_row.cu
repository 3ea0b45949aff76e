// Step 1: a thread per row.
//
// Adds    nothing yet: the formula, written down.
// Moves   2b per logit (b: bytes of an element), once for the maximum and once for the sum, and up
//         to 32 bytes for each of them where the cache forgets a sector before it is used up.
// Bound   latency: neighbouring threads read different rows, and each waits for every element.
// Gain    -
// Time    not yet measured
#include "harness.cuh"

const Step kStep{/*gradient=*/false, /*passes=*/2};

constexpr int kThreads = 128;

template <class T>
__global__ void forward_kernel(Problem<T> problem) {
  const int64_t row = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (row >= problem.rows) return;
  const T* const logits = problem.logits + row * problem.cols;
  float max = -INFINITY, sum = 0;
  for (int col = 0; col < problem.cols; ++col) max = fmaxf(max, float(logits[col]));
  for (int col = 0; col < problem.cols; ++col) sum += exp_nonpos(float(logits[col]) - max);
  problem.loss[row] = max + log_positive(sum) - float(logits[problem.target[row]]);
}

template <class T>
cudaError_t run(const Problem<T>& problem, cudaStream_t stream) {
  const Grid grid{blocks_for(problem, kThreads), kThreads};
  return launch(forward_kernel<T>, grid, stream, problem);
}
