// A row of logits or of a gradient, in packets and in pieces.
//
// packet   16 bytes on a 16-byte boundary: what one instruction moves. The row of an odd vocabulary
//          begins anywhere, so its first packet begins `shift` elements before it. Packets that lie
//          whole inside the row move by one instruction; the first and the last, and all of a row
//          whose classes are not neighbours, element by element. So there is one loop over a row,
//          not a head, a body and a tail, and nothing outside the row is ever touched.
// piece    as many classes as a packet holds, counted from the first class. Sums go by pieces: so
//          a row gives the same bits wherever it lies; a piece is cut out of two packets that are
//          neighbours in shared memory.
#pragma once

#include "device.cuh"
#include "storage.cuh"
#include "team.cuh"

namespace torchce::cuda {

template <class T>
struct RowView {
  using Acc = acc_t<T>;

  T* data;
  int64_t stride;
  int32_t cols, shift;
  bool vector;

  __device__ __forceinline__ RowView(const void* base, const RowLayout& layout, int64_t row,
                                     int64_t cols)
      : data(static_cast<T*>(const_cast<void*>(base)) + layout.offset(row)),
        stride(layout.class_stride),
        cols(static_cast<int32_t>(cols)),
        shift(stride == 1 ? static_cast<int32_t>(reinterpret_cast<uintptr_t>(data) % kPacketBytes /
                                                 sizeof(T))
                          : 0),
        vector(stride == 1) {}

  // The same packets of another tensor, which may lie otherwise.
  __device__ __forceinline__ RowView(const void* base, const RowLayout& layout, int64_t row,
                                     const RowView& like)
      : RowView(base, layout, row, like.cols) {
    vector = vector && shift == like.shift && like.stride == 1;
    shift = like.shift;
  }

  __device__ __forceinline__ int packets() const {
    return static_cast<int>((int64_t{cols} + shift + kPacket<T> - 1) / kPacket<T>);
  }
  __device__ __forceinline__ int pieces() const { return (cols - 1) / kPacket<T> + 1; }
  __device__ __forceinline__ int column(int packet) const { return packet * kPacket<T> - shift; }
  __device__ __forceinline__ bool holds(int column) const { return column >= 0 && column < cols; }
  __device__ __forceinline__ bool holds_whole(int column) const {
    return column >= 0 && column <= cols - kPacket<T>;
  }
  __device__ __forceinline__ bool moves_whole(int packet) const {
    return vector && holds_whole(column(packet));
  }
  __device__ __forceinline__ Acc at(int64_t column) const { return to_acc(data[column * stride]); }

  // Sends a packet on its way to shared memory (`copy_commit`, `copy_wait`). What lies outside the
  // row is not written, and whoever reads the packet has to leave it out.
  __device__ __forceinline__ void fetch(int packet, uint4* shared) const {
    const int begin = column(packet);
    if (moves_whole(packet)) return copy_async<kPacketBytes>(shared, data + begin);
    if constexpr (sizeof(T) >= 4) {
      char* to = reinterpret_cast<char*>(shared);
#pragma unroll
      for (int i = 0; i < kPacket<T>; ++i) {
        if (!holds(begin + i)) continue;
        copy_async<sizeof(T)>(to + i * sizeof(T), data + int64_t{begin + i} * stride);
      }
    } else {
      Acc values[kPacket<T>];
#pragma unroll
      for (int i = 0; i < kPacket<T>; ++i) {
        values[i] = holds(begin + i) ? at(begin + i) : Acc(0);
      }
      *shared = pack<T>(values);
    }
  }

  __device__ __forceinline__ void store(int packet, const Acc (&values)[kPacket<T>]) const {
    const int begin = column(packet);
    if (moves_whole(packet)) return store_packet(data + begin, pack<T>(values));
#pragma unroll
    for (int i = 0; i < kPacket<T>; ++i) {
      if (holds(begin + i)) data[int64_t{begin + i} * stride] = from_acc<T>(values[i]);
    }
  }

  __device__ __forceinline__ void store_zeros(int packet) const {
    const Acc zeros[kPacket<T>] = {};
    store(packet, zeros);
  }
};

// The piece that begins `shift` elements into a packet and ends in the next.
template <class T>
__device__ __forceinline__ uint4 cut_piece(const uint4* packet, int shift) {
  const uint4 low = packet[0];
  if (shift == 0) return low;
  const uint4 high = packet[1];
  const uint32_t words[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
  const int first = shift * static_cast<int>(sizeof(T)) / 4;
  uint32_t by_two[6], by_one[5];
#pragma unroll
  for (int i = 0; i < 6; ++i) by_two[i] = first & 2 ? words[i + 2] : words[i];
#pragma unroll
  for (int i = 0; i < 5; ++i) by_one[i] = first & 1 ? by_two[i + 1] : by_two[i];
  if constexpr (sizeof(T) == 2) {
    const int bits = shift % 2 * 16;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      by_one[i] = static_cast<uint32_t>((uint64_t{by_one[i + 1]} << 32 | by_one[i]) >> bits);
    }
  }
  return {by_one[0], by_one[1], by_one[2], by_one[3]};
}

// A thread's kBatch packets, or the pieces that begin in them, in shared memory.
template <class T>
struct Batch {
  const uint4* first;
  unsigned step;
  int shift;  // of pieces; 0 for packets

