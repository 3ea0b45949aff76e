// values *= factor: what becomes of a gradient that was made before the factor of its loss was
// known.
//
// Moves   nothing for a factor of 1, which `loss.backward()` sends; else count * b in and as much
//         out. 8192 x 128256 bf16, 4.20 GB: 0.98 ms at 4.3 TB/s.
// Bound   latency for a factor of 1: one launch, whose blocks read one number and are done, so they
//         are few. Else device memory.
// Why     a multiprocessor full of threads, 2048, has a packet of 16 bytes of each under way, 32
//         KiB: at 16.3 bytes a ns, its share of what is read at 4.3 TB/s, they may take 2 us to
//         come. A walking thread's step is about 42 instructions, 5 for each value of 16 bits,
//         where an H200 can issue 27.
#include <algorithm>

#include "device.cuh"
#include "launch.h"
#include "storage.cuh"

namespace torchce::cuda {
namespace {

constexpr int kThreads = 256;
// Eight blocks on each of 128 multiprocessors, all of them under way at once. Not yet measured.
constexpr int64_t kMostBlocks = 1024;

// 0 stays 0 whatever the factor: an ignored row has no gradient, though the loss be infinite.
template <class Acc>
__device__ __forceinline__ Acc scaled(Acc value, Acc factor) {
  return value == Acc(0) ? value : value * factor;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    scale_kernel(T* values, int64_t count, int head, int64_t packets, const acc_t<T>* factor) {
  const acc_t<T> by = *factor;  // the same for all threads: one access a warp, and once
  if (by == acc_t<T>(1)) return;
  const int64_t thread = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  T* const body = values + head;
  for (int64_t i = thread; i < packets; i += int64_t{gridDim.x} * kThreads) {
    uint4* const packet = reinterpret_cast<uint4*>(body) + i;
    acc_t<T> parts[kPacket<T>];
    unpack<T>(*packet, parts);
#pragma unroll
    for (int k = 0; k < kPacket<T>; ++k) parts[k] = scaled(parts[k], by);
    store_packet(packet, pack<T>(parts));
  }
  // What lies before the first packet and behind the last: less than a packet each.
  const auto scale_one = [by](T& value) { value = from_acc<T>(scaled(to_acc(value), by)); };
  const int64_t tail = head + packets * kPacket<T> + thread;
  if (thread < head) scale_one(values[thread]);
  if (tail < count) scale_one(values[tail]);
}

}  // namespace

cudaError_t launch_scale(void* values, DType dtype, int64_t count, const void* factor,
                         cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  return visit_storage(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const int64_t beyond = reinterpret_cast<uintptr_t>(values) % kPacketBytes / sizeof(T);
    const int64_t head = std::min(count, beyond == 0 ? 0 : kPacket<T> - beyond);
    const int64_t packets = (count - head) / kPacket<T>;
    const int64_t blocks = std::clamp<int64_t>((packets + kThreads - 1) / kThreads, 1, kMostBlocks);
    return launch(scale_kernel<T>, Grid{static_cast<unsigned>(blocks), kThreads}, stream,
                  static_cast<T*>(values), count, static_cast<int>(head), packets,
                  static_cast<const acc_t<T>*>(factor));
  });
}

}  // namespace torchce::cuda
