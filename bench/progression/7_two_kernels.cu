// Step 7: loss and gradient by two kernels.
//
// Adds    the gradient: step 6 leaves the logarithm of each row's sum, a second kernel reads the
//         logits again.
// Moves   3b per logit: read, read, write.
// Bound   device memory.
// Gain    - (the first step of this work)
// Time    not yet measured
#include "queue.cuh"

const Step kStep{/*gradient=*/true, /*passes=*/3};

constexpr int kThreads = 256;

template <class T>
__global__ void forward_kernel(Problem<T> problem) {
  const int64_t index = blockIdx.x;
  const PacketRow<T> row(problem, index);

  Sums sums = Sums::none();
  walk(row, [&](int, const Packet<T>& packet) { sums = add(sums, packet); });
  sums = merge_block(sums);
  if (threadIdx.x != 0) return;
  problem.lse[index] = log_sum_exp(sums);
  problem.loss[index] = problem.lse[index] - float(row.logits[problem.target[index]]);
}

template <class T>
__global__ void backward_kernel(Problem<T> problem) {
  const int64_t index = blockIdx.x;
  const PacketRow<T> row(problem, index);
  const float lse = problem.lse[index];
  const int target = problem.target[index];
  T* const grad = problem.grad + index * problem.cols;
  walk(row, [&](int i, const Packet<T>& packet) {
    row.store(grad, i, gradient(packet, row.column(i), lse, target));
  });
}

template <class T>
cudaError_t run(const Problem<T>& problem, cudaStream_t stream) {
  const Grid grid{blocks_for(problem, 1), kThreads, 1, queue_bytes(kThreads)};
  const cudaError_t error = launch(forward_kernel<T>, grid, stream, problem);
  if (error != cudaSuccess) return error;
  return launch(backward_kernel<T>, grid, stream, problem);
}
