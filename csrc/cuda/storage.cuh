// Storage types and packets: 16 bytes of neighbouring values, moved by one instruction.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "../dispatch.h"
#include "plan.h"

namespace torchce::cuda {

template <class T>
using acc_t = std::conditional_t<std::is_same_v<T, double>, double, float>;

// What a stored value is in a register: integers, which only operands beside the logits hold, stay
// what they are.
template <class T>
using value_t = std::conditional_t<std::is_integral_v<T>, T, acc_t<T>>;

template <class T>
constexpr int kPacket = kPacketBytes / static_cast<int>(sizeof(T));

// Blocks of a multiprocessor that a kernel's registers must allow: float64 serves gradcheck, where
// nothing is gained by more than one.
template <class T, int kWanted>
constexpr int kBlocks = sizeof(T) == 8 ? 1 : kWanted;

// The same of a forward kernel: architecture 7.5 has no instruction for the larger of two pairs.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
template <class T, int kWanted>
constexpr int kForwardBlocks = kBlocks < T,
              kWanted<2 ? kWanted : 2>;
#else
template <class T, int kWanted>
constexpr int kForwardBlocks = kBlocks<T, kWanted>;
#endif

#ifdef __CUDACC__
#pragma nv_exec_check_disable
#endif
template <class Fn>
CE_HD auto visit_storage(DType dtype, Fn&& fn) {
  return visit_dtype<double, float, __nv_bfloat16, __half>(dtype, fn);
}

__device__ __forceinline__ double to_acc(double x) { return x; }
__device__ __forceinline__ float to_acc(float x) { return x; }
__device__ __forceinline__ float to_acc(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_acc(__half x) { return __half2float(x); }
__device__ __forceinline__ int64_t to_acc(int64_t x) { return x; }
__device__ __forceinline__ int32_t to_acc(int32_t x) { return x; }
__device__ __forceinline__ uint8_t to_acc(uint8_t x) { return x; }

template <class T>
__device__ __forceinline__ T from_acc(acc_t<T> x) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return __float2bfloat16_rn(x);
  } else if constexpr (std::is_same_v<T, __half>) {
    return __float2half_rn(x);
  } else {
    return x;
  }
}

// Two neighbours of a 16-bit type share a 32-bit register.
template <class T>
__device__ __forceinline__ float2 unpack_pair(uint32_t bits) {
  if constexpr (std::is_same_v<T, __half>) {
    return __half22float2(bit_cast<__half2>(bits));
  } else {
    return {bit_cast<float>(bits << 16), bit_cast<float>(bits & 0xffff0000u)};
  }
}

template <class T>
__device__ __forceinline__ uint32_t pack_pair(float low, float high) {
  if constexpr (std::is_same_v<T, __half>) {
    return bit_cast<uint32_t>(__floats2half2_rn(low, high));
  } else {
    return bit_cast<uint32_t>(__floats2bfloat162_rn(low, high));
  }
}

// The larger of each two neighbours; of a NaN and a number the number.
template <class T>
__device__ __forceinline__ uint32_t max_pair(uint32_t a, uint32_t b) {
#ifdef __CUDA_ARCH__
  using Pair = std::conditional_t<std::is_same_v<T, __half>, __half2, __nv_bfloat162>;
  return bit_cast<uint32_t>(__hmax2(bit_cast<Pair>(a), bit_cast<Pair>(b)));
#else
  const float2 x = unpack_pair<T>(a), y = unpack_pair<T>(b);
  return pack_pair<T>(std::fmax(x.x, y.x), std::fmax(x.y, y.y));
#endif
}

template <class T>
__device__ __forceinline__ void unpack(uint4 bits, value_t<T> (&values)[kPacket<T>]) {
  const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
  for (int i = 0; i < kPacket<T>; ++i) {
    if constexpr (sizeof(T) == 8) {
      values[i] = bit_cast<value_t<T>>(uint64_t{words[2 * i + 1]} << 32 | words[2 * i]);
    } else if constexpr (sizeof(T) == 4) {
      values[i] = bit_cast<value_t<T>>(words[i]);
    } else if constexpr (sizeof(T) == 1) {
      values[i] = static_cast<T>(words[i / 4] >> i % 4 * 8);
    } else if (i % 2 == 0) {
      const float2 pair = unpack_pair<T>(words[i / 2]);
      values[i] = pair.x;
      values[i + 1] = pair.y;
    }
  }
}

template <class T>
__device__ __forceinline__ uint4 pack(const acc_t<T> (&values)[kPacket<T>]) {
  uint32_t words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(T) == 8) {
      words[i] = static_cast<uint32_t>(bit_cast<uint64_t>(values[i / 2]) >> (i % 2 * 32));
    } else if constexpr (sizeof(T) == 4) {
      words[i] = bit_cast<uint32_t>(values[i]);
    } else {
      words[i] = pack_pair<T>(values[2 * i], values[2 * i + 1]);
    }
  }
  return {words[0], words[1], words[2], words[3]};
}

// A packet of nothing but -inf.
template <class T>
__device__ __forceinline__ uint4 pack_lowest() {
  acc_t<T> values[kPacket<T>];
#pragma unroll
  for (int i = 0; i < kPacket<T>; ++i) values[i] = -acc_t<T>(INFINITY);
  return pack<T>(values);
}

// kCount neighbouring values by loads of 16 bytes, or one of 8, whose boundary `source` lies on.
template <class S, class Acc, int kCount>
__device__ __forceinline__ void load_packets(const S* source, Acc (&out)[kCount]) {
  constexpr int kPart = kCount * 2 == kPacket<S> ? kCount : kPacket<S>;
  static_assert(kCount % kPart == 0);
#pragma unroll
  for (int begin = 0; begin < kCount; begin += kPart) {
    value_t<S> values[kPacket<S>];
    if constexpr (kPart == kPacket<S>) {
      unpack<S>(*reinterpret_cast<const uint4*>(source + begin), values);
    } else {
      const uint2 half = *reinterpret_cast<const uint2*>(source);
      unpack<S>({half.x, half.y, 0, 0}, values);
    }
#pragma unroll
    for (int i = 0; i < kPart; ++i) out[begin + i] = static_cast<Acc>(values[i]);
  }
}

// kCount neighbouring values, with 16-byte loads where they lie so.
template <class S, class Acc, int kCount>
__device__ __forceinline__ void load_values(const S* source, Acc (&out)[kCount]) {
  if constexpr (kCount % kPacket<S> == 0) {
    if (reinterpret_cast<uintptr_t>(source) % kPacketBytes == 0) return load_packets(source, out);
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) out[i] = static_cast<Acc>(to_acc(source[i]));
}

}  // namespace torchce::cuda
