// A row as packets of 16 bytes: step 4's idea, which all later steps build on.
//
// The row of an odd vocabulary begins anywhere, so its first packet begins `shift` elements before
// it. Packets that lie whole inside the row move by one instruction; the first and the last are
// peeled: element by element, and -inf where there is no logit.
#pragma once

#include "sums.cuh"

template <class T>
struct Packet {
  static constexpr int kSize = 16 / sizeof(T);
  T at[kSize];
};

template <class T>
struct PacketRow {
  static constexpr int kSize = Packet<T>::kSize;
  const T* logits;
  int cols, shift;

  __device__ PacketRow(const Problem<T>& problem, int64_t row)
      : logits(problem.logits + row * problem.cols),
        cols(problem.cols),
        shift(static_cast<int>(reinterpret_cast<uintptr_t>(logits) % 16 / sizeof(T))) {}

  __device__ int count() const { return (shift + cols + kSize - 1) / kSize; }
  __device__ int column(int index) const { return index * kSize - shift; }
  __device__ bool holds(int column) const { return column >= 0 && column < cols; }
  __device__ bool is_whole(int index) const {
    return column(index) >= 0 && column(index) + kSize <= cols;
  }
  __device__ const uint4* address(int index) const {
    return reinterpret_cast<const uint4*>(logits + column(index));
  }

  __device__ Packet<T> load(int index) const {
    if (is_whole(index)) return bit_cast<Packet<T>>(*address(index));
    Packet<T> packet;
    for (int i = 0; i < kSize; ++i) {
      const int col = column(index) + i;
      packet.at[i] = holds(col) ? logits[col] : T(-INFINITY);
    }
    return packet;
  }

  // Into another row that lies as this one does.
  __device__ void store(T* row, int index, const Packet<T>& packet) const {
    if (is_whole(index)) {
      // an assignment would become four stores: the compiler forgets the alignment
      return __stcs(reinterpret_cast<uint4*>(row + column(index)), bit_cast<uint4>(packet));
    }
    for (int i = 0; i < kSize; ++i) {
      if (holds(column(index) + i)) row[column(index) + i] = packet.at[i];
    }
  }
};

// One exponential a logit, and one a packet to bring the sum to the new maximum.
template <class T>
__device__ Sums add(Sums sums, const Packet<T>& packet) {
  float max = sums.max, sum = 0;
  for (const T z : packet.at) max = fmaxf(max, float(z));
  if (max == -INFINITY) return Sums::none();
  for (const T z : packet.at) sum += exp_nonpos(float(z) - max);
  return {max, sums.sum * exp_nonpos(sums.max - max) + sum};
}

// Softmax, less 1 at the target. `column` is the packet's first.
template <class T>
__device__ Packet<T> gradient(const Packet<T>& packet, int column, float lse, int target) {
  Packet<T> out;
  for (int i = 0; i < Packet<T>::kSize; ++i) {
    const float p = exp_nonpos(float(packet.at[i]) - lse);
    out.at[i] = T(column + i == target ? p - 1 : p);
  }
  return out;
}
