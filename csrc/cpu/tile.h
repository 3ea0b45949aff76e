// A tile: up to kTile logits of a row in a stack buffer of accumulators, and the loops over it.
// Every loop is one multiversion body, so a row gives the same bits whoever calls and wherever it
// lies.
#pragma once

#include <algorithm>

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
    const auto keep = [z](Acc best, int64_t i) { return larger(best, to_acc(z[i])); };
    fill_lanes(lanes, size / kLanes * kLanes, keep);
    // the last ones with some before them, which may be looked at twice
    if (size >= kLanes) {
      fill_lanes(lanes, kLanes, [=](Acc best, int64_t i) { return keep(best, size - kLanes + i); });
    } else {
      for (int i = 0; i < size; ++i) lanes[i] = keep(lanes[i], i);
    }
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

// The blocks of a tile: `whole(begin)` for those that are read as they lie, `patched(begin)` for
// that of the class `left_out` (-1: none) and for one that the tile does not fill.
template <class Whole, class Patched>
CE_HD void for_each_block(int size, int left_out, const Whole& whole, const Patched& patched) {
  const int filled = size / kLanes * kLanes;
  int begin = 0;
  for (const int other : {left_out < 0 ? filled : left_out / kLanes * kLanes, filled}) {
    for (; begin < other; begin += kLanes) whole(begin);
    if (begin < size && begin == other) {
      patched(begin);
      begin += kLanes;
    }
  }
}

// The values of a block from class `begin` on, with something else in the place of the class that
// is left out and of what lies outside. The last block of a tile is read from where a whole block
// ends with the tile: the classes before `begin`, counted already, lie outside.
template <class Acc, class Value>
CE_HD void patch_block(int begin, int size, int left_out, const Value& value, Acc otherwise,
                       Acc* block) {
  if (size >= kLanes) {
    const int64_t first = begin + kLanes <= size ? begin : size - kLanes;
    const int outside = static_cast<int>(begin - first);
    const int other = static_cast<int>(left_out - first);
    for (int lane = 0; lane < kLanes; ++lane) {
      const bool counts = (lane >= outside) & (lane != other);
      const Acc here = value(first + lane);
      block[lane] = counts ? here : otherwise;
    }
  } else {
    for (int lane = 0; lane < kLanes; ++lane) block[lane] = otherwise;
    for (int i = 0; i < size; ++i) block[i] = value(i);
    if (left_out >= 0) block[left_out] = otherwise;
  }
}

