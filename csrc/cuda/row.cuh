// One row of a problem on the device: what its packets add to the sums, and what they become in the
// gradient. Everything here belongs to one thread; a team brings its threads' sums together.
#pragma once

#include "../row_access.h"
#include "launch.h"
#include "row_view.cuh"

namespace torchce::cuda {

// What a loop over logits has to do; all other options are scalars per row by then.
//   plain         class index: exponentials alone
//   spread        smoothing or probabilities: every class has a weight q
//   focal_spread  and a factor that depends on its p: a second look once the normaliser is known
enum class Terms { plain, spread, focal_spread };

template <class Fn>
auto visit_terms(const Problem& problem, const Fn& fn) {
  using std::integral_constant;
  if (problem.has_focal_spread()) return fn(integral_constant<Terms, Terms::focal_spread>{});
  return problem.has_spread() ? fn(integral_constant<Terms, Terms::spread>{})
                              : fn(integral_constant<Terms, Terms::plain>{});
}

inline Grid grid_of(const LaunchPlan& plan) {
  return {static_cast<unsigned>(plan.blocks), static_cast<unsigned>(plan.threads),
          static_cast<unsigned>(plan.cluster), static_cast<size_t>(shared_bytes(plan))};
}

// The kernels' one argument.
template <class Acc>
struct Work {
  explicit Work(const Job& job)
      : problem(job.problem),
        smoothing(job.problem),
        scale(Acc(job.problem.options.logit_scale)),
        softcap(Acc(job.problem.options.logit_softcap)),
        gamma(Acc(job.problem.options.gamma)),
        logits_as_they_are(scale == Acc(1) && softcap == Acc(0)),
        uniform_spread(job.problem.target_kind != TargetKind::probabilities &&
                       job.problem.weight == nullptr),
        segment_packets(static_cast<int32_t>(job.plan.segment_packets)),
        segments(static_cast<int32_t>(job.plan.segments)),
        lanes(job.plan.lanes),
        row_at(static_cast<int32_t>(exchange_bytes(job.plan))),
        split(job.plan.split),
        partials(static_cast<RowSums<Acc>*>(job.partials)),
        target_error(job.target_error) {}

  Problem problem;
  Smoothing<Acc> smoothing;
  Acc scale, softcap, gamma;
  bool logits_as_they_are;  // neither scaled nor capped
  bool uniform_spread;      // q is smoothing.each for every class
  int32_t segment_packets, segments, lanes;
  int32_t row_at;  // where packets begin in dynamic shared memory
  bool split;
  RowSums<Acc>* partials;
  TargetError* target_error;
};

// Which row and which of its segments a team has. Teams of one thread: neighbours have neighbouring
// rows, whose logits are neighbours in memory; others: a row's segments follow each other.
struct Share {
  int64_t row;
  int32_t segment;

  __device__ __forceinline__ Share(int64_t team, int64_t rows, int32_t segments, bool one_thread)
      : row(one_thread ? team % rows : team / segments),
        segment(static_cast<int32_t>(one_thread ? team / rows : team % segments)) {}
};

// The target of a row. `column` is kNoTarget for a distribution, and for an index that is out of
// range: no memory is ever addressed with it.
struct RowTarget {
  int32_t column;
  bool ignored, valid;

  __device__ __forceinline__ RowTarget(const Problem& problem, int64_t row)
      : column(static_cast<int32_t>(kNoTarget)), ignored(false), valid(true) {
    if (problem.target_kind == TargetKind::probabilities) return;
    const int64_t index = read_index(problem, row);
    ignored = index == problem.ignore_index;
    valid = ignored || (index >= 0 && index < problem.cols);
    if (!ignored && valid) column = static_cast<int32_t>(index);
  }
};

__device__ __forceinline__ void report(const Problem& problem, int64_t row, TargetError* record) {
  // the first to come stays: of a problem in parts, the look at the whole names the row
  if (static_cast<volatile TargetError*>(record)->row_plus_one != 0) return;
  store_packet(record, bit_cast<uint4>(TargetError{row + 1, read_index(problem, row)}));
  __threadfence_system();
}

// RowState with the upstream gradient folded in.
template <class Acc>
struct RowGradient {
  Acc max, coef, target_grad, log_sum, upstream;

