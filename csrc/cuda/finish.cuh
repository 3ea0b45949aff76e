// From a row's sums to its loss, state and gradient: what resident and streaming kernels share.
#pragma once

#include "row.cuh"
#include "team.cuh"

namespace torchce::cuda {

// The sums of a team's lanes: first their maximum, then one exponential for each lane, then sums.
// What is summed is no product: fused with the first addition, it would be rounded in the other
// lane and not in its own, and each lane would have another sum.
template <Terms terms, class Acc>
struct TeamSums {
  template <int kLanes>
  __device__ __forceinline__ RowSums<Acc> operator()(RowSums<Acc> sums,
                                                     const LaneGroup<kLanes>& lanes) const {
    const Acc max = lanes.max(sums.max);
    const Acc reference = max == -Acc(INFINITY) ? Acc(0) : max;
    sums.sum = lanes.sum(rounded_product(sums.sum, exp_nonpos(sums.max - reference)));
    if constexpr (terms == Terms::spread) {
      sums.spread_gap = lanes.sum(rebase_gap(sums, reference));
      sums.spread_weight = lanes.sum(sums.spread_weight);
    }
    sums.max = max;
    return sums;
  }

  template <int kLanes, int kDegree>
  __device__ __forceinline__ SeriesSums<Acc, kDegree> operator()(
      SeriesSums<Acc, kDegree> sums, const LaneGroup<kLanes>& lanes) const {
    sums = rebase(sums, lanes.max(sums.row.max));
    sums.row.sum = lanes.sum(sums.row.sum);
    sums.row.spread_weight = lanes.sum(sums.row.spread_weight);
    sums.row.spread_gap = lanes.sum(sums.row.spread_gap);
    sums.focal.top = lanes.sum(sums.focal.top);
#pragma unroll
    for (int k = 0; k < kDegree; ++k) {
      sums.focal.power[k] = lanes.sum(sums.focal.power[k]);
      sums.focal.times_gap[k] = lanes.sum(sums.focal.times_gap[k]);
    }
    return sums;
  }
};

template <class Acc>
struct TeamTerms {
  template <int kLanes>
  __device__ __forceinline__ SpreadTerms<Acc> operator()(const SpreadTerms<Acc>& terms,
                                                         const LaneGroup<kLanes>& lanes) const {
    return {lanes.sum(terms.loss), lanes.sum(terms.slope)};
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

// From a row's sums to its result and gradient. `source.pieces(body)` calls body(batch) for every
// batch of this thread's pieces once more, `source.packets(body)` for its packets.
template <bool gradient, class T, Terms terms, class Team, class Source>
__device__ __forceinline__ void finish(const Work<acc_t<T>>& work, int64_t index,
                                       const Row<T, terms>& row, Team& team,
                                       const typename Row<T, terms>::Sums& all,
                                       acc_t<T> target_logit, const Source& source) {
  using Acc = acc_t<T>;
  const RowSums<Acc>& sums = row.row_sums(all);
  RowNorm<Acc> norm;
  if (team.leads()) norm = row.normalise(sums, target_logit);
  SpreadTerms<Acc> focal;
  if constexpr (terms == Terms::focal_spread) {
    if (work.by_series) {
      if (team.leads()) focal = row.focal_terms_of(all, norm);
    } else {
      norm = team.from_leader(norm);
      source.pieces([&](const auto& batch) { row.add_focal(focal, batch, norm); });
      focal = team.reduce(focal, TeamTerms<Acc>{});
    }
  }
  team.done_reducing();
  RowState<Acc> state;
  if (team.leads()) {
    const RowResult<Acc> result = row.finish(sums, norm, focal);
    if (team.speaks()) write_result(work, index, row.target, result);
    state = result.state;
  }
  if constexpr (gradient) {
    const typename Row<T, terms>::Gradient row_gradient(
        work, team.from_leader(state), row_grad<Acc>(work.problem, index) * work.scale);
    const RowView<T> grad(work.problem.grad, work.problem.grad_layout, index, row.logits);
    source.packets([&](const Batch<T, 1>& batch) {
      row.write_gradient(grad, batch, row.logits.packets(), row_gradient);
    });
    row.write_target(grad, row_gradient, 0, row.logits.packets(), team.rank(), team.size());
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
