// Kernels with one mistake each, and kernels with none: what does each build report? The host side
// gives every kernel 1, 2, .. 256 and says what the kernel should have made of them.
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <vector>

#include "../../csrc/cuda/device.cuh"  // the host's, by its include guard

namespace {

using namespace torchce::cuda;

constexpr int kCount = 256;  // of numbers, and of threads unless said otherwise
constexpr unsigned kAll = 0xffffffffu;

// ---- kernels without a mistake ----

__global__ void tree_sum(const float* x, float* y) {
  __shared__ float s[kCount];
  const unsigned t = threadIdx.x;
  s[t] = x[t];
  __syncthreads();
  for (unsigned step = kCount / 2; step > 0; step /= 2) {
    if (t < step) s[t] += s[t + step];
    __syncthreads();
  }
  y[t] = s[0];
}

template <class T>
__device__ T block_sum(T value) {
  __shared__ T partial[kCount / 32];
  for (int lanes = 16; lanes > 0; lanes /= 2) value += __shfl_xor_sync(kAll, value, lanes);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
  __syncthreads();
  value = partial[threadIdx.x % (kCount / 32)];
  for (int by = kCount / 64; by > 0; by /= 2) {
    value += __shfl_down_sync(kAll, value, by, kCount / 32);
  }
  return __shfl_sync(kAll, value, 0);
}

__global__ void warp_sum(const float* x, float* y) {
  const float narrow = block_sum(x[threadIdx.x]);
  const double wide = block_sum(static_cast<double>(x[threadIdx.x]));
  y[threadIdx.x] = narrow == static_cast<float>(wide) ? narrow : 0.0f;
}

__global__ void half_warps(const float* x, float* y) {
  const bool low = threadIdx.x % 32 < 16;
  const unsigned mask = low ? 0xffffu : 0xffff0000u;
  float value = __shfl_xor_sync(mask, x[threadIdx.x], 1, 16);
  if (low) {
    value += __popc(__ballot_sync(mask, threadIdx.x % 2)) - 8.0f;
  } else {
    value += __all_sync(mask, 1) - __any_sync(mask, threadIdx.x % 32 == 16);
  }
  y[threadIdx.x] = value;
}

__global__ void part_of_a_warp(const float* x, float* y) {  // 48 threads
  float value = x[threadIdx.x];
  if (threadIdx.x < 32) value += __shfl_down_sync(kAll, value, 31);
  __syncwarp();
  if (__any_sync(kAll, threadIdx.x == 47)) value += 1;
  y[threadIdx.x] = value;
}

// 64 threads, one packet of 4 numbers each
__device__ void copy_packet(const float* x, int offset) {
  auto* shared = reinterpret_cast<uint4*>(dynamic_shared());
  copy_async<16>(shared + offset + threadIdx.x, reinterpret_cast<const uint4*>(x) + threadIdx.x);
}

__global__ void copies(const float* x, float* y) {
  auto* s = reinterpret_cast<float*>(dynamic_shared());
  copy_packet(x, 0);
  copy_commit();
  copy_packet(x, kCount / 4);
  copy_commit();
  copy_wait<1>();
  const float mine = s[4 * threadIdx.x];
  copy_wait<0>();
  __syncthreads();
  for (unsigned i = threadIdx.x; i < kCount; i += blockDim.x) {
    y[i] = s[(i + 1) % kCount] + s[kCount + i] + 0 * mine;
  }
}

__global__ void atomics(const float* x, float* y) {
  __shared__ int lowest, taken;
  if (threadIdx.x == 0) lowest = kCount, taken = 0;
  __syncthreads();
  atomicMin(&lowest, static_cast<int>(x[threadIdx.x]));
  while (atomicCAS(&taken, 0, 1) != 0) {
  }
  __threadfence_block();
  atomicCAS(&taken, 1, 0);
  __syncthreads();
  atomicAdd(y, __ldg(x + threadIdx.x) * lowest);
}

__global__ void cluster_sum(const float* x, float* y) {  // 4 blocks of 64 threads
  __shared__ float partial[2];
  auto* total = reinterpret_cast<float*>(dynamic_shared());
  const unsigned t = threadIdx.x;
  float value = __ldcs(x + blockIdx.x * 64 + t);
  for (int lanes = 16; lanes > 0; lanes /= 2) value += __shfl_xor_sync(kAll, value, lanes);
  if (t % 32 == 0) partial[t / 32] = value;
  __syncthreads();
  if (t == 0) *total = partial[0] + partial[1];
  cluster_arrive();
  cluster_wait();
  float sum = 0;
  for (unsigned rank = 0; rank < cluster_size(); ++rank) sum += *cluster_shared(total, rank);
  cluster_arrive();
  __stcs(y + blockIdx.x * 64 + t, sum);
  cluster_wait();
}

// ---- order between the threads of a block ----

__global__ void missing_syncthreads(const float* x, float* y) {
  __shared__ float s[kCount];
  s[threadIdx.x] = x[threadIdx.x];
  y[threadIdx.x] = s[kCount - 1 - threadIdx.x];
}

__global__ void missing_syncwarp(const float* x, float* y) {
  __shared__ float s[kCount];
  const unsigned t = threadIdx.x;
  s[t] = x[t];
  __syncthreads();
  for (unsigned step = kCount / 2; step > 0; step /= 2) {
    if (t < step) s[t] += s[t + step];
    if (step > 32) __syncthreads();
  }
  __syncthreads();
  y[t] = s[0];
}

__global__ void shared_written_before_all_read(const float* x, float* y) {
  __shared__ float broadcast;
  float sum = 0;
  for (int i = 0; i < 4; ++i) {
    if (threadIdx.x == 0) broadcast = x[i];
    __syncthreads();
    sum += broadcast;
  }
  y[threadIdx.x] = sum;
}

__global__ void sum_without_atomics(const float* x, float* y) { y[0] += x[threadIdx.x]; }

__global__ void copy_read_by_another_thread(const float* x, float* y) {
  auto* s = reinterpret_cast<float*>(dynamic_shared());
  copy_packet(x, 0);
  copy_commit();
  copy_wait<0>();
  for (unsigned i = threadIdx.x; i < kCount; i += blockDim.x) y[i] = s[i];
}

// ---- barriers and collectives that not all reach ----

__global__ void barrier_in_a_branch(const float* x, float* y) {
  if (threadIdx.x < 100) __syncthreads();
  y[threadIdx.x] = x[threadIdx.x];
}

__global__ void early_exit(const float* x, float* y) {
  if (threadIdx.x >= 200) return;
  __syncthreads();
  y[threadIdx.x] = x[threadIdx.x];
}

__global__ void two_barriers(const float* x, float* y) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  y[threadIdx.x] = x[threadIdx.x];
}

