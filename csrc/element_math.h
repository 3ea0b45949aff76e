// The mathematics of one element of a sigmoid loss, for the CPU and for CUDA.
//
//   p = sigmoid(x)     u = t (1 - p) + (1 - t) p, the probability of being wrong
//   entropy = pos_weight t softplus(-x) + (1 - t) softplus(x)
//   loss    = a u^gamma entropy,    a = alpha t + (1 - alpha) (1 - t), or 1 without alpha
//
// At gamma = 0 this is binary cross entropy with logits; else torchvision's sigmoid focal loss (Lin
// et al., Focal Loss for Dense Object Detection, 2017). p and 1 - p both come from exp(-|x|), so
// neither is the small difference of two large numbers.
#pragma once

#include "elementary.h"

namespace torchce {

enum class Modulation : int32_t { none, square, any };  // gamma = 0, gamma = 2, any other

template <class Acc>
struct ElementOptions {
  Acc gamma = 0;
  Acc negative = 1, positive = 1;  // a at t = 0 and at t = 1
  Acc ignored = Acc(NAN);          // the target of elements that do not count; NaN: none
};

template <class Acc>
struct ElementTerms {
  Acc loss, slope;  // slope = d loss / dx
};

template <Modulation kModulation, class Acc>
CE_HD ElementTerms<Acc> element_terms(Acc x, Acc t, Acc pos_weight,
                                      const ElementOptions<Acc>& options) {
  const Acc magnitude = x < Acc(0) ? -x : x;
  const Acc e = exp_nonpos_fine(-magnitude);
  const Acc larger = Acc(1) / (Acc(1) + e), smaller = e * larger;
  const Acc p = x < Acc(0) ? smaller : larger, not_p = x < Acc(0) ? larger : smaller;
  const Acc log_sum = log1p_unit(e);  // softplus(|x|) - |x|
  const Acc minus_log_p = (x < Acc(0) ? magnitude : Acc(0)) + log_sum;
  const Acc minus_log_not_p = (x < Acc(0) ? Acc(0) : magnitude) + log_sum;

  const Acc not_t = Acc(1) - t, positive = pos_weight * t;
  // a sum of two products says which of them is rounded
  const Acc entropy = mul_add(positive, positive == Acc(0) ? Acc(0) : minus_log_p,
                              unless_zero(not_t, minus_log_not_p));
  const Acc entropy_slope = mul_add(not_t, p, -(positive * not_p));
  const Acc a = mul_add(options.negative, not_t, options.positive * t);
  if constexpr (kModulation == Modulation::none) {
    return {a * entropy, a * entropy_slope};
  } else {
    const Acc u = mul_add(t, not_p, not_t * p);
    const Acc u_slope = p * not_p * (not_t - t);
    // u^(gamma - 1): large for gamma < 1 and u -> 0, where what it multiplies is smaller still;
    // times u before times another small number. A power of a negative number, which a target
    // outside [0, 1] makes, is NaN.
    const Acc power =
        kModulation == Modulation::square
            ? u
            : exp_nonpos((options.gamma - Acc(1)) * log_positive(u < Acc(0) ? Acc(NAN) : u));
    const Acc factor = power * u, factor_slope = options.gamma * (power * u_slope);
    return {a * unless_zero(factor, entropy),
            a * mul_add(factor, entropy_slope, unless_zero(factor_slope, entropy))};
  }
}

}  // namespace torchce
