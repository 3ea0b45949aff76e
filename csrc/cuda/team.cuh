// Teams: the threads that share a row, and how their results become one.
//
// A team reduces values always in the same tree, so a row's bits depend on nothing but its own
// logits and the plan. The result is the leader's; `from_leader` hands one on. Every thread of a
// team takes part in every call.
#pragma once

#include "device.cuh"
#include "storage.cuh"

namespace torchce::cuda {

constexpr int kWarpLanes = 32;

// The lanes of this thread's group of kGroup neighbours within a warp.
template <int kGroup>
__device__ __forceinline__ unsigned group_mask() {
  constexpr unsigned kAll = kGroup == kWarpLanes ? 0xffffffffu : (1u << kGroup % kWarpLanes) - 1;
  const unsigned lane = threadIdx.x % kWarpLanes;
  return kAll << (lane - lane % kGroup);
}

template <class V>
__device__ __forceinline__ V shuffle_xor(unsigned mask, V value, int distance) {
  static_assert(sizeof(V) % 4 == 0, "a value moves in 32-bit words");
  uint32_t words[sizeof(V) / 4];
  memcpy(words, &value, sizeof(V));
#pragma unroll
  for (size_t i = 0; i < sizeof(V) / 4; ++i) words[i] = __shfl_xor_sync(mask, words[i], distance);
  memcpy(&value, words, sizeof(V));
  return value;
}

// Sum and maximum over the lanes of a group: every lane gets the same bits, since a + b is b + a.
template <int kLanes>
struct LaneGroup {
  unsigned mask;

  template <class Acc>
  __device__ __forceinline__ Acc sum(Acc x) const {
#pragma unroll
    for (int distance = 1; distance < kLanes; distance *= 2) x += shuffle_xor(mask, x, distance);
    return x;
  }
  template <class Acc>
  __device__ __forceinline__ Acc max(Acc x) const {
#pragma unroll
    for (int distance = 1; distance < kLanes; distance *= 2) {
      x = fmax(x, shuffle_xor(mask, x, distance));
    }
    return x;
  }
};

// `merge` either takes two values, of which the lower lane's is the left; or a lane's value and the
// group, and gives every lane that of the group.
template <int kLanes, class V, class Merge>
__device__ __forceinline__ V reduce_lanes(unsigned mask, V value, const Merge& merge) {
  if constexpr (std::is_invocable_v<Merge, V, V>) {
#pragma unroll
    for (int distance = 1; distance < kLanes; distance *= 2) {
      const V other = shuffle_xor(mask, value, distance);
      value = threadIdx.x & distance ? merge(other, value) : merge(value, other);
    }
    return value;
  } else {
    return merge(value, LaneGroup<kLanes>{mask});
  }
}

// kLanes neighbouring threads of a warp, several teams to a block.
template <int kLanes>
class Lanes {
 public:
  static constexpr int kGroup = kLanes;  // threads of one warp and one row
  static constexpr bool kIsInWarp = true;

  __device__ explicit Lanes(unsigned char*) {}

  __device__ int64_t index() const {
    return (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / kLanes;
  }
  __device__ int rank() const { return threadIdx.x % kLanes; }
  __device__ int size() const { return kLanes; }
  // leads: has the result of `reduce`; speaks: the one thread that writes it to memory
  __device__ bool leads() const { return true; }
  __device__ bool speaks() const { return rank() == 0; }

  template <class V, class Merge>
  __device__ V reduce(V value, const Merge& merge) {
    if constexpr (kLanes == 1) {
      return value;
    } else {
      return reduce_lanes<kLanes>(group_mask<kLanes>(), value, merge);
    }
  }
  template <class V>
  __device__ V from_leader(V value) {
    return value;  // every lane leads
  }
  __device__ void done_reducing() {}
  __device__ void leave() {}
};

constexpr int kMostWarps = 16;  // of a block that is a team

// All threads of a block.
template <class Acc>
class Block {
  // The largest value a team reduces or hands on.
  struct alignas(16) Slot {
    Acc words[12];
  };

