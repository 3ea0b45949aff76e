// exp, expm1, log and tanh on the ranges a softmax needs: the one seam between the two backends.
//
// Host    polynomials without branches or calls, so that a loop around them vectorises at any
// width.
//         Coefficients: Chebyshev fits to the stated interval, error beside each; the rest is
//         rounding.
// Device  the hardware's exp2 and reciprocal for float, the CUDA library for logarithms and double.
// double  log and tanh go to the C library: float64 serves gradcheck, where exactness is the point.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#ifdef __CUDACC__
#define CE_HD __host__ __device__ __forceinline__
#else
#define CE_HD inline __attribute__((always_inline))
#endif

namespace torchce {

template <class To, class From>
CE_HD To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast needs equal sizes");
  To to;
  memcpy(static_cast<void*>(&to), &from, sizeof(To));
  return to;
}

// coefficient * value, where a coefficient of 0 wins over an infinite value: what the target
// excludes may have a logit of -inf.
template <class Acc>
CE_HD Acc unless_zero(Acc coefficient, Acc value) {
  return coefficient == Acc(0) ? Acc(0) : coefficient * value;
}

// a * b + c. On the device fused, and written out: a result must not depend on the place where a
// compiler contracts it. On the host as the instruction set has it.
template <class Acc>
CE_HD Acc mul_add(Acc a, Acc b, Acc c) {
#ifdef __CUDA_ARCH__
  return std::fma(a, b, c);
#else
  return a * b + c;
#endif
}

// a * b, never part of a fused operation: what is compared for equality, or computed in two places.
template <class Acc>
CE_HD Acc rounded_product(Acc a, Acc b) {
#ifdef __CUDA_ARCH__
  if constexpr (sizeof(Acc) == 4) return __fmul_rn(a, b);
  if constexpr (sizeof(Acc) == 8) return __dmul_rn(a, b);
#endif
  return a * b;
}

template <class Acc>
struct ExpTraits;

template <>
struct ExpTraits<float> {
  using Int = int32_t;
  static constexpr int kMantissa = 23;
  // 1.5 * 2^23 + 127: adding it rounds to an integer n, and leaves n as the exponent of a float in
  // the last bits
  static constexpr float kRound = 12583039.0f;
  static constexpr float kLowest = -88.0f;         // rounds to n = -127, whose scale is exactly 0
  static constexpr float kLn2High = 0.693359375f;  // few bits, so that n * kLn2High is exact
  static constexpr float kLn2Low = -2.12194440e-4f;
  // (exp(r) - 1 - r) / r^2 on |r| <= ln2 / 2: 7.8e-9 of exp
  static CE_HD float tail(float r) {
    float q = 1.39261836e-3f;
    q = 8.36317905e-3f + r * q;
    q = 4.16665546e-2f + r * q;
    q = 1.66665770e-1f + r * q;
    return 0.5f + r * q;
  }
};

template <>
struct ExpTraits<double> {
  using Int = int64_t;
  static constexpr int kMantissa = 52;
  static constexpr double kRound = 6755399441056767.0;  // 1.5 * 2^52 + 1023
  static constexpr double kLowest = -709.0;
  static constexpr double kLn2High = 0.693147180369123816490;
  static constexpr double kLn2Low = 1.90821492927058770002e-10;
  // as above: 1.3e-17 of exp
  static CE_HD double tail(double r) {
    double q = 2.5100385495510319e-8;
    q = 2.7620088445409748e-7 + r * q;
    q = 2.7557268459997065e-6 + r * q;
    q = 2.4801521295954375e-5 + r * q;
    q = 1.9841269863053617e-4 + r * q;
    q = 1.3888888917213717e-3 + r * q;
    q = 8.3333333333300618e-3 + r * q;
    q = 4.1666666666624128e-2 + r * q;
    q = 1.6666666666666667e-1 + r * q;
    return 5.0000000000000010e-1 + r * q;
  }
};

// x, but no lower than where exp_clamped is exactly 0. NaN stays NaN.
template <class Acc>
CE_HD Acc clamp_exponent(Acc x) {
  return x < ExpTraits<Acc>::kLowest ? ExpTraits<Acc>::kLowest : x;
}