__global__ void shuffle_in_a_branch(const float* x, float* y) {
  float value = x[threadIdx.x];
  if (threadIdx.x % 2 == 1) value += __shfl_xor_sync(kAll, value, 2);
  y[threadIdx.x] = value;
}

__global__ void two_shuffles(const float* x, float* y) {
  float value = x[threadIdx.x];
  if (threadIdx.x % 2 == 1) {
    value += __shfl_xor_sync(kAll, value, 2);
  } else {
    value += __shfl_xor_sync(kAll, value, 2);
  }
  y[threadIdx.x] = value;
}

__global__ void shuffle_from_outside_the_mask(const float* x, float* y) {
  float value = x[threadIdx.x];
  if (threadIdx.x % 32 < 16) value += __shfl_down_sync(0xffffu, value, 12);
  y[threadIdx.x] = value;
}

__global__ void shuffle_by_a_lane_outside_the_mask(const float* x, float* y) {
  y[threadIdx.x] = __shfl_sync(0xffffu, x[threadIdx.x], 0);
}

__global__ void endless_polling(const float* x, float* y) {
  if (threadIdx.x > 0) {
    while (*static_cast<volatile float*>(y) != x[0]) __nanosleep(10);
  }
}

// ---- memory ----

__global__ void global_out_of_bounds(const float* x, float* y) {
  const unsigned last = kCount / 4;  // one vector too many
  for (unsigned i = threadIdx.x; i <= last; i += kCount) {
    const float4 v = reinterpret_cast<const float4*>(x)[i];
    y[i % kCount] = v.x;
  }
}

