// The mathematics of one row of cross entropy, for the CPU and for CUDA.
//
//   z = softcap(scale * x)     p_j = exp(z_j - lse)     r_j = -log p_j = lse - z_j
//   loss  = sum_j t_j (1 - p_j)^gamma r_j + z_loss * lse^2
//   s_j   = t_j f(p_j),  f(p) = (1 - p)^gamma (1 + gamma p r / (1 - p))
//   dz_j  = p_j (sum_k s_k + 2 z_loss lse) - s_j
//
// t_j holds class weight, label smoothing and the given probabilities. It has two parts: a `target`
// part at the class index, and a `spread` over all classes (smoothing, probabilities). Everything
// that does not depend on the class folds into a few scalars per row (RowState), so that the loops
// over logits never know of weights, ignore_index, reduction or, for a class index, focal loss.
//
// The exponential of the target class is kept apart from the sum of the others: 1 - p = others /
// sum and r = log1p(others / target) then lose nothing as p -> 1.
#pragma once

#include "elementary.h"

namespace torchce {

struct RowOptions {
  double label_smoothing = 0, gamma = 0, z_loss = 0, logit_scale = 1,
         logit_softcap = 0;  // softcap 0: off
};

// z of one logit.
template <class Acc>
CE_HD Acc transform_logit(Acc x, Acc scale, Acc softcap) {
  const Acc z = rounded_product(x, scale);
  return softcap > Acc(0) ? rounded_product(softcap, tanh_any(z / softcap)) : z;
}

// dz/dx without `scale`, given z.
template <class Acc>
CE_HD Acc transform_slope(Acc z, Acc softcap) {
  const Acc t = z / softcap;
  return (Acc(1) - t) * (Acc(1) + t);  // of 1 - t^2 the form that keeps its digits as |t| -> 1
}

// What a pass over logits (any subset of a row) leaves behind. `max` is never NaN: a NaN logit
// shows in `sum`. The spread part is  weight = sum q_j  and  gap = sum q_j (max - z_j), so that sum
// q_j r_j = weight * log(sum) + gap  without cancellation at large |z|.
template <class Acc>
struct RowSums {
  Acc max = -Acc(INFINITY);
  Acc sum = 0;  // of exp(z_j - max)
  Acc spread_weight = 0;
  Acc spread_gap = 0;

