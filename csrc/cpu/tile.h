// A tile: up to kTile logits of a row in a stack buffer of accumulators, and the loops over it.
// Every loop is one multiversion body, so a row gives the same bits whoever calls and wherever it
// lies.
#pragma once

#include "../dispatch.h"
#include "simd.h"
#include "storage.h"

namespace torchce::cpu {

// z and q of float: 16 KiB, half of a 32 KiB L1. Not yet measured against its neighbours.
constexpr int kTile = 2048;
// A reduction keeps this many partial results, in the same order on every instruction set; loops
// with an exp run over whole blocks of it.
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

template <class Acc>
CE_HD Acc fold_sum(Acc* lanes) {
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
  }
  return lanes[0];
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

// A NaN is passed over: it shows in the sum.
template <class Acc>
Acc max_of(const Acc* z, int padded) {
  Acc max;
  multiversion([=, &max] {
    alignas(64) Acc lanes[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = -Acc(INFINITY);
    fill_lanes(lanes, padded, [z](Acc best, int64_t i) { return best < z[i] ? z[i] : best; });
    for (int width = kLanes / 2; width > 0; width /= 2) {
      for (int lane = 0; lane < width; ++lane) {
        lanes[lane] = lanes[lane] < lanes[lane + width] ? lanes[lane + width] : lanes[lane];
      }
    }
    max = lanes[0];
  });
  return max;
}

// sum exp(z - reference)
template <class Acc>
Acc exp_sum(const Acc* z, int padded, Acc reference) {
  Acc sum;
  multiversion([=, &sum] {
    alignas(64) Acc lanes[kLanes] = {};
    fill_lanes(lanes, padded,
               [=](Acc total, int64_t i) { return total + exp_nonpos(z[i] - reference); });
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

// The spread part of a tile's target: q_i = factor * values[i], or factor where values is null.
// Where a row ends inside a block of kLanes, `values` is a buffer with zeros behind it.
template <class Acc>
struct Spread {
  const Acc* values;
  Acc factor;
};

// Calls body with a function i -> q_i.
template <class Acc, class Body>
void with_spread(const Spread<Acc>& spread, const Body& body) {
  const Acc* values = spread.values;
  const Acc factor = spread.factor;
  if (values == nullptr) {
    body([factor](int64_t) { return factor; });
  } else {
    body([factor, values](int64_t i) { return factor * values[i]; });
  }
}

// sums.spread_weight = sum q  and  sums.spread_gap = sum q (reference - z)
template <class Acc>
void spread_sums(const Acc* z, const Spread<Acc>& spread, int padded, Acc reference,
                 RowSums<Acc>& sums) {
  with_spread(spread, [=, &sums](auto q) {
    multiversion([=, &sums] {
      alignas(64) Acc weight[kLanes] = {}, gap[kLanes] = {};
      for (int64_t block = 0; block < padded; block += kLanes) {
        for (int64_t lane = 0; lane < kLanes; ++lane) {
          const Acc q_i = q(block + lane);
          weight[lane] += q_i;
          gap[lane] += spread_term(q_i, reference - z[block + lane]);
        }
      }
      sums.spread_weight = fold_sum(weight);
      sums.spread_gap = fold_sum(gap);
    });
  });
}

// Calls body with a function (p, r) -> FocalTerms: the short one where no class of the tile is
// likely.
template <class Acc, class Body>
void with_focal_terms(const Acc* z, int padded, Acc max, Acc log_sum, Acc gamma, const Body& body) {
  const Acc smallest_r = log_sum + (max - max_of(z, padded));
  if (gamma <= Acc(kSmallGamma) && smallest_r >= -std::log(Acc(kSmallP))) {
    body([gamma](Acc p, Acc r) { return focal_terms_small(p, r, gamma); });
  } else {
    body([gamma](Acc p, Acc r) { return focal_terms(p, r, gamma); });
  }
}

// sum q (1 - p)^gamma r  and  sum q f(p)
template <class Acc>
SpreadTerms<Acc> focal_spread_sums(const Acc* z, const Acc* q, int padded, Acc max, Acc log_sum,
                                   Acc gamma) {
  SpreadTerms<Acc> sums;
  with_focal_terms(z, padded, max, log_sum, gamma, [=, &sums](auto focal) {
    multiversion([=, &sums] {
      alignas(64) Acc loss[kLanes] = {}, slope[kLanes] = {};
      for (int64_t block = 0; block < padded; block += kLanes) {
        for (int64_t lane = 0; lane < kLanes; ++lane) {
          const int64_t i = block + lane;
          const Acc r = log_sum + (max - z[i]);
          const FocalTerms<Acc> terms = focal(exp_nonpos(-r), r);
          loss[lane] += spread_term(q[i], terms.loss);
          slope[lane] += q[i] * terms.slope;
        }
      }
      sums.loss = fold_sum(loss);
      sums.slope = fold_sum(slope);
    });
  });
  return sums;
}

// z becomes  coef * exp(z - max).
template <class Acc>
void plain_gradient(Acc* z, int padded, Acc max, Acc coef) {
  multiversion([=] {
    for (int i = 0; i < padded; ++i) z[i] = coef * exp_nonpos(z[i] - max);
  });
}

// z becomes  coef * exp(z - max) - grad * q.
template <class Acc>
void spread_gradient(Acc* z, const Spread<Acc>& spread, int padded, Acc max, Acc coef, Acc grad) {
  with_spread(Spread<Acc>{spread.values, spread.factor * grad}, [=](auto grad_q) {
    multiversion([=] {
      for (int64_t i = 0; i < padded; ++i) z[i] = coef * exp_nonpos(z[i] - max) - grad_q(i);
    });
  });
}

// The same from logits as they are, straight to the output, which may be the logits' own memory:
// 0.27 ns an element instead of 0.5 by way of a tile. `grad_q` is a function of i.
template <class Acc, class GradQ>
void direct_gradient(const Acc* source, int size, Acc max, Acc coef, const GradQ& grad_q,
                     Acc* out) {
  multiversion([=] {
#pragma GCC ivdep
    for (int64_t i = 0; i < size; ++i) out[i] = coef * exp_nonpos(source[i] - max) - grad_q(i);
  });
}

// z becomes  coef * exp(z - max) - grad * q * f(p), by way of p, which f needs.
template <class Acc>
void focal_spread_gradient(Acc* z, const Acc* q, int padded, Acc max, Acc coef, Acc log_sum,
                           Acc gamma, Acc grad) {
  const Acc coef_of_p = coef * std::exp(log_sum);
  with_focal_terms(z, padded, max, log_sum, gamma, [=](auto focal) {
    multiversion([=] {
      for (int64_t i = 0; i < padded; ++i) {
        const Acc r = log_sum + (max - z[i]);
        const Acc p = exp_nonpos(-r);
        z[i] = coef_of_p * p - grad * (q[i] * focal(p, r).slope);
      }
    });
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
