// Step 6: asynchronous copies to shared memory (queue.cuh).
//
// Adds    a thread asks for its next 7 packets before it works on one. They pass through no
//         register, so none is taken up by waiting.
// Moves   b per logit.
// Bound   device memory: 28 KiB under way per block.
// Gain    none by the bytes: 7 times as many of them are under way as in step 5.
// Time    not yet measured
#include "queue.cuh"

const Step kStep{/*gradient=*/false, /*passes=*/1};

constexpr int kThreads = 256;

template <class T>
__global__ void forward_kernel(Problem<T> problem) {
  const int64_t index = blockIdx.x;
  const PacketRow<T> row(problem, index);

  Sums sums = Sums::none();
  walk(row, [&](int, const Packet<T>& packet) { sums = add(sums, packet); });
  sums = merge_block(sums);
  if (threadIdx.x != 0) return;
  problem.loss[index] = log_sum_exp(sums) - float(row.logits[problem.target[index]]);
}

template <class T>
cudaError_t run(const Problem<T>& problem, cudaStream_t stream) {
  const Grid grid{blocks_for(problem, 1), kThreads, 1, queue_bytes(kThreads)};
  return launch(forward_kernel<T>, grid, stream, problem);
}
