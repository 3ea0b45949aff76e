// Rows side by side, one a lane: from the sums over their logits to losses and states. Each step
// for a single row would wait for the one before it; the same step for many rows fills vectors.
// Loops run over whole vectors, so that a row's bits depend neither on its lane nor on who is
// beside it.
#pragma once

#include <algorithm>

#include "../row_access.h"
#include "simd.h"

namespace torchce::cpu {

// Up to kLanes rows that follow one another. Lanes behind the last row, up to a multiple of kChunk,
// take part in every loop and hold harmless numbers.
template <class Acc, int kLanes>
struct alignas(64) RowLanes {
  using Int = typename ExpTraits<Acc>::Int;  // as wide as Acc: comparisons fit the same vectors
  static constexpr int kChunk = std::min(kLanes, 32);

  int64_t row;  // of lane 0
  int count, padded;
  Int target[kLanes];  // class index, or -1: ignored, or no index (probabilities)
  Int keep[kLanes];    // all bits, or none where ignored

  RowLanes(const Problem& problem, int64_t row, int count)
      : row(row), count(count), padded((count + kChunk - 1) / kChunk * kChunk) {
    std::fill(target, target + padded, Int(-1));
    std::fill(keep, keep + padded, Int(-1));
    if (problem.target_kind == TargetKind::probabilities) return;
    visit_indices(problem, [this, ignore_index = problem.ignore_index](auto* indices) {
      multiversion([=, this, first = indices + this->row] {
        for (int lane = 0; lane < this->count; ++lane) {
          const int64_t index = first[lane];
          const bool ignored = index == ignore_index;
          keep[lane] = ignored ? Int(0) : Int(-1);
          target[lane] = ignored ? Int(-1) : static_cast<Int>(index);
        }
      });
    });
  }
};

// RowSums of each lane, in double, as tiles are merged, and the logit of its target.
template <class Acc, int kLanes>
struct alignas(64) LaneSums {
  double max[kLanes], sum[kLanes], spread_weight[kLanes], spread_gap[kLanes];
  Acc target_logit[kLanes];

  CE_HD RowSums<double> at(int64_t lane) const {
    return {max[lane], sum[lane], spread_weight[lane], spread_gap[lane]};
  }
  CE_HD void set(int64_t lane, const RowSums<double>& sums) {
    max[lane] = sums.max;
    sum[lane] = sums.sum;
    spread_weight[lane] = sums.spread_weight;
    spread_gap[lane] = sums.spread_gap;
  }
};

// RowNorm of each lane, and its SpreadTerms: the plain ones, which a focal spread replaces or adds
// to.
template <class Acc, int kLanes>
struct alignas(64) LaneNorms {
  Acc max[kLanes], sum[kLanes], log_sum[kLanes], p[kLanes], one_minus_p[kLanes], r[kLanes];
  double spread_loss[kLanes], spread_slope[kLanes];

  CE_HD RowNorm<Acc> at(int64_t lane) const {
    return {max[lane], sum[lane], log_sum[lane], p[lane], one_minus_p[lane], r[lane]};
  }
};

template <class Acc, int kLanes>
void normalise_lanes(const Problem& problem, const RowLanes<Acc, kLanes>& rows,
                     const LaneSums<Acc, kLanes>& sums, LaneNorms<Acc, kLanes>& norms) {
  visit_bool(problem.target_kind != TargetKind::probabilities, [&](auto indexed) {
    multiversion([padded = rows.padded, &sums, &norms] {
      for (int lane = 0; lane < padded; ++lane) {
        const RowSums<Acc> all = sums.at(lane).template as<Acc>();
        RowNorm<Acc> norm;
        if constexpr (decltype(indexed)::value) {
          norm = normalise(all, sums.target_logit[lane]);
        } else {
          norm = normalise(all);
        }
        const SpreadTerms<Acc> spread = plain_spread(all, norm);
        norms.max[lane] = norm.max;
        norms.sum[lane] = norm.sum;
        norms.log_sum[lane] = norm.log_sum;
        norms.p[lane] = norm.p;
        norms.one_minus_p[lane] = norm.one_minus_p;
        norms.r[lane] = norm.r;
        norms.spread_loss[lane] = spread.loss;
        norms.spread_slope[lane] = spread.slope;
      }
    });
  });
}

// TargetTerms of each lane.
template <class Acc, int kLanes>
struct alignas(64) LaneTargets {
  Acc weight[kLanes], spread[kLanes];

  LaneTargets(const Problem& problem, const RowLanes<Acc, kLanes>& rows) {
    const bool weighted = problem.weight != nullptr;
    if (weighted) {
      for (int lane = 0; lane < rows.padded; ++lane) {
        const auto index = rows.target[lane];
        weight[lane] = index < 0 ? Acc(0) : weight_of<Acc>(problem, index);
      }
    }
    const Smoothing<Acc> smoothing(problem);
    const Acc each = problem.has_spread() ? smoothing.each : Acc(0);
    const bool focal_spread = problem.has_focal_spread();
    multiversion([=, this, &rows, kept = smoothing.kept] {
      for (int lane = 0; lane < rows.padded; ++lane) {
        const Acc one = rows.target[lane] < 0 ? Acc(0) : Acc(1);
        const Acc w = weighted ? weight[lane] : one;
        const TargetTerms<Acc> terms = target_terms(w, kept, each, focal_spread);
        weight[lane] = terms.weight;
        spread[lane] = terms.spread;
      }
    });
  }
};

// Losses and states of all rows, 0 where ignored.
template <class Acc, int kLanes>
void finish_lanes(const Problem& problem, const RowLanes<Acc, kLanes>& rows,
                  const LaneNorms<Acc, kLanes>& norms) {
  using Int = typename RowLanes<Acc, kLanes>::Int;
  const LaneTargets<Acc, kLanes> targets(problem, rows);
  const RowOptions options = problem.options;
  const int64_t plane = problem.rows;
  Acc* loss = static_cast<Acc*>(problem.row_loss) + rows.row;
  Acc* state = static_cast<Acc*>(problem.state) + rows.row;
  const bool log_sum = problem.has_focal_spread();
  multiversion([=, &rows, &norms, &targets] {
    const auto kept = [&rows](Acc value, int lane) {
      return bit_cast<Acc>(static_cast<Int>(bit_cast<Int>(value) & rows.keep[lane]));
    };
    alignas(64) Acc row_loss[kLanes], coef[kLanes], target_grad[kLanes];
    for (int lane = 0; lane < rows.padded; ++lane) {
      const SpreadTerms<Acc> spread{Acc(norms.spread_loss[lane]), Acc(norms.spread_slope[lane])};
      const RowResult<Acc> row =
          finish_row(norms.at(lane), targets.weight[lane], targets.spread[lane], spread, options);
      row_loss[lane] = kept(row.loss, lane);
      coef[lane] = kept(row.state.coef, lane);
      target_grad[lane] = kept(row.state.target_grad, lane);
    }
    std::copy_n(row_loss, rows.count, loss);
    std::copy_n(norms.max, rows.count, state);
    std::copy_n(coef, rows.count, state + plane);
    std::copy_n(target_grad, rows.count, state + 2 * plane);
    if (log_sum) std::copy_n(norms.log_sum, rows.count, state + 3 * plane);
  });
}

}  // namespace torchce::cpu
