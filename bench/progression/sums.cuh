// The sums of some of a row's logits, and their merge over the threads of a warp and of a block.
// Step 3 brings in the merge, step 5 the block.
#pragma once

#include "harness.cuh"

constexpr unsigned kAllLanes = 0xffffffff;

struct Sums {
  float max, sum;  // sum: of exp(z - max)

  __device__ static Sums none() { return {-INFINITY, 0}; }
};

__device__ inline Sums merge(Sums a, Sums b) {
  const float max = fmaxf(a.max, b.max);
  if (max == -INFINITY) return Sums::none();  // exp(-inf - -inf) would be NaN
  return {max, a.sum * exp_nonpos(a.max - max) + b.sum * exp_nonpos(b.max - max)};
}

__device__ inline float log_sum_exp(Sums sums) { return sums.max + log_positive(sums.sum); }

// The lower lane's sums are the left operand, so that all lanes get the same bits.
__device__ inline Sums merge_warp(Sums sums) {
  for (int distance = 1; distance < 32; distance *= 2) {
    const Sums other{__shfl_xor_sync(kAllLanes, sums.max, distance),
                     __shfl_xor_sync(kAllLanes, sums.sum, distance)};
    sums = threadIdx.x & distance ? merge(other, sums) : merge(sums, other);
  }
  return sums;
}

// Every warp merges what all warps left behind, so one barrier is enough. Once in a kernel: a
// second call would write while another warp still reads.
__device__ inline Sums merge_block(Sums sums) {
  __shared__ Sums of_warp[32];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
  sums = merge_warp(sums);
  if (lane == 0) of_warp[warp] = sums;
  __syncthreads();
  return merge_warp(lane < warps ? of_warp[lane] : Sums::none());
}