  __device__ __forceinline__ uint4 operator[](int k) const {
    return cut_piece<T>(first + k * step, shift);
  }
};

// A thread's places for packets in shared memory. kGroup neighbouring threads, of one warp and one
// row, have theirs side by side, and behind the last thread's lies room for the packet after it: so
// each finds the two packets of its piece. A warp reads without bank conflicts.
template <class T, int kGroup>
class Slots {
  static constexpr unsigned kWidth = kGroup == 1 ? 1 : kGroup + 1;

 public:
  __device__ __forceinline__ explicit Slots(unsigned char* shared)
      : first_(reinterpret_cast<uint4*>(shared) + threadIdx.x / kGroup * kWidth +
               threadIdx.x % kGroup),
        step_(blockDim.x / kGroup * kWidth) {}

  __device__ __forceinline__ uint4* at(unsigned slot) const { return first_ + slot * step_; }

  __device__ __forceinline__ Batch<T> batch(unsigned slot, int shift) const {
    return {at(slot), step_, shift};
  }

  __device__ __forceinline__ void fetch(const RowView<T>& row, int packet, unsigned slot) const {
    row.fetch(packet, at(slot));
    if (fetches_next(row)) fetch_next(row, packet, slot);
  }

  // Packets first, first + step, .. < end.
  __device__ __forceinline__ void fetch_batch(const RowView<T>& row, int first, int step, int end,
                                              unsigned slot) const {
    const int last = first + (kBatch - 1) * step;
    if (last < end && row.moves_whole(first) && row.moves_whole(last)) {
      const T* from = row.data + row.column(first);
#pragma unroll
      for (int k = 0; k < kBatch; ++k) {
        copy_async<kPacketBytes>(at(slot + k), from + k * step * kPacket<T>);
      }
      if (fetches_next(row)) {
#pragma unroll 1
        for (int k = 0; k < kBatch; ++k) fetch_next(row, first + k * step, slot + k);
      }
      return;
    }
#pragma unroll 1
    for (int packet = first; packet < end && packet <= last; packet += step) {
      fetch(row, packet, slot++);
    }
  }

  // After `copy_wait`, before a neighbour's packet is read; and again before it is overwritten, in
  // shared memory or, where the gradient takes the logits' place, in the row itself.
  __device__ __forceinline__ void synchronise() const {
    if (kGroup > 1) __syncwarp(group_mask<kGroup>());
  }

 private:
  // The last thread of a group also brings the packet that begins in no place of the group.
  __device__ __forceinline__ bool fetches_next(const RowView<T>& row) const {
    return kGroup > 1 && row.shift != 0 && threadIdx.x % kGroup == kGroup - 1;
  }
  __device__ __forceinline__ void fetch_next(const RowView<T>& row, int packet,
                                             unsigned slot) const {
    if (packet + 1 < row.packets()) row.fetch(packet + 1, at(slot) + 1);
  }

  uint4* first_;
  unsigned step_;
};

// A thread's part of a row that is walked along, batch by batch: first, first + step, .. < end, the
// next ones under way while one is worked on. Pieces for a group, whose threads take their steps
// together; packets for a thread by itself.
template <class T, int kGroup>
class PacketQueue {
 public:
  __device__ __forceinline__ PacketQueue(const RowView<T>& row, unsigned char* shared, int first,
                                         int end, int step)
      : row_(row),
        slots_(shared),
        ahead_(first),
        end_(end + static_cast<int>(threadIdx.x % kGroup)),
        step_(step) {
    for (int i = 0; i < kQueueBatches - 1; ++i) fetch_batch();
  }

  __device__ __forceinline__ Batch<T> next() {
    copy_wait<kQueueBatches - 2>();
    if (kGroup > 1 && row_.shift != 0) slots_.synchronise();  // else each reads its own alone
    fetch_batch();  // into the slots that the whole group has used up
    const Batch<T> batch = slots_.batch(read_, kGroup == 1 ? 0 : row_.shift);
    read_ = read_ == kLast ? 0 : read_ + kBatch;
    return batch;
  }

 private:
  static constexpr unsigned kLast = kBatch * (kQueueBatches - 1);

  __device__ __forceinline__ void fetch_batch() {
    // the packet after a group's last piece may be this thread's, although the piece is not
    const int end = end_ < row_.packets() ? end_ : row_.packets();
    slots_.fetch_batch(row_, ahead_, step_, end, write_);
    copy_commit();  // an empty group too, so that the wait counts right
    ahead_ += kBatch * step_;
    write_ = write_ == kLast ? 0 : write_ + kBatch;
  }

  const RowView<T>& row_;
  const Slots<T, kGroup> slots_;
  int ahead_, end_, step_;
  unsigned read_ = 0, write_ = 0;
};

}  // namespace torchce::cuda
