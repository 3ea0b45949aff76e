// The operands of an element problem, a chunk of kCount elements at a time: any dtype, any strides.
//
// A chunk's elements are neighbours along the innermost dimension and do not reach beyond its end:
// so an operand has them at one offset, one stride apart, and an index is taken apart once a chunk.
// Operands that lie alike, whatever their shape, have one dimension, and nothing is divided; where
// an innermost dimension is short or odd, the last chunk along it is cut off, and what begins off a
// packet's boundary moves element by element. Dtypes are told apart at run time, by a switch that
// all threads take alike.
#pragma once

#include "../element_problem.h"
#include "device.cuh"
#include "storage.cuh"

namespace torchce::cuda {

template <class Fn>
__device__ __forceinline__ void visit_element(ElementType type, const Fn& fn) {
  visit_element_type<double, float, __nv_bfloat16, __half>(type, fn);
}

template <class Acc>
__device__ __forceinline__ Acc read_first(const Operand& operand) {
  Acc value = 0;
  visit_element(operand.type, [&](auto type) {
    using S = typename decltype(type)::type;
    value = static_cast<Acc>(to_acc(*static_cast<const S*>(operand.data)));
  });
  return value;
}

template <class Acc, int kCount>
__device__ __forceinline__ void fill(Acc (&values)[kCount], Acc with) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) values[i] = with;
}

inline int64_t chunks_of_run(const ElementProblem& problem, int elements) {
  return (problem.inner_size() + elements - 1) / elements;
}

template <int kCount>
class Chunk {
 public:
  // Chunk `index` of the problem; a run, all elements along the innermost dimension, has `of_run`.
  __device__ __forceinline__ Chunk(const ElementProblem& problem, int64_t index, int64_t of_run)
      : problem_(problem), run_(problem.dims == 1 ? 0 : index / of_run) {
    first_ = (index - run_ * of_run) * kCount;
    const int64_t left = problem.inner_size() - first_;
    size_ = left < kCount ? static_cast<int>(left) : kCount;
  }

  // Less than kCount at a run's end.
  __device__ __forceinline__ bool holds(int i) const { return i < size_; }

  // Elements that the chunk does not hold become copies of its last.
  template <class Acc>
  __device__ __forceinline__ void load(const Operand& operand, Acc (&out)[kCount]) const {
    const int64_t offset = offset_of(operand);
    visit_element(operand.type, [&](auto type) {
      using S = typename decltype(type)::type;
      load_from(static_cast<const S*>(operand.data) + offset, inner_stride(operand), out);
    });
  }

  // The same where the dtype is known.
  template <class S, class Acc>
  __device__ __forceinline__ void load_as(const Operand& operand, Acc (&out)[kCount]) const {
    load_from(static_cast<const S*>(operand.data) + offset_of(operand), inner_stride(operand), out);
  }

  template <class S>
  __device__ __forceinline__ void store(const Operand& operand,
                                        const acc_t<S> (&values)[kCount]) const {
    S* const to = static_cast<S*>(operand.data) + offset_of(operand);
    const int64_t step = inner_stride(operand);
    if (moves_packets(to, step)) {
#pragma unroll
      for (int begin = 0; begin < kCount; begin += kPacket<S>) {
        acc_t<S> packet[kPacket<S>];
#pragma unroll
        for (int i = 0; i < kPacket<S>; ++i) packet[i] = values[begin + i];
        store_packet(to + begin, pack<S>(packet));
      }
      return;
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (holds(i)) to[i * step] = from_acc<S>(values[i]);
    }
  }

 private:
  __device__ __forceinline__ int64_t inner_stride(const Operand& operand) const {
    return operand.stride[problem_.dims - 1];
  }

  __device__ __forceinline__ int64_t offset_of(const Operand& operand) const {
    const int inner = problem_.dims - 1;
    int64_t offset = first_ * operand.stride[inner], rest = run_;
    if (inner == 0) return offset;
#pragma unroll 1  // a division is many instructions
    for (int d = inner - 1; d > 0; --d) {
      const int64_t outer = rest / problem_.size[d];
      offset += (rest - outer * problem_.size[d]) * operand.stride[d];
      rest = outer;
    }
    return offset + rest * operand.stride[0];
  }

  template <class S>
  __device__ __forceinline__ bool moves_packets(const S* at, int64_t step) const {
    constexpr size_t kBytes = kCount * sizeof(S), kStep = kBytes < 16 ? kBytes : 16;
    return size_ == kCount && step == 1 && reinterpret_cast<uintptr_t>(at) % kStep == 0;
  }

  template <class S, class Acc>
  __device__ __forceinline__ void load_from(const S* from, int64_t step, Acc (&out)[kCount]) const {
    if constexpr (kCount * sizeof(S) >= kPacketBytes / 2) {
      if (moves_packets(from, step)) return load_packets(from, out);
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int64_t at = i < size_ ? i : size_ - 1;
      out[i] = static_cast<Acc>(to_acc(from[at * step]));
    }
  }

  const ElementProblem& problem_;
  const int64_t run_;
  int64_t first_;
  int size_;
};

}  // namespace torchce::cuda