// sum exp(z - reference) without the class `left_out`, over a tile or logits in memory.
template <class T, class Z>
acc_t<T> exp_sum(const Z* z, int size, int left_out, acc_t<T> reference, const T* next) {
  using Acc = acc_t<T>;
  Acc sum;
  multiversion([=, &sum] {
    alignas(64) Acc lanes[kLanes] = {};
    const auto add = [&lanes, reference](const auto* block) {
      for (int lane = 0; lane < kLanes; ++lane) {
        lanes[lane] += exp_of_sum(to_acc(block[lane]) - reference);
      }
    };
    for_each_block(
        size, left_out,
        [=](int begin) {
          prefetch_block(next + begin);
          add(z + begin);
        },
        [=](int begin) {
          alignas(64) Acc block[kLanes];
          patch_block(
              begin, size, left_out, [z](int64_t i) { return to_acc(z[i]); }, -Acc(INFINITY),
              block);
          add(block);
        });
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

// The spread part of a tile's target as it lies in memory, stored as the logits are or as
// accumulators: q_i = factor * value_i + offset, or offset where there are no values.
template <class T>
struct Spread {
  using Acc = acc_t<T>;
  const Acc* values = nullptr;
  const T* stored = nullptr;
  Acc factor = 0, offset = 0;

  Spread times(Acc by) const { return {values, stored, factor * by, offset * by}; }
};

template <class V, class Acc>
struct ReadSpread {
  const V* values;
  Acc factor, offset;

  CE_HD Acc operator()(int64_t i) const { return factor * to_acc(values[i]) + offset; }
};

// Calls body with a function i -> q_i / scale, with scale, and with whether all q_i are the same:
// then the function gives a 1 that the compiler sees.
template <class T, class Body, class Acc = acc_t<T>>
void with_spread(const Spread<T>& spread, const Body& body) {
  if (spread.values != nullptr) {
    body(ReadSpread<Acc, Acc>{spread.values, spread.factor, spread.offset}, Acc(1),
         std::false_type{});
  } else if (spread.stored != nullptr) {
    body(ReadSpread<T, Acc>{spread.stored, spread.factor, spread.offset}, Acc(1),
         std::false_type{});
  } else {
    body([](int64_t) { return Acc(1); }, spread.offset, std::true_type{});
  }
}

template <class T>
void fill_spread(const Spread<T>& spread, int size, acc_t<T>* q) {
  with_spread(spread, [=](auto value, acc_t<T> scale, auto) {
    multiversion([=] {
#pragma GCC ivdep
      for (int64_t i = 0; i < size; ++i) q[i] = scale * value(i);
    });
  });
}

// What a tile leaves behind: of its row, for the series of a focal spread, and the target's logit
// if it is there, which has to be what the maximum was taken of, to the bit.
template <class Acc>
struct TileSums {
  RowSums<Acc> row;
  FocalSums<Acc> focal;
  Acc target_logit = 0;
};

// All sums but the maximum, where there is a spread, without the class `left_out`: those of the
// exponentials and of the spread in one loop, and the sums for a focal series of degree kDegree (0:
// none). For the series, classes at the maximum are counted as ties, apart from the sums.
template <int kDegree, class T, class Z, class Acc = acc_t<T>>
void spread_sums(const Z* z, int size, const Spread<T>& spread, int left_out, Acc reference,
                 const T* next, TileSums<Acc>& sums) {
  with_spread(spread, [=, &sums](auto in_memory, Acc scale, auto same) {
    multiversion([=, &sums] {
      constexpr bool kSame = decltype(same)::value, kTies = kDegree > 0;
      alignas(64) Acc sum[kLanes] = {}, weight[kLanes] = {}, gap[kLanes] = {};
      alignas(64) Acc ties[kLanes] = {}, top[kLanes] = {};
      alignas(64) Acc power[kDegree + 1][kLanes] = {}, times_gap[kDegree + 1][kLanes] = {};
      const auto add = [&, reference](const Acc* block, const auto& q, auto all_counted) {
        // Selects are between constants, and that of unless_zero is apart from the exponentials:
        // otherwise the compiler makes them branches, and nothing is vectorised.
        for (int64_t lane = 0; lane < kLanes; ++lane) {
          const Acc z_i = block[lane], q_i = q(lane);
          const Acc tie = kTies && z_i == reference ? Acc(1) : Acc(0);
          if constexpr (kTies) ties[lane] += tie;
          if constexpr (!kSame) {
            if constexpr (kTies) top[lane] += tie * q_i;
            weight[lane] += kTies ? (Acc(1) - tie) * q_i : q_i;
          }
          if constexpr (kSame && decltype(all_counted)::value) {
            gap[lane] += reference - z_i;
          } else {
            gap[lane] += unless_zero(q_i, reference - z_i);
          }
        }
        for (int64_t lane = 0; lane < kLanes; ++lane) {
          const Acc z_i = block[lane];
          if constexpr (kDegree == 0) {
            sum[lane] += exp_of_sum(z_i - reference);
            continue;
          }
          const Acc left_out = z_i == reference ? ExpTraits<Acc>::kLowest : Acc(0);
          const Acc exponent = clamp_exponent((z_i - reference) + left_out);
          const Acc e = exp_clamped(exponent);
          sum[lane] += e;
          Acc term = q(lane) * e;
#pragma GCC unroll 8
          for (int k = 0; k < kDegree; ++k) {
            if (!kSame || k > 0) power[k][lane] += term;
            times_gap[k][lane] -= term * exponent;
            term *= e;
          }
        }
      };
      for_each_block(
          size, left_out,
          [=](int begin) {
            prefetch_block(next + begin);
            if constexpr (!kSame) prefetch_block(in_memory.values + kTile + begin);
            const auto q = [=](int64_t lane) { return in_memory(begin + lane); };
            if constexpr (std::is_same_v<Z, Acc>) {
              add(z + begin, q, std::true_type{});
            } else {  // converted once, for both loops
              alignas(64) Acc block[kLanes];
#pragma GCC unroll 1
              for (int64_t lane = 0; lane < kLanes; ++lane) block[lane] = to_acc(z[begin + lane]);
              add(block, q, std::true_type{});
            }
          },
          [=](int begin) {
            alignas(64) Acc block[kLanes], q[kLanes];
            patch_block(
                begin, size, left_out, [z](int64_t i) { return to_acc(z[i]); }, -Acc(INFINITY),
                block);
            patch_block(begin, size, left_out, in_memory, Acc(0), q);
            add(block, [&q](int64_t lane) { return q[lane]; }, std::false_type{});
          });
      RowSums<Acc>& row = sums.row;
      FocalSums<Acc>& focal = sums.focal;
      row.sum = fold_sum(sum);
      if constexpr (kSame && kDegree > 0) focal.power[0] = scale * row.sum;
      const Acc count = fold_sum(ties);
      if constexpr (kTies) row.sum += count * exp_nonpos(row.max - reference);  // +inf: NaN
      const Acc all_weight = kSame ? Acc(size - (left_out < 0 ? 0 : 1)) : fold_sum(weight);
      focal.top = scale * (kSame ? count : fold_sum(top));
      row.spread_weight = scale * all_weight;
      if constexpr (kSame && kDegree > 0) row.spread_weight -= focal.top;
      row.spread_gap = scale * fold_sum(gap);
      for (int k = 0; k < kDegree; ++k) {
        if (!kSame || k > 0) focal.power[k] = scale * fold_sum(power[k]);
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

// sum q (1 - p)^gamma r  and  sum q f(p), where the series does not serve
template <class Acc>
SpreadTerms<Acc> focal_spread_sums(const Acc* z, const Acc* q, int padded, Acc max, Acc log_sum,
                                   Acc gamma) {
  SpreadTerms<Acc> sums;
  multiversion([=, &sums] {
    alignas(64) Acc loss[kLanes] = {}, slope[kLanes] = {};
    for (int64_t block = 0; block < padded; block += kLanes) {
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        const int64_t i = block + lane;
        const Acc r = log_sum + (max - z[i]);
        const FocalTerms<Acc> terms = focal_terms(exp_nonpos(-r), r, gamma);
        loss[lane] += unless_zero(q[i], terms.loss);
        slope[lane] += q[i] * terms.slope;
      }
    }
    sums.loss = fold_sum(loss);
    sums.slope = fold_sum(slope);
  });
  return sums;
}

// out = coef * exp(z - max) - q, for a gradient that is stored as T. `z` may be a tile or logits in
// memory, and `out` the same.
template <class T, class Z>
void gradient(const Z* z, int size, acc_t<T> max, acc_t<T> coef, const Spread<T>& spread, Z* out) {
  with_spread(spread, [=](auto q, acc_t<T> scale, auto) {
    multiversion([=] {
#pragma GCC ivdep
      for (int64_t i = 0; i < size; ++i) {
        out[i] = from_acc<Z>(coef * exp_to_store<T>(to_acc(z[i]) - max) - scale * q(i));
      }
    });
  });
}

// The first class with this logit, or -1.
template <class Z>
int index_of(const Z* z, int size, acc_t<Z> logit) {
  if (max_of(z, size) < logit) return -1;
  return static_cast<int>(std::find_if(z, z + size, [=](Z x) { return to_acc(x) == logit; }) - z);
}

// out = coef * exp(z - max) - q * f(p), in the same way
template <class T, class Z, class Acc = acc_t<T>>
void focal_gradient(const Z* z, int size, Acc max, Acc coef, Acc log_sum,
                    const FocalSeries<Acc>& series, const Spread<T>& spread, Z* out) {
  const auto served = [&series](Acc r) { return series.serves(exp_nonpos(-r), r); };
  const bool by_series = served(log_sum) || served(log_sum + (max - max_of(z, size)));
  const Acc p_of_e = exp_nonpos(-log_sum);
  // the likeliest class, where the series does not serve it; `out` may be where its logit is
  const int top = p_of_e > Acc(0.5) ? index_of(z, size, max) : -1;
  with_spread(spread, [=, &series](auto q, Acc scale, auto) {
    if (by_series) {
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
      if (top >= 0) {
        const Acc f = series.exact(p_of_e, log_sum).slope;
        out[top] = from_acc<Z>(coef - scale * (q(top) * f));
      }
    } else {
      const Acc coef_of_p = coef * std::exp(log_sum), gamma = series.gamma;
      multiversion([=] {
#pragma GCC ivdep
        for (int64_t i = 0; i < size; ++i) {
          const Acc r = log_sum + (max - to_acc(z[i]));
          const Acc p = exp_nonpos(-r);
          out[i] = from_acc<Z>(coef_of_p * p - scale * (q(i) * focal_terms(p, r, gamma).slope));
        }
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