// exp(x) for kLowest <= x <= 0, by  x = n * ln2 + r, |r| <= ln2 / 2:  2^n * (1 + r + r^2 tail(r)).
template <class Acc>
CE_HD Acc exp_clamped(Acc x) {
  using Tr = ExpTraits<Acc>;
  using Int = typename Tr::Int;
  const Acc shifted = x * Acc(1.4426950408889634074) + Tr::kRound;
  const Acc n = shifted - Tr::kRound;
  const Acc r = (x - n * Tr::kLn2High) - n * Tr::kLn2Low;
  // multiplying by 2^n, rather than adding n to the exponent, lets a NaN in r through
  const Acc scale = bit_cast<Acc>(static_cast<Int>(bit_cast<Int>(shifted) << Tr::kMantissa));
  return scale + scale * (r + r * r * Tr::tail(r));
}

// 2^x on a device by one instruction, error 2 ulp; 0 where the result would be subnormal.
CE_HD float exp2_of(float x) {
#ifdef __CUDA_ARCH__
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#else
  return std::exp2(x);
#endif
}

// exp(x) for x <= 0, error <= 1.5 ulp; exactly 0 from where the result would be subnormal. The
// clamp is on the way in: a select on the way out tempts the compiler into a branch, which does not
// vectorise.
template <class Acc>
CE_HD Acc exp_nonpos(Acc x) {
#ifdef __CUDA_ARCH__
  if constexpr (sizeof(Acc) == 4) {
    // One multiplication and one instruction; exp2f would add two for subnormal results. The
    // rounding of the product counts: 2 ulp near 0, 5 at x = -10, where exp(x) is small beside 1.
    return exp2_of(x * 1.4426950408889634f);
  } else {
    return std::exp(x);
  }
#else
  return exp_clamped(clamp_exponent(x));
#endif
}

// The same where the relative error of a small result counts as well: on a device, what rounding
// the product lost is made good.
template <class Acc>
CE_HD Acc exp_nonpos_fine(Acc x) {
#ifdef __CUDA_ARCH__
  if constexpr (sizeof(Acc) == 4) {
    constexpr float kLog2E = 1.4426950408889634f, kLog2ELow = 1.92596299e-8f;
    x = clamp_exponent(x);
    const float product = x * kLog2E;
    const float lost = std::fma(x, kLog2ELow, std::fma(x, kLog2E, -product));
    const float result = exp2_of(product);
    return std::fma(result, 0.69314718f * lost, result);
  }
#endif
  return exp_nonpos(x);
}

// The same with ln2 as one constant, for a `tail` of lower degree.
template <class Tail>
CE_HD float exp_by_tail(float x, const Tail& tail) {
  using Tr = ExpTraits<float>;
  const float clamped = clamp_exponent(x);
  const float shifted = clamped * 1.4426950408889634f + Tr::kRound;
  const float r = clamped - (shifted - Tr::kRound) * 0.693147181f;
  const float scale = bit_cast<float>(bit_cast<int32_t>(shifted) << Tr::kMantissa);
  return scale + scale * (r + r * r * tail(r));
}

// One of the terms of a sum: two operations less. Error 1.1e-7, which changes its sign six times
// within a factor of 2, so that of a sum of many terms is smaller; and 2e-9 |x|, without fma 6e-8
// |x|, where exp(x) is small beside the 1 of the maximum.
CE_HD float exp_of_sum(float x) {
  return exp_by_tail(x, [](float r) {
    return 0.4999923031f + r * (0.1666711539f + r * (0.04189033177f + r * 0.008312501310f));
  });
}

CE_HD double exp_of_sum(double x) { return exp_nonpos(x); }

// For a result that is rounded to 16 bits: error 5.4e-6, three operations less.
CE_HD float exp_nonpos_coarse(float x) {
  return exp_by_tail(x,
                     [](float r) { return 0.500051141f + r * (0.167535141f + r * 0.0412777476f); });
}

// 1 - exp(-r) for r >= 0 without cancellation; `p` is exp(-r), already known.
template <class Acc>
CE_HD Acc one_minus_exp(Acc r, Acc p) {
#ifdef __CUDA_ARCH__
  return r < Acc(0.35) ? -std::expm1(-r) : Acc(1) - p;
#else
  // Below ln2 / 2 nothing is reduced (n = 0) and the series without its leading 1 is the answer.
  const Acc small = r - r * r * ExpTraits<Acc>::tail(-r);
  return r < Acc(0.34) ? small : Acc(1) - p;
#endif
}

