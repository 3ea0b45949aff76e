// Step 5: a block per row.
//
// Adds    eight warps share a row and merge their sums in shared memory: an eighth of the rows
//         fill the device, and rows that are worked on at the same time are an eighth as many.
// Moves   b per logit.
// Bound   as step 4: bytes under way.
// Gain    none by the bytes; up to 8 where the rows are so few that step 4 leaves the device idle.
// Time    not yet measured
#include "packets.cuh"

const Step kStep{/*gradient=*/false, /*passes=*/1};

constexpr int kThreads = 256;

template <class T>
__global__ void forward_kernel(Problem<T> problem) {
  const int64_t index = blockIdx.x;
  const PacketRow<T> row(problem, index);

  Sums sums = Sums::none();
  for (int i = threadIdx.x; i < row.count(); i += kThreads) sums = add(sums, row.load(i));
  sums = merge_block(sums);
  if (threadIdx.x != 0) return;
  problem.loss[index] = log_sum_exp(sums) - float(row.logits[problem.target[index]]);
}

template <class T>
cudaError_t run(const Problem<T>& problem, cudaStream_t stream) {
  const Grid grid{blocks_for(problem, 1), kThreads};
  return launch(forward_kernel<T>, grid, stream, problem);
}
