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
  int32_t whole_begin, whole_end;  // the packets that one instruction moves

  __device__ __forceinline__ RowView(const void* base, const RowLayout& layout, int64_t row,
                                     int64_t cols)
      : data(static_cast<T*>(const_cast<void*>(base)) + layout.offset(row)),
        stride(layout.class_stride),
        cols(static_cast<int32_t>(cols)),
        shift(stride == 1 ? static_cast<int32_t>(reinterpret_cast<uintptr_t>(data) % kPacketBytes /
                                                 sizeof(T))
                          : 0),
        whole_begin(shift != 0),
        whole_end(stride == 1 ? static_cast<int32_t>((int64_t{this->cols} + shift) / kPacket<T>)
                              : 0) {}

  // The same packets of another tensor, which may lie otherwise.
  __device__ __forceinline__ RowView(const void* base, const RowLayout& layout, int64_t row,
                                     const RowView& like)
      : RowView(base, layout, row, like.cols) {
    if (shift != like.shift || like.stride != 1) whole_end = 0;
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
    return packet >= whole_begin && packet < whole_end;
  }
  __device__ __forceinline__ Acc at(int64_t column) const { return to_acc(data[column * stride]); }

  // Sends a packet on its way to shared memory (`copy_commit`, `copy_wait`). What lies outside the
  // row is -inf there.
  __device__ __forceinline__ void fetch(int packet, uint4* shared) const {
    if (moves_whole(packet)) return fetch_whole(packet, shared);
    fetch_elements(packet, shared);
  }

  __device__ __forceinline__ void fetch_whole(int packet, uint4* shared) const {
    copy_async<kPacketBytes>(shared, data + column(packet));
  }

  __device__ __forceinline__ void fetch_elements(int packet, uint4* shared) const {
    const int begin = column(packet);
    if constexpr (sizeof(T) >= 4) {
      char* to = reinterpret_cast<char*>(shared);
#pragma unroll
      for (int i = 0; i < kPacket<T>; ++i) {
        if (holds(begin + i)) {
          copy_async<sizeof(T)>(to + i * sizeof(T), data + int64_t{begin + i} * stride);
        } else {
          reinterpret_cast<T*>(shared)[i] = -T(INFINITY);
        }
      }
    } else {
      Acc values[kPacket<T>];
#pragma unroll
      for (int i = 0; i < kPacket<T>; ++i) {
        values[i] = holds(begin + i) ? at(begin + i) : -Acc(INFINITY);
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

// The piece that begins kWord words, and half a word where `half`, into a packet and ends in the
// next.
template <int kWord>
__device__ __forceinline__ uint4 cut_words(const uint4* packet, bool half) {
  const uint4 low = packet[0], high = packet[1];
  const uint32_t words[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
  const int bits = half ? 16 : 0;
  uint32_t piece[4];
#pragma unroll
  for (int i = kWord; i < kWord + 4; ++i) {
    piece[i - kWord] =
        static_cast<uint32_t>((uint64_t{words[(i + 1) & 7]} << 32 | words[i]) >> bits);
  }
  return {piece[0], piece[1], piece[2], piece[3]};
}

// A thread's kBatch packets in shared memory, or the pieces that begin in them: numbers first,
// first + step, .. of a row. kGroup neighbouring threads of one row take their batches together;
// without neighbours (kGroup = 1) nothing is cut.
template <class T, int kGroup>
struct Batch {
  const uint4* slots;
  unsigned slot_step;
  int shift;  // of pieces; 0 for packets
  int first, step;

  __device__ __forceinline__ int number(int k) const { return first + k * step; }
  // Of all that the group has in this batch.
  __device__ __forceinline__ int last_of_group() const {
    return number(kBatch - 1) + kGroup - 1 - static_cast<int>(threadIdx.x % kGroup);
  }

  // How pieces are cut is the same for all of a row: one branch, around whatever `body` reads.
  template <class Body>
  __device__ __forceinline__ void read(const Body& body) const {
    if constexpr (kGroup == 1) {
      body([](const uint4* packet) { return *packet; });
    } else {
      const int bytes = shift * static_cast<int>(sizeof(T));
      const bool half = bytes % 4 != 0;
      if (bytes == 0) return body([](const uint4* packet) { return *packet; });
      switch (bytes / 4) {
        case 0:
          return body([=](const uint4* packet) { return cut_words<0>(packet, half); });
        case 1:
          return body([=](const uint4* packet) { return cut_words<1>(packet, half); });
        case 2:
          return body([=](const uint4* packet) { return cut_words<2>(packet, half); });
        default:
          return body([=](const uint4* packet) { return cut_words<3>(packet, half); });
      }
    }
  }

  __device__ __forceinline__ uint4 operator[](int k) const {
    uint4 bits;
    read([&](const auto& cut) { bits = cut(slots + k * slot_step); });
    return bits;
  }

  __device__ __forceinline__ void load(uint4 (&bits)[kBatch]) const {
    read([&](const auto& cut) {
#pragma unroll
      for (int k = 0; k < kBatch; ++k) bits[k] = cut(slots + k * slot_step);
    });
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

  // kAs: kGroup for pieces, 1 for packets, which need no neighbours
  template <int kAs>
  __device__ __forceinline__ Batch<T, kAs> batch(unsigned slot, int shift, int first,
                                                 int step) const {
    return {at(slot), step_, shift, first, step};
  }

  // Packets first, first + step, ..; from `end` on, which is no less than the row has pieces, -inf.
  __device__ __forceinline__ void fetch_batch(const RowView<T>& row, int first, int step, int end,
                                              unsigned slot) const {
    const int last = first + (kBatch - 1) * step;
    unsigned by_element = 0;
    if (first >= row.whole_begin && last < min(end, row.whole_end)) {
      const T* const from = row.data + row.column(first);
#pragma unroll
      for (int k = 0; k < kBatch; ++k) {
        copy_async<kPacketBytes>(at(slot + k), from + k * step * kPacket<T>);
      }
    } else {
#pragma unroll
      for (int k = 0; k < kBatch; ++k) {
        const int packet = first + k * step;
        if (packet >= end) {
          *at(slot + k) = pack_lowest<T>();
        } else if (row.moves_whole(packet)) {
          row.fetch_whole(packet, at(slot + k));
        } else {
          by_element |= 1u << k;
        }
      }
    }
    if constexpr (kGroup > 1) {
      if (row.shift != 0) fetch_behind(row, first, step, end, slot);
    }
    // Last, since these pass through registers and the others should not wait for that.
#pragma unroll 1
    for (; by_element != 0; by_element &= by_element - 1) {
      const int k = __ffs(by_element) - 1;
      row.fetch_elements(first + k * step, at(slot + k));
    }
  }

  // After `copy_wait`, before a neighbour's packet is read; and again before it is overwritten, in
  // shared memory or, where the gradient takes the logits' place, in the row itself.
  __device__ __forceinline__ void synchronise() const {
    if (kGroup > 1) __syncwarp(group_mask<kGroup>());
  }

 private:
  // The packets that begin in no place of the group, but that its last pieces end in: one for each
  // of the last kBatch threads.
  __device__ __forceinline__ void fetch_behind(const RowView<T>& row, int first, int step, int end,
                                               unsigned slot) const {
    const int lane = static_cast<int>(threadIdx.x % kGroup), k = lane - (kGroup - kBatch);
    const int packet = first - lane + kGroup + k * step;
    if (k < 0) return;
    uint4* const behind = at(slot + k) - lane + kGroup;
    if (packet > end || packet >= row.packets()) {
      *behind = pack_lowest<T>();
    } else {
      row.fetch(packet, behind);
    }
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

  __device__ __forceinline__ Batch<T, kGroup> next() {
    copy_wait<kQueueBatches - 2>();
    if (kGroup > 1 && row_.shift != 0) slots_.synchronise();  // else each reads its own alone
    fetch_batch();  // into the slots that the whole group has used up
    const Batch<T, kGroup> batch = slots_.template batch<kGroup>(
        read_, kGroup == 1 ? 0 : row_.shift, ahead_ - kQueueBatches * kBatch * step_, step_);
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
