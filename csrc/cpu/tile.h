// A tile: up to kTile logits of a row in a stack buffer of accumulators, and the loops over it.
// Every loop is one multiversion body, so a row gives the same bits whoever calls and wherever it
// lies.
#pragma once

#include "../dispatch.h"
#include "simd.h"
#include "storage.h"

namespace torchce::cpu {

// z and q of float: 16 KiB, half of a 32 KiB L1. 1024 spends more on folding lanes; 4096 was 6 %
// slower plain (float32, from memory) and 20 % where the focal series gives way tile by tile.
constexpr int kTile = 2048;
// A reduction keeps this many partial results, in the same order on every instruction set; its
// loops run over whole blocks.
constexpr int kLanes = 32;
constexpr int kCacheLine = 64;

template <class Acc>
struct alignas(64) Tile {
  Acc z[kTile];  // transformed logits, later the gradient; -inf up to the next multiple of kLanes
  Acc q[kTile];  // the spread part of the target; 0 there
};

// Fills up to the next multiple of kLanes, which it returns.
template <class Acc>
CE_HD int pad(Acc* values, int size, Acc with) {
  const int padded = (size + kLanes - 1) / kLanes * kLanes;
  for (int i = size; i < padded; ++i) values[i] = with;
  return padded;
}

// lanes[i % kLanes] = combine(lanes[i % kLanes], i) over i, then the lanes by halves. Written
// without a reduction the compiler would have to recognise: it vectorises always, and always the
// same way.
template <class Acc, class Combine>
CE_HD void fill_lanes(Acc* lanes, int padded, const Combine& combine) {
  for (int64_t block = 0; block < padded; block += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] = combine(lanes[lane], block + lane);
  }
}

template <int kWidth = kLanes / 2, class Acc, class Combine>
CE_HD Acc fold(Acc* lanes, const Combine& combine) {
  for (int64_t lane = 0; lane < kWidth; ++lane) {
    lanes[lane] = combine(lanes[lane], lanes[lane + kWidth]);
  }
  if constexpr (kWidth == 1) {
    return lanes[0];
  } else {
    return fold<kWidth / 2>(lanes, combine);
  }
}

template <class Acc>
CE_HD Acc fold_sum(Acc* lanes) {
  return fold(lanes, [](Acc a, Acc b) { return a + b; });
}

template <class T, class Acc>
void load(const T* source, int64_t stride, int size, Acc* out) {
  if (stride == 1) {
    multiversion([=] {
      for (int i = 0; i < size; ++i) out[i] = static_cast<Acc>(to_acc(source[i]));
    });
  } else {
    for (int i = 0; i < size; ++i) out[i] = static_cast<Acc>(to_acc(source[i * stride]));
  }
}

template <class T>
void store(const acc_t<T>* values, int size, T* out, int64_t stride) {
  if (stride == 1) {
    multiversion([=] {
      for (int i = 0; i < size; ++i) out[i] = from_acc<T>(values[i]);
    });
  } else {
    for (int i = 0; i < size; ++i) out[i * stride] = from_acc<T>(values[i]);
  }
}

template <class Acc>
void transform(Acc* z, int size, Acc scale, Acc softcap) {
  if (softcap == Acc(0) && scale == Acc(1)) return;
  multiversion([=] {
    for (int i = 0; i < size; ++i) z[i] = transform_logit(z[i], scale, softcap);
  });
}

template <class Acc>
CE_HD Acc larger(Acc a, Acc b) {
  return a < b ? b : a;
}

// A NaN is passed over: it shows in the sum.
template <class T>
acc_t<T> max_of(const T* z, int size) {
  using Acc = acc_t<T>;
  Acc max;
  multiversion([=, &max] {
    alignas(64) Acc lanes[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = -Acc(INFINITY);
    const int whole = size / kLanes * kLanes;
    fill_lanes(lanes, whole, [z](Acc best, int64_t i) { return larger(best, to_acc(z[i])); });
    for (int i = whole; i < size; ++i) lanes[i - whole] = larger(lanes[i - whole], to_acc(z[i]));
    max = fold(lanes, larger<Acc>);
  });
  return max;
}

// The hardware's prefetcher rests while a tile is computed; `next` is the same block of the next
// tile, which need not exist.
template <class T>
CE_HD void prefetch_block(const T* next) {
  for (int64_t i = 0; i < kLanes; i += kCacheLine / sizeof(T)) __builtin_prefetch(next + i);
}

// sum exp(z - reference)
template <class T, class Acc = acc_t<T>>
Acc exp_sum(const Acc* z, int padded, Acc reference, const T* next) {
  Acc sum;
  multiversion([=, &sum] {
    alignas(64) Acc lanes[kLanes] = {};
    for (int64_t block = 0; block < padded; block += kLanes) {
      prefetch_block(next + block);
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        lanes[lane] += exp_nonpos(z[block + lane] - reference);
      }
    }
    sum = fold_sum(lanes);
  });
  return sum;
}

