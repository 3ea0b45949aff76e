// Packets that are under way while others are worked on: step 6's idea, which step 7 needs too.
#pragma once

#include "packets.cuh"

constexpr int kSlots = 8;  // of a thread: 7 packets under way while it works on one

constexpr size_t queue_bytes(int threads) { return size_t{kSlots} * 16 * threads; }

// A peeled packet goes to shared memory by way of registers.
template <class T>
__device__ void fetch(const PacketRow<T>& row, int index, uint4* slot) {
  if (row.is_whole(index)) {
    copy_async<16>(slot, row.address(index));
  } else {
    *slot = bit_cast<uint4>(row.load(index));
  }
}

// Calls body(index, packet) for every packet of this thread. Neighbouring threads have neighbouring
// slots, so there are no bank conflicts; and no thread reads another's, so there is no barrier.
template <class T, class Body>
__device__ void walk(const PacketRow<T>& row, const Body& body) {
  uint4* const slots = reinterpret_cast<uint4*>(dynamic_shared()) + threadIdx.x;
  const int threads = blockDim.x, first = threadIdx.x, end = row.count();
  const auto fetch_turn = [&](int turn) {
    const int index = first + turn * threads;
    if (index < end) fetch(row, index, slots + turn % kSlots * threads);
    copy_commit();  // an empty group too, so that the wait counts right
  };
  for (int turn = 0; turn < kSlots - 1; ++turn) fetch_turn(turn);
  for (int turn = 0, index = first; index < end; ++turn, index += threads) {
    fetch_turn(turn + kSlots - 1);  // into the slot that has been used up
    copy_wait<kSlots - 1>();
    body(index, bit_cast<Packet<T>>(slots[turn % kSlots * threads]));
  }
}