  __device__ __forceinline__ RowGradient(const RowState<Acc>& state, Acc upstream)
      : max(state.max),
        coef(upstream * state.coef),
        target_grad(upstream * state.target_grad),
        log_sum(state.log_sum),
        upstream(upstream) {}

  // dz of a class that is not the target. fma is written out: where a row begins decides which loop
  // an entry is computed in, and must not decide its bits.
  __device__ __forceinline__ Acc entry(Acc z, Acc spread) const {
    return std::fma(coef, exp_nonpos(z - max), -spread);
  }
};

// q of a row's classes: what smoothing or given probabilities, times class weights, put there.
template <class T>
struct Spread {
  using Acc = acc_t<T>;
  using Values = Acc[kPacket<T>];

  const Work<Acc>& work;
  const int64_t offset;  // of the row's probabilities

  __device__ __forceinline__ Spread(const Work<Acc>& work, int64_t row)
      : work(work),
        offset(has_probabilities() ? work.problem.probabilities.layout.offset(row) : 0) {}

  // 0 outside the row.
  __device__ __forceinline__ void load(const RowView<T>& logits, int column, Values& q) const {
    const Problem& problem = work.problem;
    Values weight;
#pragma unroll
    for (int i = 0; i < kPacket<T>; ++i) {
      q[i] = Acc(0);
      weight[i] = logits.holds(column + i) ? Acc(1) : Acc(0);
    }
    if (has_probabilities()) {
      visit_storage(problem.probabilities.dtype, [&](auto type) {
        using S = typename decltype(type)::type;
        load_part(static_cast<const S*>(problem.probabilities.data) + offset,
                  problem.probabilities.layout.class_stride, logits, column, q);
      });
    }
    if (problem.weight != nullptr) {
      load_part(static_cast<const Acc*>(problem.weight), 1, logits, column, weight);
    }
#pragma unroll
    for (int i = 0; i < kPacket<T>; ++i) {
      q[i] = (q[i] * work.smoothing.kept + work.smoothing.each) * weight[i];
    }
  }

  // What a packet adds to the weight and the gap of the spread.
  __device__ __forceinline__ void add(RowSums<Acc>& sums, const Values& z, const RowView<T>& logits,
                                      int column, Acc reference) const {
    if (work.uniform_spread && logits.holds_whole(column)) {
      Acc gap = 0;
#pragma unroll
      for (int i = 0; i < kPacket<T>; ++i) gap += reference - z[i];
      sums.spread_gap += work.smoothing.each * gap;
      sums.spread_weight += work.smoothing.each * Acc(kPacket<T>);
      return;
    }
    Values q;
    load(logits, column, q);
#pragma unroll
    for (int i = 0; i < kPacket<T>; ++i) {
      sums.spread_weight += q[i];
      sums.spread_gap += unless_zero(q[i], reference - z[i]);
    }
  }

 private:
  __device__ __forceinline__ bool has_probabilities() const {
    return work.problem.target_kind == TargetKind::probabilities;
  }

  template <class S>
  __device__ __forceinline__ void load_part(const S* source, int64_t stride,
                                            const RowView<T>& logits, int column,
                                            Values& out) const {
    if (stride == 1 && logits.holds_whole(column)) return load_values(source + column, out);
#pragma unroll
    for (int i = 0; i < kPacket<T>; ++i) {
      if (logits.holds(column + i)) {
        out[i] = static_cast<Acc>(to_acc(source[(column + i) * stride]));
      }
    }
  }
};

template <class T, Terms terms>
struct Row {
  using Acc = acc_t<T>;
  using Values = Acc[kPacket<T>];

  const Work<Acc>& work;
  const RowView<T> logits;
  const RowTarget target;
  const Spread<T> spread;

  __device__ __forceinline__ Row(const Work<Acc>& work, int64_t row)
      : work(work),
        logits(work.problem.logits.data, work.problem.logits.layout, row, work.problem.cols),
        target(work.problem, row),
        spread(work, row) {}

