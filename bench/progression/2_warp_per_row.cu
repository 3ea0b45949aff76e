// Step 2: a warp per row.
//
// Adds    neighbouring threads read neighbouring elements; shuffles bring the row together.
// Moves   2b per logit: a load of a warp is one or a few whole sectors, none fetched in vain.
// Bound   device memory, read twice; and 32 elements under way per warp.
// Gain    from up to 64 bytes per logit to 2b.
// Time    not yet measured
#include "harness.cuh"

const Step kStep{/*gradient=*/false, /*passes=*/2};

constexpr int kThreads = 256;
constexpr unsigned kAllLanes = 0xffffffff;

template <class T>
__global__ void forward_kernel(Problem<T> problem) {
  const int64_t row = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / 32;
  if (row >= problem.rows) return;  // whole warps
  const int lane = threadIdx.x % 32;
  const T* const logits = problem.logits + row * problem.cols;

  float max = -INFINITY, sum = 0;
  for (int col = lane; col < problem.cols; col += 32) max = fmaxf(max, float(logits[col]));
  for (int distance = 16; distance > 0; distance /= 2) {
    max = fmaxf(max, __shfl_xor_sync(kAllLanes, max, distance));
  }
  for (int col = lane; col < problem.cols; col += 32) sum += exp_nonpos(float(logits[col]) - max);
  for (int distance = 16; distance > 0; distance /= 2) {
    sum += __shfl_xor_sync(kAllLanes, sum, distance);
  }
  if (lane != 0) return;
  problem.loss[row] = max + log_positive(sum) - float(logits[problem.target[row]]);
}

template <class T>
cudaError_t run(const Problem<T>& problem, cudaStream_t stream) {
  const Grid grid{blocks_for(problem, kThreads / 32), kThreads};
  return launch(forward_kernel<T>, grid, stream, problem);
}