// q = (probability * kept + constant) * weight, in place
template <class Acc>
void probability_spread(Acc* q, int size, Acc kept, Acc constant, const Acc* weight) {
  multiversion([=] {
    if (weight == nullptr) {
      for (int i = 0; i < size; ++i) q[i] = q[i] * kept + constant;
    } else {
      for (int i = 0; i < size; ++i) q[i] = (q[i] * kept + constant) * weight[i];
    }
  });
}

// The spread part of a tile's target: q_i = factor * values[i] + offset, or offset where values is
// null.
template <class Acc>
struct Spread {
  const Acc* values = nullptr;
  Acc factor = 0, offset = 0;

  Spread times(Acc by) const { return {values, factor * by, offset * by}; }
};

// Calls body with a function i -> q_i / scale, with scale, and with whether all q_i are the same:
// then the function gives a 1 that the compiler sees.
template <class Acc, class Body>
void with_spread(const Spread<Acc>& spread, const Body& body) {
  if (spread.values == nullptr) {
    body([](int64_t) { return Acc(1); }, spread.offset, std::true_type{});
  } else {
    body([=](int64_t i) { return spread.factor * spread.values[i] + spread.offset; }, Acc(1),
         std::false_type{});
  }
}

template <class Acc>
void fill_spread(const Spread<Acc>& spread, int size, Acc* q) {
  with_spread(spread, [=](auto value, Acc scale, auto) {
    multiversion([=] {
#pragma GCC ivdep
      for (int64_t i = 0; i < size; ++i) q[i] = scale * value(i);
    });
  });
}

// All sums but the maximum, where there is a spread: those of the exponentials and of the spread in
// one loop, and the sums for a focal series of degree kDegree (0: none).
template <int kDegree, class T, class Acc = acc_t<T>>
void spread_sums(const Acc* z, const Spread<Acc>& spread, int padded, Acc reference, const T* next,
                 RowSums<Acc>& row, FocalSums<Acc>& focal) {
  with_spread(spread, [=, &row, &focal](auto q, Acc scale, auto same) {
    multiversion([=, &row, &focal] {
      constexpr bool kSame = decltype(same)::value;
      alignas(64) Acc sum[kLanes] = {}, weight[kLanes] = {}, gap[kLanes] = {};
      alignas(64) Acc power[kDegree + 1][kLanes] = {}, times_gap[kDegree + 1][kLanes] = {};
      for (int64_t block = 0; block < padded; block += kLanes) {
        prefetch_block(next + block);
        if constexpr (!kSame) prefetch_block(spread.values + kTile + block);
        // apart from the exponentials: with the select of unless_zero among them nothing is
        // vectorised
        for (int64_t lane = 0; lane < kLanes; ++lane) {
          const Acc q_i = q(block + lane);
          if constexpr (!kSame) weight[lane] += q_i;
          gap[lane] += unless_zero(q_i, reference - z[block + lane]);
        }
        for (int64_t lane = 0; lane < kLanes; ++lane) {
          const Acc exponent = clamp_exponent(z[block + lane] - reference);
          const Acc e = exp_clamped(exponent);
          sum[lane] += e;
          Acc term = q(block + lane) * e;
#pragma GCC unroll 8
          for (int k = 0; k < kDegree; ++k) {
            power[k][lane] += term;
            times_gap[k][lane] -= term * exponent;
            term *= e;
          }
        }
      }
      row.sum = fold_sum(sum);
      row.spread_weight = scale * (kSame ? Acc(padded) : fold_sum(weight));
      row.spread_gap = scale * fold_sum(gap);
      for (int k = 0; k < kDegree; ++k) {
        focal.power[k] = scale * fold_sum(power[k]);
        focal.times_gap[k] = scale * fold_sum(times_gap[k]);
      }
    });
  });
}