  template <class To>
  CE_HD RowSums<To> as() const {
    return {static_cast<To>(max), static_cast<To>(sum), static_cast<To>(spread_weight),
            static_cast<To>(spread_gap)};
  }
};

// sum + coefficient * value, where a coefficient of 0 wins over an infinite value.
template <class Acc>
CE_HD Acc add_unless_zero(Acc sum, Acc coefficient, Acc value) {
  return coefficient == Acc(0) ? sum : std::fma(coefficient, value, sum);
}

template <class Acc>
CE_HD Acc rebase_gap(const RowSums<Acc>& sums, Acc max) {
  return add_unless_zero(sums.spread_gap, sums.spread_weight, max - sums.max);
}

// fma is written out: the result must not depend on how a compiler contracts a * b + c * d.
template <class Acc>
CE_HD RowSums<Acc> merge(const RowSums<Acc>& a, const RowSums<Acc>& b) {
  RowSums<Acc> out;
  out.max = a.max < b.max ? b.max : a.max;
  if (out.max == -Acc(INFINITY)) {  // nothing but -inf so far: exp(-inf - -inf) would be NaN
    out.sum = a.sum + b.sum;
    out.spread_gap = a.spread_gap + b.spread_gap;
  } else {
    out.sum = std::fma(a.sum, exp_nonpos(a.max - out.max), b.sum * exp_nonpos(b.max - out.max));
    out.spread_gap = rebase_gap(a, out.max) + rebase_gap(b, out.max);
  }
  out.spread_weight = a.spread_weight + b.spread_weight;
  return out;
}

// The row's normaliser, and of the target class p, 1 - p and r (0, 1 and 0 where there is no
// target).
template <class Acc>
struct RowNorm {
  Acc max, sum, log_sum;
  Acc p = 0, one_minus_p = 1, r = 0;
};

template <class Acc>
CE_HD RowNorm<Acc> normalise(const RowSums<Acc>& all) {
  RowNorm<Acc> norm;
  norm.max = all.max;
  // a row of nothing but -inf has no distribution: NaN, as log_softmax gives
  norm.sum = all.max == -Acc(INFINITY) ? Acc(NAN) : all.sum;
  norm.log_sum = log_positive(norm.sum);
  norm.r = norm.log_sum - norm.log_sum;  // and such a row's loss is NaN whatever counts in it
  return norm;
}

// `others` are the sums without the target class, whose logit is `z`. One logarithm for both cases,
// by selects: log(sum) is log1p(rest) where the target leads, and there a rest below eps still
// counts.
template <class Acc>
CE_HD RowNorm<Acc> normalise(const RowSums<Acc>& others, Acc z) {
  RowNorm<Acc> norm;
  const bool target_leads = others.max <= z;
  norm.max = target_leads ? z : others.max;
  // (-inf) - (-inf) and inf - inf make such a row NaN, as log_softmax does
  const Acc others_scale = exp_nonpos(others.max - norm.max);
  const Acc rest = rounded_product(others.sum, others_scale);
  const Acc mine = exp_nonpos(z - norm.max);
  norm.sum = std::fma(others.sum, others_scale, mine);  // written out, as in `merge`
  norm.log_sum = log1p_nonneg(target_leads ? rest : norm.sum - Acc(1));
  norm.r = norm.log_sum + (norm.max - z);
  norm.p = mine / norm.sum;
  norm.one_minus_p = rest / norm.sum;
  return norm;
}

// (1 - p)^gamma r  and  f(p), the factors of loss and gradient; both are plain r and 1 at gamma =
// 0.
template <class Acc>
struct FocalTerms {
  Acc loss, slope;
};

// Both from g = (1 - p)^(gamma - 1) without a division: it may be large for gamma < 1 and p -> 1,
// but what it multiplies is smaller still. At p = 0 the product p r is 0 although r is infinite.
template <class Acc>
CE_HD FocalTerms<Acc> focal_terms(Acc g, Acc p, Acc one_minus_p, Acc r, Acc gamma) {
  const Acc p_r = p * (p > Acc(0) ? r : Acc(0));
  return {g * one_minus_p * r, g * mul_add(gamma, p_r, one_minus_p)};
}

template <class Acc>
CE_HD FocalTerms<Acc> focal_terms(Acc p, Acc one_minus_p, Acc r, Acc gamma) {
  return focal_terms(exp_nonpos((gamma - Acc(1)) * log_positive(one_minus_p)), p, one_minus_p, r,
                     gamma);
}

// The same for any class, where 1 - p is not known apart.
template <class Acc>
CE_HD FocalTerms<Acc> focal_terms(Acc p, Acc r, Acc gamma) {
  return focal_terms(p, one_minus_exp(r, p), r, gamma);
}

// At the usual gamma = 2, where the power is a factor.
template <class Acc>
CE_HD FocalTerms<Acc> focal_terms_squared(Acc p, Acc r) {
  const Acc one_minus_p = one_minus_exp(r, p);
  return focal_terms(one_minus_p, p, one_minus_p, r, Acc(2));
}

// The spread part of a row after its normaliser is known: sum_j q_j (1-p_j)^gamma r_j  and  sum_j
// s_j.
template <class Acc>
struct SpreadTerms {
  Acc loss = 0, slope = 0;
};

template <class Acc>
CE_HD SpreadTerms<Acc> plain_spread(const RowSums<Acc>& sums, const RowNorm<Acc>& norm) {
  return {std::fma(sums.spread_weight, norm.log_sum, rebase_gap(sums, norm.max)),
          sums.spread_weight};
}

// Focal loss with a spread as a series in p, for the many classes of a large vocabulary that are
// not likely:
//   (1 - p)^gamma r = sum_k c_k p^k r     f(p) = sum_k c_k p^k (1 - k r)
//   c_k = (-1)^k (gamma over k)
// The sums of q p^k and q p^k r are known up to a factor before the normaliser is: no second look
// at the row. For gamma = 1 and the usual 2 the series ends with its second power. The likeliest
// classes take the exact terms: of all others p <= 1/2.
constexpr int kFocalDegree = 4;

template <class Acc>
struct FocalSeries {
  Acc gamma, c[kFocalDegree + 2];
  int degree;