  // The target's own logit; 0 where there is none.
  __device__ __forceinline__ Acc target_logit() const {
    return target.column < 0 ? Acc(0)
                             : transform_logit(logits.at(target.column), work.scale, work.softcap);
  }

  // Adds the classes from `column` on to the sums of all classes but the target.
  __device__ __forceinline__ void add(RowSums<Acc>& sums, uint4 bits, int column) const {
    Values z;
    transform(bits, column, z);
    Acc max = sums.max;
#pragma unroll
    for (int i = 0; i < kPacket<T>; ++i) max = fmax(max, z[i]);  // a NaN shows in the sum
    const Acc reference = max == -Acc(INFINITY) ? Acc(0) : max;
    if constexpr (terms == Terms::spread) {
      sums.spread_gap = rebase_gap(sums, reference);
      spread.add(sums, z, logits, column, reference);
    }
    replace_target(z, column, -Acc(INFINITY));
    Acc sum = 0;
#pragma unroll
    for (int i = 0; i < kPacket<T>; ++i) sum += exp_nonpos(z[i] - reference);
    sums.sum = std::fma(sums.sum, exp_nonpos(sums.max - reference), sum);
    sums.max = max;
  }

  // A batch of pieces, first, first + step, .. < pieces. What most rows consist of, whole pieces of
  // logits as they are, goes without a check or a rescaling per piece.
  __device__ __forceinline__ void add(RowSums<Acc>& sums, const Batch<T>& batch, int first,
                                      int step) const {
    const int last = first + (kBatch - 1) * step, pieces = logits.pieces();
    const bool simple = work.logits_as_they_are &&
                        (terms != Terms::spread || work.uniform_spread) &&
                        logits.holds_whole(last * kPacket<T>);
    if (!simple) {
#pragma unroll 1
      for (int k = 0; k < kBatch && first + k * step < pieces; ++k) {
        add(sums, batch[k], (first + k * step) * kPacket<T>);
      }
      return;
    }
    Values z[kBatch];
    Acc max = sums.max;
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      unpack<T>(batch[k], z[k]);
#pragma unroll
      for (int i = 0; i < kPacket<T>; ++i) max = fmax(max, z[k][i]);
    }
    const Acc reference = max == -Acc(INFINITY) ? Acc(0) : max;
    if constexpr (terms == Terms::spread) {
      Acc gap = 0;
#pragma unroll
      for (int k = 0; k < kBatch; ++k) {
#pragma unroll
        for (int i = 0; i < kPacket<T>; ++i) gap += reference - z[k][i];
      }
      sums.spread_gap = std::fma(work.smoothing.each, gap, rebase_gap(sums, reference));
      sums.spread_weight += work.smoothing.each * Acc(kBatch * kPacket<T>);
    }
    Acc sum = 0;
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      replace_target(z[k], (first + k * step) * kPacket<T>, -Acc(INFINITY));
      Acc part = 0;
#pragma unroll
      for (int i = 0; i < kPacket<T>; ++i) part += exp_nonpos(z[k][i] - reference);
      sum += part;
    }
    sums.sum = std::fma(sums.sum, exp_nonpos(sums.max - reference), sum);
    sums.max = max;
  }

  // The second look that a focal spread needs.
  __device__ __forceinline__ void add_focal(SpreadTerms<Acc>& sums, uint4 bits, int column,
                                            const RowNorm<Acc>& norm) const {
    Values z, q;
    transform(bits, column, z);
    spread.load(logits, column, q);
    replace_target(q, column, Acc(0));
#pragma unroll
    for (int i = 0; i < kPacket<T>; ++i) {
      const Acc r = norm.log_sum + (norm.max - z[i]);
      const FocalTerms<Acc> focal = focal_terms(exp_nonpos(-r), r, work.gamma);
      sums.loss += unless_zero(q[i], focal.loss);
      sums.slope += q[i] * focal.slope;
    }
  }

  // The gradient of the logits from `column` on.
  __device__ __forceinline__ void gradient(uint4 bits, int column, const RowGradient<Acc>& row,
                                           Values& out) const {
    Values z;
    transform(bits, column, z);
    Values q;
    if constexpr (terms != Terms::plain) spread.load(logits, column, q);
#pragma unroll
    for (int i = 0; i < kPacket<T>; ++i) {
      if constexpr (terms == Terms::focal_spread) {
        const Acc r = row.log_sum + (row.max - z[i]);
        q[i] *= focal_terms(exp_nonpos(-r), r, work.gamma).slope;
      }
      out[i] = row.entry(z[i], terms == Terms::plain ? Acc(0) : row.upstream * q[i]);
    }
    replace_target(out, column, row.target_grad);
    if (work.softcap > Acc(0)) {
#pragma unroll
      for (int i = 0; i < kPacket<T>; ++i) out[i] *= transform_slope(z[i], work.softcap);
    }
  }

  // The gradient of a batch of packets, first, first + step, .. < end, to where it belongs.
  __device__ __forceinline__ void write_gradient(const RowView<T>& grad, const Batch<T>& batch,
                                                 int first, int step, int end,
                                                 const RowGradient<Acc>& row) const {
    const int last = first + (kBatch - 1) * step;
    const bool simple =
        last < end && work.logits_as_they_are &&
        (terms == Terms::plain || (terms == Terms::spread && work.uniform_spread)) &&
        grad.moves_whole(first) && grad.moves_whole(last);
    if (!simple) {
#pragma unroll 1
      for (int k = 0; k < kBatch && first + k * step < end; ++k) {
        Values out;
        gradient(batch[k], logits.column(first + k * step), row, out);
        grad.store(first + k * step, out);
      }
      return;
    }
    const Acc constant = terms == Terms::plain ? Acc(0) : row.upstream * work.smoothing.each;
    const int column = logits.column(first);
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      Values z;
      unpack<T>(batch[k], z);
#pragma unroll
      for (int i = 0; i < kPacket<T>; ++i) {
        z[i] = row.entry(z[i], constant);
      }
      replace_target(z, column + k * step * kPacket<T>, row.target_grad);
      store_packet(grad.data + column + k * step * kPacket<T>, pack<T>(z));
    }
  }

  __device__ __forceinline__ RowNorm<Acc> normalise(const RowSums<Acc>& sums,
                                                    Acc target_logit) const {
    return normalise_row(sums, int64_t{target.column}, target_logit);
  }

  __device__ __forceinline__ RowResult<Acc> finish(const RowSums<Acc>& sums,
                                                   const RowNorm<Acc>& norm,
                                                   const SpreadTerms<Acc>& focal) const {
    if (!target.valid) {
      const Acc nan = Acc(NAN);
      return {nan, {nan, nan, nan, nan}};
    }
    return finish_row(work.problem, work.smoothing, int64_t{target.column}, sums, norm, focal);
  }

 private:
  // -inf outside the row: nothing to a maximum and to a sum of exponentials.
  __device__ __forceinline__ void transform(uint4 bits, int column, Values& z) const {
    unpack<T>(bits, z);
    if (work.softcap > Acc(0)) {
#pragma unroll
      for (int i = 0; i < kPacket<T>; ++i) z[i] = transform_logit(z[i], work.scale, work.softcap);
    } else if (work.scale != Acc(1)) {
#pragma unroll
      for (int i = 0; i < kPacket<T>; ++i) z[i] *= work.scale;
    }
    if (logits.holds_whole(column)) return;
#pragma unroll
    for (int i = 0; i < kPacket<T>; ++i) z[i] = logits.holds(column + i) ? z[i] : -Acc(INFINITY);
  }

  // Where the row has no target, what may be replaced lies outside the row.
  __device__ __forceinline__ void replace_target(Values& values, int column, Acc with) const {
    const int at = target.column - column;
    if (at < 0 || at >= kPacket<T>) return;
#pragma unroll
    for (int i = 0; i < kPacket<T>; ++i) values[i] = i == at ? with : values[i];
  }
};

}  // namespace torchce::cuda