 public:
  static constexpr int kGroup = kWarpLanes;
  static constexpr bool kIsInWarp = false;
  static constexpr size_t kSharedBytes = (2 * kMostWarps + 1 + 2) * sizeof(Slot);

  __device__ explicit Block(unsigned char* shared) : slots_(reinterpret_cast<Slot*>(shared)) {}
  __device__ int64_t index() const { return blockIdx.x; }
  __device__ int rank() const { return threadIdx.x; }
  __device__ int size() const { return blockDim.x; }
  __device__ bool leads() const { return threadIdx.x == 0; }
  __device__ bool speaks() const { return threadIdx.x == 0; }

  // Two sets of slots in turn: between two uses of the same set every thread has passed the other's
  // barrier, so nobody still reads what is written.
  template <class V, class Merge>
  __device__ V reduce(V value, const Merge& merge) {
    value = reduce_lanes<kWarpLanes>(0xffffffffu, value, merge);
    Slot* set = slots_ + turn_ * kMostWarps;
    turn_ ^= 1;
    const int warp = threadIdx.x / kWarpLanes, lane = threadIdx.x % kWarpLanes;
    if (lane == 0) put(set + warp, value);
    __syncthreads();
    if (warp != 0) return value;
    const int warps = blockDim.x / kWarpLanes;
    return reduce_lanes<kWarpLanes>(0xffffffffu, lane < warps ? get<V>(set + lane) : V{}, merge);
  }

  // Never twice without a `reduce` between: its barrier frees the slot.
  template <class V>
  __device__ V from_leader(V value) {
    Slot* slot = slots_ + 2 * kMostWarps;
    if (leads()) put(slot, value);
    __syncthreads();
    return get<V>(slot);
  }
  __device__ void done_reducing() {}
  __device__ void leave() {}

 protected:
  template <class V>
  __device__ static void put(Slot* slot, const V& value) {
    static_assert(sizeof(V) <= sizeof(Slot));
    *reinterpret_cast<V*>(slot) = value;
  }
  template <class V>
  __device__ static V get(const Slot* slot) {
    return *reinterpret_cast<const V*>(slot);
  }

  Slot* slots_;
  int turn_ = 0;
};

static_assert(Block<double>::kSharedBytes <= kExchangeBytes &&
              2 * Block<float>::kSharedBytes <= kExchangeBytes);

// All threads of a cluster of blocks. Each block leaves its value in its own shared memory, and
// each block's first warp reads them all, in the order of the blocks.
template <class Acc>
class Cluster : public Block<Acc> {
  using Base = Block<Acc>;

 public:
  using Base::Base;
  __device__ int64_t index() const { return blockIdx.x / cluster_size(); }
  __device__ int rank() const { return cluster_rank() * blockDim.x + threadIdx.x; }
  __device__ int size() const { return cluster_size() * blockDim.x; }
  __device__ bool speaks() const { return this->leads() && cluster_rank() == 0; }

  template <class V, class Merge>
  __device__ V reduce(V value, const Merge& merge) {
    auto* mine = this->slots_ + 2 * kMostWarps + 1 + this->turn_;
    value = Base::reduce(value, merge);
    if (this->leads()) Base::put(mine, value);
    cluster_arrive();
    cluster_wait();
    if (threadIdx.x >= kWarpLanes) return value;
    const unsigned lane = threadIdx.x;
    const V part = lane < cluster_size() ? Base::template get<V>(cluster_shared(mine, lane)) : V{};
    return reduce_lanes<kWarpLanes>(0xffffffffu, part, merge);
  }
  // A block's shared memory must outlive the others' last look at it.
  __device__ void done_reducing() { cluster_arrive(); }
  __device__ void leave() { cluster_wait(); }
};

}  // namespace torchce::cuda
