// A row of logits or of a gradient as packets that lie on 16-byte boundaries.
//
// The row of an odd vocabulary begins anywhere: its first packet begins `shift` elements before it.
// Packets that lie whole inside the row move by one instruction; the first and the last, and every
// packet of a row whose classes are not neighbours, element by element. So there is one loop over a
// row, not a head, a body and a tail, and nothing outside the row is ever touched.
#pragma once

#include "device.cuh"
#include "storage.cuh"

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
  __device__ __forceinline__ int column(int packet) const { return packet * kPacket<T> - shift; }
  __device__ __forceinline__ bool holds(int column) const { return column >= 0 && column < cols; }
  __device__ __forceinline__ bool holds_whole(int column) const {
    return column >= 0 && column <= cols - kPacket<T>;
  }
  __device__ __forceinline__ Acc at(int64_t column) const { return to_acc(data[column * stride]); }

  // Sends a packet on its way to shared memory (`copy_commit`, `copy_wait`); 0 outside the row.
  __device__ __forceinline__ void fetch(int packet, uint4* shared) const {
    const int begin = column(packet);
    if (vector && holds_whole(begin)) {
      return copy_async(shared, reinterpret_cast<const uint4*>(data + begin));
    }
    Acc values[kPacket<T>];
#pragma unroll
    for (int i = 0; i < kPacket<T>; ++i) {
      values[i] = holds(begin + i) ? at(begin + i) : Acc(0);
    }
    *shared = pack<T>(values);
  }

  __device__ __forceinline__ void store(int packet, const Acc (&values)[kPacket<T>]) const {
    const int begin = column(packet);
    if (vector && holds_whole(begin)) {
      *reinterpret_cast<uint4*>(data + begin) = pack<T>(values);
      return;
    }
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

// A thread's packets of a row, first, first + step, .. < end, in order, the next ones under way
// while one is worked on. The slots lie a block's width apart, so a warp reads without bank
// conflicts; no thread reads another's, so there is nothing to synchronise.
template <class T>
class PacketQueue {
 public:
  __device__ __forceinline__ PacketQueue(const RowView<T>& row, unsigned char* shared, int first,
                                         int end, int step)
      : row_(row),
        slots_(reinterpret_cast<uint4*>(shared) + threadIdx.x),
        ahead_(first),
        end_(end),
        step_(step) {
    for (int i = 0; i < kQueueSlots - 1; ++i) fetch_one();
  }

  __device__ __forceinline__ uint4 next() {
    fetch_one();  // into the slot whose packet has been used up
    copy_wait<kQueueSlots - 1>();
    const uint4 bits = slots_[read_ * blockDim.x];
    read_ = (read_ + 1) % kQueueSlots;
    return bits;
  }

 private:
  __device__ __forceinline__ void fetch_one() {
    if (ahead_ < end_) row_.fetch(ahead_, slots_ + write_ * blockDim.x);
    copy_commit();  // an empty group too, so that the wait counts right
    ahead_ += step_;
    write_ = (write_ + 1) % kQueueSlots;
  }

  const RowView<T>& row_;
  uint4* slots_;
  int ahead_, end_, step_;
  unsigned read_ = 0, write_ = 0;
};

}  // namespace torchce::cuda
