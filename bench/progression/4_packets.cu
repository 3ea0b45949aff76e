// Step 4: packets of 16 bytes (packets.cuh).
//
// Adds    one load instruction moves 8 logits of 2 bytes, whatever the alignment of the row; and
//         the sum is scaled once a packet rather than once a logit.
// Moves   b per logit.
// Bound   bytes under way: 16 a thread, if it waits for each packet before it asks for the next.
// Gain    none by the bytes; an eighth of the loads, and little more than half the exponentials.
// Time    not yet measured
#include "packets.cuh"

const Step kStep{/*gradient=*/false, /*passes=*/1};

constexpr int kThreads = 256;

template <class T>
__global__ void forward_kernel(Problem<T> problem) {
  const int64_t index = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / 32;
  if (index >= problem.rows) return;  // whole warps
  const int lane = threadIdx.x % 32;
  const PacketRow<T> row(problem, index);

  Sums sums = Sums::none();
  for (int i = lane; i < row.count(); i += 32) sums = add(sums, row.load(i));
  sums = merge_warp(sums);
  if (lane != 0) return;
  problem.loss[index] = log_sum_exp(sums) - float(row.logits[problem.target[index]]);
}

template <class T>
cudaError_t run(const Problem<T>& problem, cudaStream_t stream) {
  const Grid grid{blocks_for(problem, kThreads / 32), kThreads};
  return launch(forward_kernel<T>, grid, stream, problem);
}