__global__ void static_out_of_bounds(const float* x, float* y) {
  __shared__ float s[kCount];
  s[threadIdx.x + threadIdx.x / (kCount - 1)] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = s[threadIdx.x];
}

__global__ void dynamic_out_of_bounds(const float* x, float* y) {
  auto* s = reinterpret_cast<float*>(dynamic_shared());
  s[threadIdx.x + 1] = x[threadIdx.x];
  y[threadIdx.x] = s[threadIdx.x + 1];
}

__global__ void misaligned(const float* x, float* y) {
  const float4 v = *reinterpret_cast<const float4*>(x + 1 + threadIdx.x % 32 * 4);
  y[threadIdx.x] = v.x;
}

__global__ void static_uninitialised(const float* x, float* y) {
  __shared__ float s[kCount];
  if (threadIdx.x > 0) s[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = s[threadIdx.x];
}

__global__ void dynamic_uninitialised(const float* x, float* y) {
  auto* s = reinterpret_cast<float*>(dynamic_shared());
  if (threadIdx.x > 0) s[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = s[threadIdx.x];
}

__global__ void missing_copy_wait(const float* x, float* y) {
  auto* s = reinterpret_cast<float*>(dynamic_shared());
  copy_packet(x, 0);
  copy_commit();
  __syncthreads();
  y[4 * threadIdx.x] = s[4 * threadIdx.x];
}

__global__ void missing_copy_commit(const float* x, float* y) {
  auto* s = reinterpret_cast<float*>(dynamic_shared());
  copy_packet(x, 0);
  copy_wait<0>();
  y[4 * threadIdx.x] = s[4 * threadIdx.x];
}

// ---- clusters: 4 blocks of 64 threads, each reads the numbers of the next block ----

__device__ unsigned next_rank() { return (cluster_rank() + 1) % cluster_size(); }

__device__ float* fill_shared(const float* x) {
  auto* s = reinterpret_cast<float*>(dynamic_shared());
  s[threadIdx.x] = x[blockIdx.x * 64 + threadIdx.x];
  return s + threadIdx.x;
}

__global__ void missing_cluster_barrier(const float* x, float* y) {
  float* mine = fill_shared(x);
  y[blockIdx.x * 64 + threadIdx.x] = *cluster_shared(mine, next_rank());
  cluster_arrive();
  cluster_wait();
}

__global__ void missing_cluster_wait(const float* x, float* y) {
  float* mine = fill_shared(x);
  cluster_arrive();
  y[blockIdx.x * 64 + threadIdx.x] = *cluster_shared(mine, next_rank());
}

__global__ void read_after_exit(const float* x, float* y) {
  float* mine = fill_shared(x);
  float* other = cluster_shared(mine, next_rank());
  cluster_arrive();
  cluster_wait();
  y[blockIdx.x * 64 + threadIdx.x] = *other;
}

__global__ void cluster_shared_after_exit(const float* x, float* y) {
  float* mine = fill_shared(x);
  cluster_arrive();
  cluster_wait();
  y[blockIdx.x * 64 + threadIdx.x] = *cluster_shared(mine, next_rank());
}

__global__ void one_block_leaves(const float* x, float* y) {
  float* mine = fill_shared(x);
  if (cluster_rank() == 2) return;
  cluster_arrive();
  cluster_wait();
  y[blockIdx.x * 64 + threadIdx.x] = *mine;
}

__global__ void identity(const float* x, float* y) {
  y[threadIdx.x % kCount] = x[threadIdx.x % kCount];
}

// ---- what is launched how, and what should come out ----

using Kernel = void (*)(const float*, float*);

struct Case {
  const char* name;
  Kernel kernel;
  Grid grid;
  std::function<float(int)> expected;
  int outputs = kCount;
};

const float kSum = kCount * (kCount + 1) / 2.0f;
const Grid kBlock{1, kCount};
const Grid kWithShared{1, kCount, 1, kCount * sizeof(float)};
const Grid kPackets{1, 64, 1, kCount * sizeof(float)};
const Grid kCluster{4, 64, 4, 64 * sizeof(float)};
const auto same = [](int i) { return i + 1.0f; };
const auto reversed = [](int i) { return static_cast<float>(kCount - i); };
const auto sum = [](int) { return kSum; };
const auto next_block = [](int i) { return (i + 64) % kCount + 1.0f; };

#define CASE(kernel, ...) {#kernel, kernel, __VA_ARGS__}

const std::vector<Case>& cases() {
  static const std::vector<Case> all = {
      CASE(tree_sum, kBlock, sum),
      CASE(warp_sum, kBlock, sum),
      CASE(half_warps, kBlock, [](int i) { return (i ^ 1) + 1.0f; }),
      CASE(
          part_of_a_warp, {1, 48},
          [](int i) { return i == 0   ? 33.0f
                             : i < 32 ? 2 * i + 2.0f
                                      : i + 2.0f; }, 48),
      CASE(copies, {1, 64, 1, 2 * kCount * sizeof(float)},
           [](int i) { return (i + 1) % kCount + 1.0f + i + 1.0f; }),
      CASE(atomics, kBlock, sum, 1),
      CASE(cluster_sum, {4, 64, 4, sizeof(float)}, sum),
      CASE(missing_syncthreads, kBlock, reversed),
      CASE(missing_syncwarp, kBlock, sum),
      CASE(shared_written_before_all_read, kBlock, [](int) { return 10.0f; }),
      CASE(sum_without_atomics, kBlock, sum, 1),
      CASE(copy_read_by_another_thread, kPackets, same),
      CASE(barrier_in_a_branch, kBlock, same),
      CASE(early_exit, kBlock, same, 200),
      CASE(two_barriers, kBlock, same),
      CASE(shuffle_in_a_branch, kBlock, same),
      CASE(two_shuffles, kBlock, [](int i) { return i + 1.0f + (i ^ 2) + 1.0f; }),
      CASE(shuffle_from_outside_the_mask, kBlock, same),
      CASE(shuffle_by_a_lane_outside_the_mask, kBlock, same),
      CASE(endless_polling, {1, 64}, [](int) { return 0.0f; }),
      CASE(
          global_out_of_bounds, kBlock, [](int i) { return i < 64 ? 4 * i + 1.0f : 0.0f; }, 64),
      CASE(static_out_of_bounds, kBlock, same, kCount - 1),
      CASE(dynamic_out_of_bounds, kWithShared, same),
      CASE(misaligned, kBlock, [](int i) { return i % 32 * 4 + 2.0f; }),
      CASE(static_uninitialised, kBlock, same),
      CASE(dynamic_uninitialised, kWithShared, same),
      CASE(missing_copy_wait, kPackets, same, 1),
      CASE(missing_copy_commit, kPackets, same, 1),
      CASE(missing_cluster_barrier, kCluster, next_block),
      CASE(missing_cluster_wait, kCluster, next_block),
      CASE(read_after_exit, kCluster, next_block),
      CASE(cluster_shared_after_exit, kCluster, next_block),
      CASE(one_block_leaves, kCluster, same),
      {"too_many_threads", identity, {1, 1025}, same},
      {"no_blocks", identity, {0, kCount}, same},
      {"too_much_shared_memory", identity, {1, kCount, 1, (227 << 10) + 1}, same},
      {"most_shared_memory", identity, {1, kCount, 1, 227 << 10}, same},
      {"cluster_too_large", identity, {16, kCount, 16}, same},
      {"cluster_does_not_divide", identity, {6, kCount, 4}, same},
  };
  return all;
}

}  // namespace

#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED const char* case_name(int i) {
  return i < static_cast<int>(cases().size()) ? cases()[i].name : nullptr;
}

// 0: as expected, 1: other values, 2: the launch failed
EXPORTED int run_case(int i) {
  const Case& it = cases()[i];
  const std::unique_ptr<float[]> x(new float[kCount]), y(new float[kCount]());
  std::iota(x.get(), x.get() + kCount, 1.0f);
  if (launch(it.kernel, it.grid, nullptr, x.get(), y.get()) != cudaSuccess) return 2;
  for (int k = 0; k < it.outputs; ++k) {
    if (!(y[k] == it.expected(k))) return 1;
  }
  return 0;
}
