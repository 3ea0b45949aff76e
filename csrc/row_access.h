// What one row of a problem is read from and written to, besides its logits; for both backends.
#pragma once

#include "dispatch.h"

namespace torchce {

// Calls fn with the class indices in their own type. Whoever reads one turns it into int64 first,
// so that 2^32 is not class 0.
template <class Fn>
CE_HD auto visit_indices(const Problem& problem, Fn&& fn) {
  switch (problem.target_kind) {
    case TargetKind::int64:
      return fn(static_cast<const int64_t*>(problem.target));
    case TargetKind::int32:
      return fn(static_cast<const int32_t*>(problem.target));
    default:
      return fn(static_cast<const uint8_t*>(problem.target));
  }
}

CE_HD int64_t read_index(const Problem& problem, int64_t row) {
  return visit_indices(problem,
                       [row](auto* indices) { return static_cast<int64_t>(indices[row]); });
}

CE_HD bool is_ignored(const Problem& problem, int64_t row) {
  return problem.target_kind != TargetKind::probabilities &&
         read_index(problem, row) == problem.ignore_index;
}

template <class Acc>
CE_HD Acc weight_of(const Problem& problem, int64_t index) {
  return problem.weight == nullptr ? Acc(1) : static_cast<const Acc*>(problem.weight)[index];
}

constexpr int64_t kNoTarget = -1;  // a row whose target is a distribution has no class index

// How label smoothing divides a target of weight 1: `kept` stays where it was, every class gets
// `each`.
template <class Acc>
struct Smoothing {
  Acc kept, each;

  explicit Smoothing(const Problem& problem)
      : kept(Acc(1 - problem.options.label_smoothing)),
        each(Acc(problem.options.label_smoothing / static_cast<double>(problem.cols))) {}
};

// `sums` leave out the target class, whose logit is `target_logit`.
template <class Acc>
CE_HD RowNorm<Acc> normalise_row(const RowSums<Acc>& sums, int64_t target, Acc target_logit) {
  return target == kNoTarget ? normalise(sums) : normalise(sums, target_logit);
}

// What finish_row wants to know of a target class: t apart from its spread, and q where the spread
// counted it.
template <class Acc>
struct TargetTerms {
  Acc weight, spread;
};

// `each` is 0 where nothing is spread. A focal spread leaves the target class to its own term.
template <class Acc>
CE_HD TargetTerms<Acc> target_terms(Acc class_weight, Acc kept, Acc each, bool focal_spread) {
  const Acc spread = unless_zero(each, class_weight);
  if (focal_spread) return {mul_add(kept, class_weight, spread), Acc(0)};
  return {kept * class_weight, spread};
}

// From the sums of a row to its loss and what backward needs; with a focal spread, `focal` holds
// the spread part without the target class.
template <class Acc>
CE_HD RowResult<Acc> finish_row(const Problem& problem, const Smoothing<Acc>& smoothing,
                                int64_t target, const RowSums<Acc>& sums, const RowNorm<Acc>& norm,
                                const SpreadTerms<Acc>& focal) {
  const bool focal_spread = problem.has_focal_spread();
  const TargetTerms<Acc> terms =
      target_terms(target == kNoTarget ? Acc(0) : weight_of<Acc>(problem, target), smoothing.kept,
                   problem.has_spread() ? smoothing.each : Acc(0), focal_spread);
  return finish_row(norm, terms.weight, terms.spread,
                    focal_spread ? focal : plain_spread(sums, norm), problem.options);
}

template <class Acc>
CE_HD void write_row(const Problem& problem, int64_t row, const RowResult<Acc>& result) {
  Acc* state = static_cast<Acc*>(problem.state) + row;
  state[0] = result.state.max;
  state[problem.rows] = result.state.coef;
  state[2 * problem.rows] = result.state.target_grad;
  if (problem.has_focal_spread()) state[3 * problem.rows] = result.state.log_sum;
  static_cast<Acc*>(problem.row_loss)[row] = result.loss;
}

template <class Acc>
CE_HD RowState<Acc> read_state(const Problem& problem, int64_t row) {
  const Acc* state = static_cast<const Acc*>(problem.state) + row;
  RowState<Acc> out;
  out.max = state[0];
  out.coef = state[problem.rows];
  out.target_grad = state[2 * problem.rows];
  if (problem.has_focal_spread()) out.log_sum = state[3 * problem.rows];
  return out;
}

// The gradient that arrives at a row's loss, divided by the mean's divisor.
template <class Acc>
CE_HD Acc row_grad(const Problem& problem, int64_t row) {
  const Acc grad = problem.grad_loss == nullptr
                       ? Acc(1)
                       : static_cast<const Acc*>(problem.grad_loss)[row * problem.grad_loss_stride];
  return problem.divisor == nullptr ? grad : grad / *static_cast<const Acc*>(problem.divisor);
}

}  // namespace torchce
