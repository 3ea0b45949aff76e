// What one row of a problem is read from and written to, besides its logits.
#pragma once

#include "../dispatch.h"
#include "storage.h"

namespace torchce::cpu {

template <class Fn>
auto visit_storage(const Problem& problem, Fn&& fn) {
  return visit_dtype<double, float, BFloat16, Float16>(problem.logits.dtype, fn);
}

// Calls fn with the class indices in their own type. Whoever reads one turns it into int64 first,
// so that 2^32 is not class 0.
template <class Fn>
auto visit_indices(const Problem& problem, Fn&& fn) {
  switch (problem.target_kind) {
    case TargetKind::int64:
      return fn(static_cast<const int64_t*>(problem.target));
    case TargetKind::int32:
      return fn(static_cast<const int32_t*>(problem.target));
    default:
      return fn(static_cast<const uint8_t*>(problem.target));
  }
}

inline int64_t read_index(const Problem& problem, int64_t row) {
  return visit_indices(problem,
                       [row](auto* indices) { return static_cast<int64_t>(indices[row]); });
}

inline double weight_of(const Problem& problem, int64_t index) {
  if (problem.weight == nullptr) return 1;
  return problem.logits.dtype == DType::float64 ? static_cast<const double*>(problem.weight)[index]
                                                : static_cast<const float*>(problem.weight)[index];
}

inline bool is_ignored(const Problem& problem, int64_t row) {
  return problem.target_kind != TargetKind::probabilities &&
         read_index(problem, row) == problem.ignore_index;
}

template <class Acc>
void write_row(const Problem& problem, int64_t row, const RowResult<Acc>& result) {
  Acc* state = static_cast<Acc*>(problem.state) + row;
  state[0] = result.state.max;
  state[problem.rows] = result.state.coef;
  state[2 * problem.rows] = result.state.target_grad;
  if (problem.has_focal_spread()) state[3 * problem.rows] = result.state.log_sum;
  static_cast<Acc*>(problem.row_loss)[row] = result.loss;
}

template <class Acc>
RowState<Acc> read_state(const Problem& problem, int64_t row) {
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
Acc row_grad(const Problem& problem, int64_t row) {
  return static_cast<const Acc*>(problem.grad_loss)[row * problem.grad_loss_stride] *
         Acc(problem.grad_scale);
}

}  // namespace torchce::cpu