  explicit CE_HD FocalSeries(Acc gamma) : gamma(gamma) {
    c[0] = 1;
    for (int k = 0; k <= kFocalDegree; ++k) c[k + 1] = c[k] * (Acc(k) - gamma) / Acc(k + 1);
    degree = c[3] == Acc(0) ? 2 : kFocalDegree;
  }

  // Whether it serves every class but the likeliest, which has p = exp(-r): the sum is not the
  // small difference of large terms, and the first term left out is below its rounding. At p <= 1/2
  // the whole polynomial for gamma = 2 is at least a quarter of its largest term.
  CE_HD bool serves(Acc p, Acc r) const {
    if (degree == 2) return true;
    Acc rest = c[degree + 1] * (Acc(1) + Acc(degree + 1) * r);
    for (int k = 0; k <= degree; ++k) rest *= p;
    const Acc tolerance = Acc(1) / (int64_t{4} << ExpTraits<Acc>::kMantissa);
    return (Acc(1) + gamma) * p <= Acc(0.5) && rest <= tolerance && -rest <= tolerance;
  }

  // The terms themselves.
  CE_HD FocalTerms<Acc> exact(Acc p, Acc r) const {
    return gamma == Acc(2) ? focal_terms_squared(p, r) : focal_terms(p, r, gamma);
  }