// Calls body with the degree of the series as a constant.
template <class Acc, class Body>
void with_degree(const FocalSeries<Acc>& series, const Body& body) {
  if (series.degree == 2) {
    body(std::integral_constant<int, 2>{});
  } else {
    body(std::integral_constant<int, kFocalDegree>{});
  }
}

// Calls body with a function (p, r) -> FocalTerms of any class: at the usual gamma = 2 the power is
// a factor.
template <class Acc, class Body>
void with_focal_terms(Acc gamma, const Body& body) {
  if (gamma == Acc(2)) {
    body([](Acc p, Acc r) {
      const Acc one_minus_p = one_minus_exp(r, p);
      return focal_terms(one_minus_p, p, one_minus_p, r, Acc(2));
    });
  } else {
    body([gamma](Acc p, Acc r) { return focal_terms(p, r, gamma); });
  }
}

// sum q (1 - p)^gamma r  and  sum q f(p), where the series does not serve
template <class Acc>
SpreadTerms<Acc> focal_spread_sums(const Acc* z, const Acc* q, int padded, Acc max, Acc log_sum,
                                   Acc gamma) {
  SpreadTerms<Acc> sums;
  with_focal_terms(gamma, [=, &sums](auto focal) {
    multiversion([=, &sums] {
      alignas(64) Acc loss[kLanes] = {}, slope[kLanes] = {};
      for (int64_t block = 0; block < padded; block += kLanes) {
        for (int64_t lane = 0; lane < kLanes; ++lane) {
          const int64_t i = block + lane;
          const Acc r = log_sum + (max - z[i]);
          const FocalTerms<Acc> terms = focal(exp_nonpos(-r), r);
          loss[lane] += unless_zero(q[i], terms.loss);
          slope[lane] += q[i] * terms.slope;
        }
      }
      sums.loss = fold_sum(loss);
      sums.slope = fold_sum(slope);
    });
  });
  return sums;
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

// out = coef * exp(z - max) - q, for a gradient that is stored as T. `z` may be a tile or logits in
// memory, and `out` the same.
template <class T, class Z>
void gradient(const Z* z, int size, acc_t<T> max, acc_t<T> coef, const Spread<acc_t<T>>& spread,
              Z* out) {
  with_spread(spread, [=](auto q, acc_t<T> scale, auto) {
    multiversion([=] {
#pragma GCC ivdep
      for (int64_t i = 0; i < size; ++i) {
        out[i] = from_acc<Z>(coef * exp_to_store<T>(to_acc(z[i]) - max) - scale * q(i));
      }
    });
  });
}

// out = coef * exp(z - max) - q * f(p), in the same way
template <class Z, class Acc = acc_t<Z>>
void focal_gradient(const Z* z, int size, Acc max, Acc coef, Acc log_sum,
                    const FocalSeries<Acc>& series, const Spread<Acc>& spread, Z* out) {
  const auto served = [&series](Acc r) { return series.serves(exp_nonpos(-r), r); };
  const bool by_series = served(log_sum) || served(log_sum + (max - max_of(z, size)));
  with_spread(spread, [=, &series](auto q, Acc scale, auto) {
    if (by_series) {
      const Acc p_of_e = exp_nonpos(-log_sum);
      with_degree(series, [=](auto degree) {
        multiversion([=] {
#pragma GCC ivdep
          for (int64_t i = 0; i < size; ++i) {
            const Acc x = clamp_exponent(to_acc(z[i]) - max);
            const Acc e = exp_clamped(x);
            const Acc f = series.template slope<decltype(degree)::value>(p_of_e * e, log_sum - x);
            out[i] = from_acc<Z>(coef * e - scale * (q(i) * f));
          }
        });
      });
    } else {
      const Acc coef_of_p = coef * std::exp(log_sum);
      with_focal_terms(series.gamma, [=](auto focal) {
        multiversion([=] {
#pragma GCC ivdep
          for (int64_t i = 0; i < size; ++i) {
            const Acc r = log_sum + (max - to_acc(z[i]));
            const Acc p = exp_nonpos(-r);
            out[i] = from_acc<Z>(coef_of_p * p - scale * (q(i) * focal(p, r).slope));
          }
        });
      });
    }
  });
}

// gradient *= dz/dx
template <class Acc>
void apply_slope(Acc* gradient, const Acc* z, int size, Acc softcap) {
  multiversion([=] {
    for (int i = 0; i < size; ++i) gradient[i] *= transform_slope(z[i], softcap);
  });
}

}  // namespace torchce::cpu