// log(x) for finite x > 0. Below the smallest normal number (and at 0) its log, not -inf: what
// exp_nonpos makes of that is as small as makes no difference. NaN stays NaN.
CE_HD float log_positive(float x) {
  const float clamped = x < 1.17549435e-38f ? 1.17549435e-38f : x;
#ifdef __CUDA_ARCH__
  return logf(clamped);
#else
  const int32_t bits = bit_cast<int32_t>(clamped);
  // mantissa in [sqrt(1/2), sqrt(2)), so that x near 1 meets no cancellation
  const int32_t exponent = (bits - 0x3f3504f3) >> 23;
  const float t = bit_cast<float>(bits - (exponent << 23)) - 1.0f;
  // (log(1 + t) - t + t^2 / 2) / t^3: 2.0e-9 of log
  float q = 6.97161147e-2f;
  q = -1.14797338e-1f + t * q;
  q = 1.16854199e-1f + t * q;
  q = -1.24256873e-1f + t * q;
  q = 1.42490576e-1f + t * q;
  q = -1.66678023e-1f + t * q;
  q = 2.00007157e-1f + t * q;
  q = -2.49999969e-1f + t * q;
  q = 3.33333311e-1f + t * q;
  const float n = static_cast<float>(exponent);
  const float value = n * 0.693359375f + (t + (t * t * (t * q - 0.5f) + n * -2.12194440e-4f));
  return value + (x - x);  // a NaN, lost in its bits above, comes back
#endif
}

CE_HD double log_positive(double x) {
  return std::log(x < 2.2250738585072014e-308 ? 2.2250738585072014e-308 : x);
}

// log(1 + x) for x >= 0, exact for small x: the rounding of 1 + x is put back to first order.
CE_HD float log1p_nonneg(float x) {
#ifdef __CUDA_ARCH__
  return log1pf(x);
#else
  const float u = 1.0f + x;
  return log_positive(u) + (x - (u - 1.0f)) / u;
#endif
}

CE_HD double log1p_nonneg(double x) { return std::log1p(x); }

// The same for x in [0, 1], where a polynomial needs neither exponent nor division.
CE_HD float log1p_unit(float x) {
#ifdef __CUDA_ARCH__
  return log1pf(x);
#else
  // (log(1 + x) - x) / x^2: 5.1e-9 of log(1 + x)
  float q = -3.31847392e-3f;
  q = 2.02045913e-2f + x * q;
  q = -5.76644567e-2f + x * q;
  q = 1.06805568e-1f + x * q;
  q = -1.53553971e-1f + x * q;
  q = 1.96954009e-1f + x * q;
  q = -2.49585875e-1f + x * q;
  q = 3.33305113e-1f + x * q;
  q = -4.99999328e-1f + x * q;
  return x + x * x * q;
#endif
}

CE_HD double log1p_unit(double x) { return std::log1p(x); }

// 1 / x for x in [1, 2]: on the device one instruction, 1 ulp.
CE_HD float reciprocal(float x) {
#ifdef __CUDA_ARCH__
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#else
  return 1.0f / x;
#endif
}

// 1 - 2e / (1 + e) with e = exp(-2|u|) <= 1/3, and near 0, where that loses its digits, a series;
// both are computed, without a branch. With the device's exp and reciprocal 4 ulp at u = 0.55, 1
// from u = 1 on.
CE_HD float tanh_any(float u) {
  const float a = u < 0.0f ? -u : u;
  const float s = a * a;
  // (tanh(u) - u) / u^3 as a function of u^2, |u| <= 0.55: 4.0e-9 of tanh
  float q = -6.61022783e-3f;
  q = mul_add(s, q, 2.13093887e-2f);
  q = mul_add(s, q, -5.39094288e-2f);
  q = mul_add(s, q, 1.33331137e-1f);
  q = mul_add(s, q, -3.33333320e-1f);
  const float near_zero = mul_add(a * s, q, a);
  const float e = exp_nonpos(-2.0f * a);
  const float far = mul_add(-2.0f * e, reciprocal(1.0f + e), 1.0f);
  const float magnitude = a < 0.55f ? near_zero : far;
  return u < 0.0f ? -magnitude : magnitude;
}

CE_HD double tanh_any(double u) { return std::tanh(u); }

}  // namespace torchce