  // f(p), of a degree that the compiler knows
  template <int kDegree>
  CE_HD Acc slope(Acc p, Acc r) const {
    Acc powers = c[kDegree], times_k = Acc(kDegree) * c[kDegree];
    for (int k = kDegree - 1; k >= 1; --k) {
      powers = mul_add(p, powers, c[k]);
      times_k = mul_add(p, times_k, Acc(k) * c[k]);
    }
    return mul_add(p, mul_add(-r, times_k, powers), Acc(1));
  }
};

// What a pass over logits leaves behind for the series, beside its RowSums, with e_j = exp(z_j -
// max): power[k - 1] = sum q_j e_j^k  and  times_gap[k - 1] = sum q_j e_j^k (max - z_j). Classes at
// the maximum are not in them, nor in spread_weight, but in `top` = sum q_j.
template <class Acc, int kDegree = kFocalDegree>
struct FocalSums {
  Acc power[kDegree] = {}, times_gap[kDegree] = {}, top = 0;
};

template <class Acc, int kDegree = kFocalDegree>
struct SeriesSums {
  RowSums<Acc> row;
  FocalSums<Acc, kDegree> focal;
};

// The same sums about a maximum that is no lower. Classes at the old one are no longer the
// likeliest, and join the series. Products are rounded: they are added to others, in several
// kernels that must not contract them differently.
template <class Acc, int kDegree>
CE_HD SeriesSums<Acc, kDegree> rebase(const SeriesSums<Acc, kDegree>& sums, Acc max) {
  const bool moves = sums.row.max < max;
  const Acc gap = moves ? max - sums.row.max : Acc(0);
  const Acc exponent = clamp_exponent(-gap);  // products with an infinite gap would be NaN
  const Acc e = exp_nonpos(exponent);
  const Acc joins = moves ? sums.focal.top : Acc(0);
  SeriesSums<Acc, kDegree> out;
  out.row.max = max;
  out.row.sum = rounded_product(sums.row.sum, e);
  out.row.spread_weight = sums.row.spread_weight + joins;
  out.row.spread_gap = add_unless_zero(sums.row.spread_gap, out.row.spread_weight, gap);
  out.focal.top = moves ? Acc(0) : sums.focal.top;
  Acc factor = 1;
  for (int k = 0; k < kDegree; ++k) {
    factor *= e;
    const Acc power = sums.focal.power[k] + joins;
    out.focal.power[k] = rounded_product(factor, power);
    out.focal.times_gap[k] =
        rounded_product(factor, std::fma(power, -exponent, sums.focal.times_gap[k]));
  }
  return out;
}

// Of sums about the same maximum.
template <class Acc, int kDegree>
CE_HD SeriesSums<Acc, kDegree> add_sums(SeriesSums<Acc, kDegree> a,
                                        const SeriesSums<Acc, kDegree>& b) {
  a.row.sum += b.row.sum;
  a.row.spread_weight += b.row.spread_weight;
  a.row.spread_gap += b.row.spread_gap;
  a.focal.top += b.focal.top;
  for (int k = 0; k < kDegree; ++k) {
    a.focal.power[k] += b.focal.power[k];
    a.focal.times_gap[k] += b.focal.times_gap[k];
  }
  return a;
}

template <class Acc, int kDegree>
CE_HD SeriesSums<Acc, kDegree> merge(const SeriesSums<Acc, kDegree>& a,
                                     const SeriesSums<Acc, kDegree>& b) {
  const Acc max = a.row.max < b.row.max ? b.row.max : a.row.max;
  return add_sums(rebase(a, max), rebase(b, max));
}

// The spread part of such a pass, where r (finite) is that of its likeliest classes and p =
// exp(-r).
template <class Acc, int kDegree>
CE_HD SpreadTerms<Acc> focal_spread(const RowSums<Acc>& sums, const FocalSums<Acc, kDegree>& focal,
                                    Acc p, Acc r, const FocalSeries<Acc>& series) {
  const FocalTerms<Acc> top = series.exact(p, r);
  SpreadTerms<Acc> out{std::fma(sums.spread_weight, r, sums.spread_gap), sums.spread_weight};
  out.loss = std::fma(focal.top, top.loss, out.loss);
  out.slope = std::fma(focal.top, top.slope, out.slope);
  Acc factor = 1;
  for (int k = 1; k <= kDegree && k <= series.degree; ++k) {
    factor *= p;
    const Acc power = factor * focal.power[k - 1];
    const Acc times_r = factor * std::fma(r, focal.power[k - 1], focal.times_gap[k - 1]);
    out.loss = std::fma(series.c[k], times_r, out.loss);
    out.slope = std::fma(series.c[k], std::fma(-Acc(k), times_r, power), out.slope);
  }
  return out;
}

// What the backward pass needs of a row:
//   dz_j      = coef * exp(z_j - max) - (spread part)   for every class but the target
//   dz_target = target_grad
// log_sum serves only where the spread part depends on p_j (focal loss with a spread).
template <class Acc>
struct RowState {
  Acc max = 0, coef = 0, target_grad = 0, log_sum = 0;
};

template <class Acc>
struct RowResult {
  Acc loss = 0;
  RowState<Acc> state;
};

// `target_weight` is t of the target class apart from its spread; `target_spread` is q of the
// target class where `spread` counted it, else 0. fma is written out, as in `merge`: two kernels
// that finish the same row must not contract its products differently.
template <class Acc>
CE_HD RowResult<Acc> finish_row(const RowNorm<Acc>& norm, Acc target_weight, Acc target_spread,
                                const SpreadTerms<Acc>& spread, const RowOptions& options) {
  const Acc gamma = Acc(options.gamma), z_loss = Acc(options.z_loss);
  const FocalTerms<Acc> target = gamma == Acc(0)
                                     ? FocalTerms<Acc>{norm.r, Acc(1)}
                                     : focal_terms(norm.p, norm.one_minus_p, norm.r, gamma);
  const Acc lse = norm.max + norm.log_sum;
  const Acc others_slope = std::fma(Acc(2) * z_loss, lse, spread.slope);
  const Acc target_slope = target_weight * target.slope;
  RowResult<Acc> out;
  const Acc loss = std::fma(target_weight, target.loss, spread.loss);
  out.loss = z_loss == Acc(0) ? loss : std::fma(z_loss * lse, lse, loss);
  out.state.max = norm.max;
  out.state.coef = std::fma(target_weight, target.slope, others_slope) / norm.sum;
  out.state.target_grad =
      std::fma(norm.p, others_slope, -std::fma(target_slope, norm.one_minus_p, target_spread));
  out.state.log_sum = norm.log_sum;
  return out;
}

}  // namespace torchce
