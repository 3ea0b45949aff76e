// 16-bit storage types and the conversions between storage and accumulator, as integer arithmetic
// without branches: they vectorise on every instruction set and do not heed the flush-to-zero mode.
#pragma once

#include "../dispatch.h"

namespace torchce::cpu {

constexpr int kCacheLine = 64;

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

template <class T>
using acc_t = std::conditional_t<std::is_same_v<T, double>, double, float>;

CE_HD float to_acc(float x) { return x; }
CE_HD double to_acc(double x) { return x; }
CE_HD float to_acc(BFloat16 x) { return bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }

CE_HD float to_acc(Float16 x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t magnitude = x.bits & 0x7fffu;
  // subnormal: the mantissa counts units of 2^-24, read off below a 1 whose last place is that
  const float subnormal = bit_cast<float>(magnitude + 0x3f000000u) - 0.5f;
  const uint32_t exponent_shift = magnitude >= 0x7c00u ? (255u - 31u) << 23 : (127u - 15u) << 23;
  const uint32_t normal = (magnitude << 13) + exponent_shift;
  return bit_cast<float>(sign | (magnitude < 0x0400u ? bit_cast<uint32_t>(subnormal) : normal));
}

template <class T>
CE_HD T from_acc(acc_t<T> x);

template <>
CE_HD float from_acc<float>(float x) {
  return x;
}
template <>
CE_HD double from_acc<double>(double x) {
  return x;
}

template <>
CE_HD BFloat16 from_acc<BFloat16>(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t rounded =
      (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // to nearest, ties to even
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  return {static_cast<uint16_t>(nan ? 0x7fc0u : rounded)};
}

template <>
CE_HD Float16 from_acc<Float16>(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t normal =
      (magnitude - ((127u - 15u) << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const uint32_t subnormal = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t infinite = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  uint32_t out = magnitude < 0x38800000u ? subnormal : normal;
  out = magnitude >= 0x477ff000u ? infinite : out;  // rounds beyond 65504
  return {static_cast<uint16_t>(sign | out)};
}

// As exact as what is stored as T can show.
template <class T>
CE_HD acc_t<T> exp_to_store(acc_t<T> x) {
  if constexpr (std::is_same_v<T, acc_t<T>>) {
    return exp_nonpos(x);
  } else {
    return exp_nonpos_coarse(x);
  }
}

template <class Fn>
auto visit_storage(const Problem& problem, Fn&& fn) {
  return visit_dtype<double, float, BFloat16, Float16>(problem.logits.dtype, fn);
}

}  // namespace torchce::cpu
