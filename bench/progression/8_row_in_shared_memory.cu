// Step 8: loss and gradient by one kernel that keeps the row in shared memory.
//
// Adds    the whole row is under way before any of it is used, and is still there when the
//         gradient needs it.
// Moves   2b per logit: read, write.
// Bound   device memory; and the row must fit: up to 227 KiB. Past 113 KiB a multiprocessor has
//         room for one block, which loads or stores, but not both at the same time.
// Gain    1.5
// Time    not yet measured
#include "queue.cuh"

const Step kStep{/*gradient=*/true, /*passes=*/2};

constexpr int kThreads = 512;

template <class T>
__global__ void __launch_bounds__(kThreads) one_pass_kernel(Problem<T> problem) {
  const int64_t index = blockIdx.x;
  const PacketRow<T> row(problem, index);
  uint4* const kept = reinterpret_cast<uint4*>(dynamic_shared());

  for (int i = threadIdx.x; i < row.count(); i += kThreads) fetch(row, i, kept + i);
  copy_commit();
  copy_wait<0>();  // no barrier: each thread looks at its own packets only

  Sums sums = Sums::none();
  for (int i = threadIdx.x; i < row.count(); i += kThreads) {
    sums = add(sums, bit_cast<Packet<T>>(kept[i]));
  }
  const float lse = log_sum_exp(merge_block(sums));
  const int target = problem.target[index];
  if (threadIdx.x == 0) problem.loss[index] = lse - float(row.logits[target]);

  T* const grad = problem.grad + index * problem.cols;
  for (int i = threadIdx.x; i < row.count(); i += kThreads) {
    row.store(grad, i, gradient(bit_cast<Packet<T>>(kept[i]), row.column(i), lse, target));
  }
}

template <class T>
cudaError_t run(const Problem<T>& problem, cudaStream_t stream) {
  const size_t row_bytes = problem.cols * sizeof(T) + 32;  // a packet is peeled at either end
  return launch(one_pass_kernel<T>, Grid{blocks_for(problem, 1), kThreads, 1, row_bytes}, stream,
                problem);
}
