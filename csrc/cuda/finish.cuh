// From a row's sums to its loss, state and gradient: what resident and streaming kernels share.
#pragma once

#include "row.cuh"
#include "team.cuh"

namespace torchce::cuda {

template <class Acc>
struct MergeSums {
  __device__ __forceinline__ RowSums<Acc> operator()(const RowSums<Acc>& a,
                                                     const RowSums<Acc>& b) const {
    return merge(a, b);
  }
};

template <class Acc>
struct AddTerms {
  __device__ __forceinline__ SpreadTerms<Acc> operator()(const SpreadTerms<Acc>& a,
                                                         const SpreadTerms<Acc>& b) const {
    return {a.loss + b.loss, a.slope + b.slope};
  }
};

template <class Acc>
__device__ __forceinline__ void write_result(const Work<Acc>& work, int64_t row,
                                             const RowTarget& target,
                                             const RowResult<Acc>& result) {
  if (!target.valid) report(work.problem, row, work.target_error);
  if (work.problem.state != nullptr) return write_row(work.problem, row, result);
  static_cast<Acc*>(work.problem.row_loss)[row] = result.loss;
}

// An ignored row: nothing is read, loss, state and gradient are exactly 0.
template <bool gradient, class T, class Team>
__device__ __forceinline__ void write_ignored(const Work<acc_t<T>>& work, int64_t index,
                                              const RowTarget& target, const RowView<T>& logits,
                                              const Team& team) {
  if (team.speaks()) write_result<acc_t<T>>(work, index, target, {});
  if constexpr (gradient) {
    const RowView<T> grad(work.problem.grad, work.problem.grad_layout, index, logits);
    for (int packet = team.rank(); packet < logits.packets(); packet += team.size()) {
      grad.store_zeros(packet);
    }
  }
}

// From a row's sums to its result and gradient. `source.pieces(body)` calls body(batch, first,
// step) for every batch of this thread's pieces once more, `source.packets(body)` for its packets.
template <bool gradient, class T, Terms terms, class Team, class Source>
__device__ __forceinline__ void finish(const Work<acc_t<T>>& work, int64_t index,
                                       const Row<T, terms>& row, Team& team,
                                       const RowSums<acc_t<T>>& sums, acc_t<T> target_logit,
                                       const Source& source) {
  using Acc = acc_t<T>;
  RowNorm<Acc> norm;
  if (team.leads()) norm = row.normalise(sums, target_logit);
  SpreadTerms<Acc> focal;
  if constexpr (terms == Terms::focal_spread) {
    norm = team.from_leader(norm);
    source.pieces([&](const Batch<T>& batch, int first, int step) {
#pragma unroll 1
      for (int k = 0; k < kBatch && first + k * step < row.logits.pieces(); ++k) {
        row.add_focal(focal, batch[k], (first + k * step) * kPacket<T>, norm);
      }
    });
    focal = team.reduce(focal, AddTerms<Acc>{});
  }
  team.done_reducing();
  RowState<Acc> state;
  if (team.leads()) {
    const RowResult<Acc> result = row.finish(sums, norm, focal);
    if (team.speaks()) write_result(work, index, row.target, result);
    state = result.state;
  }
  if constexpr (gradient) {
    const RowGradient<Acc> row_gradient(team.from_leader(state),
                                        row_grad<Acc>(work.problem, index) * work.scale);
    const RowView<T> grad(work.problem.grad, work.problem.grad_layout, index, row.logits);
    source.packets([&](const Batch<T>& batch, int first, int step) {
      row.write_gradient(grad, batch, first, step, row.logits.packets(), row_gradient);
    });
  }
  team.leave();
}

// Calls launch(type, terms, gradient) with what a job asks for as types.
template <class Launch>
cudaError_t visit_job(const Job& job, const Launch& launch) {
  return visit_storage(job.problem.logits.dtype, [&](auto type) {
    return visit_bool(job.problem.grad != nullptr, [&](auto gradient) {
      return visit_terms(job.problem, [&](auto terms) { return launch(type, terms, gradient); });
    });
  });
}

}  // namespace torchce::cuda
