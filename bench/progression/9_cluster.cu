// Step 9: the row spread over the shared memory of a cluster of blocks (-arch=sm_90 or later).
//
// Adds    up to 8 blocks share a row, 64 KiB each where that is enough; each reads the sums of the
//         others in their shared memory.
// Moves   2b per logit: read, write.
// Bound   device memory. Three blocks fit on a multiprocessor: one loads while another stores.
// Gain    none by the bytes where step 8 has room for two blocks; 1.5 where the row did not fit and
//         step 7 was all there was.
// Time    not yet measured
#include "queue.cuh"

const Step kStep{/*gradient=*/true, /*passes=*/2};

constexpr int kThreads = 512;
constexpr size_t kBlockBytes = 64 << 10;
constexpr unsigned kMostBlocks = 8;  // that every device with clusters can schedule

__device__ Sums merge_cluster(Sums sums) {
  Sums* const mine = reinterpret_cast<Sums*>(dynamic_shared());
  sums = merge_block(sums);
  if (threadIdx.x == 0) *mine = sums;
  cluster_arrive();  // all blocks' sums are there before any is read
  cluster_wait();
  const unsigned lane = threadIdx.x % 32;
  return merge_warp(lane < cluster_size() ? *cluster_shared(mine, lane) : Sums::none());
}

template <class T>
__global__ void __launch_bounds__(kThreads) one_pass_kernel(Problem<T> problem) {
  const int64_t index = blockIdx.x / cluster_size();
  const PacketRow<T> row(problem, index);
  const int first = cluster_rank() * kThreads + threadIdx.x, step = cluster_size() * kThreads;
  uint4* const kept = reinterpret_cast<uint4*>(dynamic_shared()) + 1;  // the first holds the sums
  const auto slot = [&](int i) { return kept + i / step * kThreads + threadIdx.x; };

  for (int i = first; i < row.count(); i += step) fetch(row, i, slot(i));
  copy_commit();
  copy_wait<0>();  // no barrier: each thread looks at its own packets only

  Sums sums = Sums::none();
  for (int i = first; i < row.count(); i += step) {
    sums = add(sums, bit_cast<Packet<T>>(*slot(i)));
  }
  const float lse = log_sum_exp(merge_cluster(sums));
  cluster_arrive();  // a block must not exit while others read its sums: see the end
  const int target = problem.target[index];
  if (cluster_rank() == 0 && threadIdx.x == 0) {
    problem.loss[index] = lse - float(row.logits[target]);
  }

  T* const grad = problem.grad + index * problem.cols;
  for (int i = first; i < row.count(); i += step) {
    row.store(grad, i, gradient(bit_cast<Packet<T>>(*slot(i)), row.column(i), lse, target));
  }
  cluster_wait();
}

template <class T>
cudaError_t run(const Problem<T>& problem, cudaStream_t stream) {
  const size_t row_bytes = problem.cols * sizeof(T) + 32;  // a packet is peeled at either end
  unsigned cluster = 1;
  while (cluster < kMostBlocks && cluster * kBlockBytes < row_bytes) cluster *= 2;
  const size_t turn_bytes = size_t{16} * kThreads;  // a packet for each thread of a block
  const size_t turns = (row_bytes + cluster * turn_bytes - 1) / (cluster * turn_bytes);
  const Grid grid{blocks_for(problem, 1) * cluster, kThreads, cluster, 16 + turns * turn_bytes};
  return launch(one_pass_kernel<T>, grid, stream, problem);
}
