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
//   focal_spread  and a factor that depends on its p: sums of a series in p, or a second look at
//                 the row once its normaliser is known
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

constexpr int32_t bits_of(int32_t power_of_two) {
  return power_of_two <= 1 ? 0 : 1 + bits_of(power_of_two / 2);
}

// The kernels' one argument.
template <class Acc>
struct Work {
  explicit Work(const Job& job)
      : problem(job.problem),
        smoothing(job.problem),
        scale(Acc(job.problem.options.logit_scale)),
        softcap(Acc(job.problem.options.logit_softcap)),
        of_cap(softcap == Acc(0) ? Acc(0) : scale / softcap),
        series(Acc(job.problem.options.gamma)),
        by_series(job.problem.has_quadratic_spread()),
        uniform_spread(!job.problem.has_spread() ||
                       (job.problem.target_kind != TargetKind::probabilities &&
                        job.problem.weight == nullptr)),
        segment_packets(static_cast<int32_t>(job.plan.segment_packets)),
        segments(static_cast<int32_t>(job.plan.segments)),
        lane_bits(bits_of(job.plan.lanes)),
        row_at(job.plan.exchange_bytes),
        split(job.plan.split),
        partials(job.partials),
        target_error(job.target_error) {}

  Problem problem;
  Smoothing<Acc> smoothing;
  Acc scale, softcap, of_cap;  // of_cap: scale / softcap
  FocalSeries<Acc> series;
  bool by_series;       // a focal spread's sums are those of the series
  bool uniform_spread;  // q is smoothing.each for every class
  int32_t segment_packets, segments;
  int32_t lane_bits;  // log2 of a backward team's threads
  int32_t row_at;     // where packets begin in dynamic shared memory
  bool split;
  void* partials;
  TargetError* target_error;
};

// Which row and which of its segments a team has. Teams of one thread: neighbours have neighbouring
// rows, whose logits are neighbours in memory; others: a row's segments follow each other.
struct Share {
  int64_t row;
  int32_t segment;

  __device__ __forceinline__ Share(int64_t team, int64_t rows, int32_t segments, bool one_thread)
      : row(team), segment(0) {
    if (segments == 1) return;  // a division is as much work as a few dozen logits
    row = one_thread ? team % rows : team / segments;
    segment = static_cast<int32_t>(one_thread ? team / rows : team - row * segments);
  }
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

// What exponentials of a row whose largest logit is `max` are taken relative to: 2^n, near e^max.
// As n is an integer, one fused operation gives log2(e) z - n, rounded once; z - max would be
// another. Not for double, nor for a logit so far from 0 that n would not be exact: there it is
// e^max itself. Which of the two follows from `max` alone.
template <class Acc>
struct PowerOfTwo {
  static constexpr float kLog2E = 1.4426950408889634f;
  static constexpr float kFar = 1 << 20;
  static constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer

  Acc n;

  __device__ __forceinline__ explicit PowerOfTwo(Acc max) : n(0) {
    if constexpr (sizeof(Acc) == 4) n = std::fma(max, kLog2E, kRound) - kRound;
  }

  __device__ __forceinline__ static bool serves(Acc max) {
    return sizeof(Acc) == 4 && std::fabs(max) < Acc(kFar);
  }

  // e^z / 2^n
  __device__ __forceinline__ Acc exp(Acc z) const { return exp2_of(std::fma(z, Acc(kLog2E), -n)); }
  // 2^n / e^max, whose rounding is that of every entry of the row: by a polynomial, 1 ulp, where
  // the instruction has 2
  __device__ __forceinline__ Acc over_exp(Acc max) const {
    const Acc t = Acc(-0.69314718f) * std::fma(max, Acc(kLog2E), -n);  // at most ln2 / 2
    return Acc(1) + std::fma(t * t, ExpTraits<Acc>::tail(t), t);
  }
};

constexpr int kSeriesDegree = 2;  // of the series whose sums the device keeps

// f(p) of a row's classes, for the gradient of a focal spread. Where the series serves only the
// likeliest class can have p > 1/2, and takes the exact value.
template <class Acc>
struct FocalSlope {
  const FocalSeries<Acc>& series;
  bool by_series;
  Acc log_sum, p_of_max, of_max;

  __device__ __forceinline__ FocalSlope(const Work<Acc>& work, Acc log_sum)
      : series(work.series),
        by_series(work.by_series),
        log_sum(log_sum),
        p_of_max(exp_nonpos(-log_sum)),
        of_max(series.exact(p_of_max, log_sum).slope) {}

  // x = z - max, e = exp(x)
  __device__ __forceinline__ Acc operator()(Acc x, Acc e) const {
    if (!by_series) {
      const Acc r = log_sum - x;
      return focal_terms(exp_nonpos(-r), r, series.gamma).slope;
    }
    const Acc r = log_sum - fmax(x, ExpTraits<Acc>::kLowest);  // finite: it meets p = 0
    const Acc slope = series.template slope<kSeriesDegree>(p_of_max * e, r);
    return x == Acc(0) ? of_max : slope;
  }
};

// RowState with the upstream gradient folded in; `focal`: of a focal spread.
template <class Acc, bool focal>
struct RowGradient {
  Acc max, coef, target_grad, upstream;
  PowerOfTwo<Acc> power;
  // coef is for exponentials relative to it: not where p may meet a given q that is as large, as
  // in a row of one class, for at the maximum e^0 alone is exactly 1
  bool by_power;
  FocalSlope<Acc> slope;

  __device__ __forceinline__ RowGradient(const Work<Acc>& work, const RowState<Acc>& state,
                                         Acc upstream)
      : max(state.max),
        coef(upstream * state.coef),
        target_grad(upstream * state.target_grad),
        upstream(upstream),
        power(max),
        by_power(!focal && work.uniform_spread && PowerOfTwo<Acc>::serves(max)),
        slope(work, state.log_sum) {
    if (by_power) coef = rounded_product(coef, power.over_exp(max));
  }

  // dz of a class that is not the target, whose spread is q / upstream. fma is written out: where
  // a row begins decides which loop an entry is computed in, and must not decide its bits.
  __device__ __forceinline__ Acc entry(Acc z, Acc q) const {
    if constexpr (!focal) {
      return std::fma(coef, by_power ? power.exp(z) : exp_nonpos(z - max), -q);
    } else {
      const Acc x = z - max, e = exp_nonpos(x);
      return std::fma(coef, e, -rounded_product(q, slope(x, e)));
    }
  }
  // The same where by_power.
  __device__ __forceinline__ Acc entry_by_power(Acc z, Acc q) const {
    return std::fma(coef, power.exp(z), -q);
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
      q[i] = rounded_product(mul_add(q[i], work.smoothing.kept, work.smoothing.each), weight[i]);
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
  using Series = SeriesSums<Acc, kSeriesDegree>;
  static constexpr bool kFocal = terms == Terms::focal_spread;
  using Gradient = RowGradient<Acc, kFocal>;
  using Sums = std::conditional_t<kFocal, Series, RowSums<Acc>>;

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
    if (target.column < 0) return Acc(0);
    const Acc x = logits.at(target.column);
    return work.softcap > Acc(0) ? capped(part_of_cap(x)) : rounded_product(x, work.scale);
  }

  // Adds a batch of pieces to the sums of all classes but the target. What most rows have, no soft
  // cap and the same spread for every class, goes without a rescaling for each piece.
  template <int kGroup>
  __device__ __forceinline__ void add(Sums& sums, const Batch<T, kGroup>& batch) const {
    if (by_power()) {
      if (add_by_power(sums, batch)) return;
      settle(sums);
      add_pieces(sums, batch);
      return unsettle(sums);
    }
    if (!by_batches()) return add_pieces(sums, batch);
    const Span span = span_of(batch);
    uint4 bits[kBatch];
    batch.load(bits);
    Values z[kBatch];
    unpack_all(bits, z);
    if (work.scale != Acc(1)) {
#pragma unroll
      for (int k = 0; k < kBatch; ++k) rescale(z[k]);
    }
    accumulate(sums, z, span, std::true_type{});
  }

  // After the last `add`, before sums are merged: relative to e^max.
  __device__ __forceinline__ void settle(Sums& sums) const {
    if constexpr (kMayUsePower) {
      if (!by_power() || !PowerOfTwo<Acc>::serves(sums.max)) return;
      sums.sum = rounded_product(sums.sum, PowerOfTwo<Acc>(sums.max).over_exp(sums.max));
    }
  }

  // The second look that a focal spread needs where the series does not serve.
  template <int kGroup>
  __device__ __forceinline__ void add_focal(SpreadTerms<Acc>& sums, const Batch<T, kGroup>& batch,
                                            const RowNorm<Acc>& norm) const {
#pragma unroll 1
    for (int k = 0; k < kBatch && batch.number(k) < logits.pieces(); ++k) {
      const int column = batch.number(k) * kPacket<T>;
      Values z, q;
      unpack<T>(batch[k], z);
      transform(z);
      spread.load(logits, column, q);
      replace_target(q, column, Acc(0));
#pragma unroll
      for (int i = 0; i < kPacket<T>; ++i) {
        if (!logits.holds(column + i)) z[i] = -Acc(INFINITY);
        const Acc r = norm.log_sum + (norm.max - z[i]);
        const FocalTerms<Acc> focal = focal_terms(exp_nonpos(-r), r, work.series.gamma);
        sums.loss = add_unless_zero(sums.loss, q[i], focal.loss);
        sums.slope = mul_add(q[i], focal.slope, sums.slope);
      }
    }
  }

  // The gradient of a batch of packets, those below `end`, to where it belongs.
  __device__ __forceinline__ void write_gradient(const RowView<T>& grad, const Batch<T, 1>& batch,
                                                 int end, const Gradient& row) const {
    const int last = batch.number(kBatch - 1);
    const bool whole =
        batch.first >= grad.whole_begin && (last < grad.whole_end || end <= grad.whole_end);
    if (whole && by_batches() && (kFocal ? work.by_series : row.by_power)) {
      if (work.scale == Acc(1)) return write_whole<false>(grad, batch, end, row);
      return write_whole<true>(grad, batch, end, row);
    }
#pragma unroll 1
    for (int k = 0; k < kBatch && batch.number(k) < end; ++k) {
      Values out;
      gradient(batch[k], logits.column(batch.number(k)), row, out);
      grad.store(batch.number(k), out);
    }
  }

  // The target's own entry, after all others, but with a soft cap, where packets have it: by the
  // thread that wrote its packet, the one of
  // `size` threads that begin at packet `begin` and end before `end`.
  __device__ __forceinline__ void write_target(const RowView<T>& grad, const Gradient& row,
                                               int begin, int end, int rank, int size) const {
    if (target.column < 0) return;
    const int packet = static_cast<int>((int64_t{target.column} + logits.shift) / kPacket<T>);
    if (packet < begin || packet >= end || (packet - begin) % size != rank) return;
    if (work.softcap == Acc(0))
      grad.data[target.column * grad.stride] = from_acc<T>(row.target_grad);
  }

  __device__ __forceinline__ static const RowSums<Acc>& row_sums(const RowSums<Acc>& sums) {
    return sums;
  }
  __device__ __forceinline__ static const RowSums<Acc>& row_sums(const Series& sums) {
    return sums.row;
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

  // The spread part of a focal loss, where the series serves.
  __device__ __forceinline__ SpreadTerms<Acc> focal_terms_of(const Series& sums,
                                                             const RowNorm<Acc>& norm) const {
    const Acc r = -clamp_exponent(sums.row.max - norm.max - norm.log_sum);
    return focal_spread(sums.row, sums.focal, exp_nonpos(-r), r, work.series);
  }

 private:
  __device__ __forceinline__ void gradient(uint4 bits, int column, const Gradient& row,
                                           Values& out) const {
    Values z, part, q = {};
    unpack<T>(bits, z);
    if (work.softcap > Acc(0)) {
#pragma unroll
      for (int i = 0; i < kPacket<T>; ++i) {
        part[i] = part_of_cap(z[i]);
        z[i] = capped(part[i]);
      }
    } else if (work.scale != Acc(1)) {
      rescale(z);
    }
    if constexpr (terms != Terms::plain) spread.load(logits, column, q);
#pragma unroll
    for (int i = 0; i < kPacket<T>; ++i) {
      out[i] = row.entry(z[i], row.upstream * q[i]);
    }
    replace_target(out, column, row.target_grad);
    if (work.softcap > Acc(0)) {
#pragma unroll
      for (int i = 0; i < kPacket<T>; ++i) out[i] *= transform_slope(part[i], Acc(1));
    }
  }

  // The columns of a thread's pieces: first, first + step, ..; `whole`: none ends outside the row.
  struct Span {
    int first, step;
    bool whole;
  };

  __device__ __forceinline__ bool by_batches() const {
    return work.softcap == Acc(0) && (terms == Terms::plain || work.uniform_spread ||
                                      (terms == Terms::focal_spread && !work.by_series));
  }

  template <int kGroup>
  __device__ __forceinline__ Span span_of(const Batch<T, kGroup>& batch) const {
    // the same for the whole group, lest both ways are taken
    const bool whole = logits.holds_whole(batch.last_of_group() * kPacket<T>);
    return {batch.first * kPacket<T>, batch.step * kPacket<T>, whole};
  }

  __device__ __forceinline__ static void unpack_all(const uint4 (&bits)[kBatch],
                                                    Values (&z)[kBatch]) {
#pragma unroll
    for (int k = 0; k < kBatch; ++k) unpack<T>(bits[k], z[k]);
  }

  // Whether `add` takes exponentials relative to a power of two.
  static constexpr bool kMayUsePower = terms != Terms::focal_spread && sizeof(Acc) == 4;
  __device__ __forceinline__ bool by_power() const {
    return kMayUsePower && by_batches() && work.scale == Acc(1);
  }

  // What `settle` does, undone.
  __device__ __forceinline__ void unsettle(Sums& sums) const {
    if constexpr (kMayUsePower) {
      if (!PowerOfTwo<Acc>::serves(sums.max)) return;
      sums.sum /= PowerOfTwo<Acc>(sums.max).over_exp(sums.max);
    }
  }

  template <int kGroup>
  __device__ __forceinline__ void add_pieces(Sums& sums, const Batch<T, kGroup>& batch) const {
#pragma unroll 1
    for (int k = 0; k < kBatch && batch.number(k) < logits.pieces(); ++k) {
      Values z[1];
      const int column = batch.number(k) * kPacket<T>;
      const Span span{column, 0, logits.holds_whole(column)};
      unpack<T>(batch[k], z[0]);
      transform(z[0]);
      accumulate(sums, z, span, std::false_type{});
    }
  }

  __device__ __forceinline__ void rescale(Values& z) const {
#pragma unroll
    for (int i = 0; i < kPacket<T>; ++i) z[i] = rounded_product(z[i], work.scale);
  }

  template <bool kScaled>
  __device__ __forceinline__ void write_whole(const RowView<T>& grad, const Batch<T, 1>& batch,
                                              int end, const Gradient& row) const {
    uint4 bits[kBatch];
    batch.load(bits);
    const Acc constant = terms == Terms::plain ? Acc(0) : row.upstream * work.smoothing.each;
    T* const out = grad.data + logits.column(batch.first);
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      Values z;
      unpack<T>(bits[k], z);
      if constexpr (kScaled) rescale(z);
#pragma unroll
      for (int i = 0; i < kPacket<T>; ++i) {
        z[i] = kFocal ? row.entry(z[i], constant) : row.entry_by_power(z[i], constant);
      }
      if (batch.number(k) < end) store_packet(out + k * batch.step * kPacket<T>, pack<T>(z));
    }
  }

  // z / softcap of a logit, and z; never part of a fused operation, since it is compared.
  __device__ __forceinline__ Acc part_of_cap(Acc x) const { return tanh_any(x * work.of_cap); }
  __device__ __forceinline__ Acc capped(Acc part) const {
    return rounded_product(work.softcap, part);
  }

  __device__ __forceinline__ void transform(Values& z) const {
    if (work.softcap > Acc(0)) {
#pragma unroll
      for (int i = 0; i < kPacket<T>; ++i) z[i] = capped(part_of_cap(z[i]));
    } else if (work.scale != Acc(1)) {
      rescale(z);
    }
  }

  template <int kPackets>
  __device__ __forceinline__ Acc max_of(const Values (&z)[kPackets], Acc max) const {
#pragma unroll
    for (int k = 0; k < kPackets; ++k) {
#pragma unroll
      for (int i = 0; i < kPacket<T>; ++i) max = fmax(max, z[k][i]);  // a NaN shows in the sum
    }
    return max;
  }

  // What lies outside the row.
  template <int kPackets>
  __device__ __forceinline__ void leave_out(Values (&z)[kPackets], const Span& span,
                                            Acc with) const {
    if (span.whole) return;
#pragma unroll
    for (int k = 0; k < kPackets; ++k) {
      const int left = logits.cols - (span.first + k * span.step);
#pragma unroll
      for (int i = 0; i < kPacket<T>; ++i) z[k][i] = i < left ? z[k][i] : with;
    }
  }

  template <int kPackets>
  __device__ __forceinline__ int count(const Span& span) const {
    if (span.whole) return kPackets * kPacket<T>;
    int inside = 0;
#pragma unroll
    for (int k = 0; k < kPackets; ++k) {
      inside += min(max(logits.cols - (span.first + k * span.step), 0), kPacket<T>);
    }
    return inside;
  }

  // Where the row has no target, what may be replaced lies outside the row.
  __device__ __forceinline__ bool replace_target(Values& values, int column, Acc with) const {
    const int at = target.column - column;
    if (at < 0 || at >= kPacket<T>) return false;
#pragma unroll
    for (int i = 0; i < kPacket<T>; ++i) values[i] = i == at ? with : values[i];
    return true;
  }

  template <int kPackets>
  __device__ __forceinline__ bool replace_target(Values (&values)[kPackets], const Span& span,
                                                 Acc with) const {
    const int at = target.column - span.first;
    if (at < 0 || at >= (kPackets - 1) * span.step + kPacket<T>) return false;
    bool found = false;
#pragma unroll
    for (int k = 0; k < kPackets; ++k) {
      found |= replace_target(values[k], span.first + k * span.step, with);
    }
    return found;
  }

  __device__ __forceinline__ Acc max_of(const uint4 (&bits)[kBatch]) const {
    Values z;
    if constexpr (sizeof(T) == 2) {
      uint4 max = bits[0];
#pragma unroll
      for (int k = 1; k < kBatch; ++k) {
        max = {max_pair<T>(max.x, bits[k].x), max_pair<T>(max.y, bits[k].y),
               max_pair<T>(max.z, bits[k].z), max_pair<T>(max.w, bits[k].w)};
      }
      const float2 pair =
          unpack_pair<T>(max_pair<T>(max_pair<T>(max.x, max.y), max_pair<T>(max.z, max.w)));
      return std::fmax(pair.x, pair.y);
    } else {
      Acc max = -Acc(INFINITY);
#pragma unroll
      for (int k = 0; k < kBatch; ++k) {
        unpack<T>(bits[k], z);
#pragma unroll
        for (int i = 0; i < kPacket<T>; ++i) max = fmax(max, z[i]);
      }
      return max;
    }
  }

  // Puts -inf in the target's place.
  __device__ __forceinline__ void leave_out_target(uint4 (&bits)[kBatch], const Span& span) const {
    const int at = target.column - span.first;
    if (at < 0 || at >= (kBatch - 1) * span.step + kPacket<T>) return;
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      const int place = at - k * span.step;
      if (place < 0 || place >= kPacket<T>) continue;
      Values z;
      unpack<T>(bits[k], z);
#pragma unroll
      for (int i = 0; i < kPacket<T>; ++i) z[i] = i == place ? -Acc(INFINITY) : z[i];
      bits[k] = pack<T>(z);
    }
  }

  // Adds a batch to sums that are relative to a power of two until `settle`. Returns false, and
  // does nothing, where a largest logit is or was too far from 0.
  template <int kGroup>
  __device__ __forceinline__ bool add_by_power(Sums& sums, const Batch<T, kGroup>& batch) const {
    if constexpr (kMayUsePower) {
      using Power = PowerOfTwo<Acc>;
      uint4 bits[kBatch];
      batch.load(bits);
      const Acc max = std::fmax(max_of(bits), sums.max);
      const Acc reference = max == -Acc(INFINITY) ? Acc(0) : max;
      if (!Power::serves(reference)) return false;
      if (!Power::serves(sums.max) && sums.max != -Acc(INFINITY)) return false;
      const Span span = span_of(batch);
      Values z[kBatch];
      if constexpr (terms == Terms::plain) {
        leave_out_target(bits, span);
        unpack_all(bits, z);
      } else {
        unpack_all(bits, z);
        add_gaps(sums, z, span, reference);
        replace_target(z, span, -Acc(INFINITY));
      }
      const Power power(reference);
      Acc sum = 0;
#pragma unroll
      for (int k = 0; k < kBatch; ++k) {
        Acc part = 0;
#pragma unroll
        for (int i = 0; i < kPacket<T>; ++i) part += power.exp(z[k][i]);
        sum += part;
      }
      sums.sum = std::fma(sums.sum, exp2_of(Power(sums.max).n - power.n), sum);
      sums.max = max;
    }
    return true;
  }

  // The spread of a batch of which each class has the same, its largest logit being `reference`.
  __device__ __forceinline__ void add_gaps(RowSums<Acc>& sums, const Values (&z)[kBatch],
                                           const Span& span, Acc reference) const {
    Acc gap = 0;
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      const int left = span.whole ? kPacket<T> : logits.cols - (span.first + k * span.step);
#pragma unroll
      for (int i = 0; i < kPacket<T>; ++i) gap += i < left ? reference - z[k][i] : Acc(0);
    }
    sums.spread_gap = std::fma(work.smoothing.each, gap, rebase_gap(sums, reference));
    sums.spread_weight =
        std::fma(work.smoothing.each, Acc(count<kBatch>(span)), sums.spread_weight);
  }

  // Adds pieces to the sums: for a whole batch the spread is the same for all, for one piece it is
  // looked up.
  template <int kPackets, class Uniform>
  __device__ __forceinline__ void accumulate(RowSums<Acc>& sums, Values (&z)[kPackets],
                                             const Span& span, Uniform) const {
    leave_out(z, span, -Acc(INFINITY));
    const Acc max = max_of(z, sums.max);
    const Acc reference = max == -Acc(INFINITY) ? Acc(0) : max;
    if constexpr (terms == Terms::spread && Uniform::value) {
      add_gaps(sums, z, span, reference);
    } else if constexpr (terms == Terms::spread) {
      Values q;
      spread.load(logits, span.first, q);
      sums.spread_gap = rebase_gap(sums, reference);
#pragma unroll
      for (int i = 0; i < kPacket<T>; ++i) {
        sums.spread_weight += q[i];
        sums.spread_gap = add_unless_zero(sums.spread_gap, q[i], reference - z[0][i]);
      }
    }
    replace_target(z, span, -Acc(INFINITY));
    Acc sum = 0;
#pragma unroll
    for (int k = 0; k < kPackets; ++k) {
      Acc part = 0;
#pragma unroll
      for (int i = 0; i < kPacket<T>; ++i) part += exp_nonpos(z[k][i] - reference);
      sum += part;
    }
    sums.sum = std::fma(sums.sum, exp_nonpos(sums.max - reference), sum);
    sums.max = max;
  }

  // What lies outside the row, and the target, is given the maximum: so it is a tie, which none of
  // the sums of the series counts. Products are rounded, as in `rebase`.
  template <int kPackets, class Uniform>
  __device__ __forceinline__ void accumulate(Series& sums, Values (&z)[kPackets], const Span& span,
                                             Uniform uniform) const {
    if (!work.by_series) return accumulate(sums.row, z, span, uniform);
    leave_out(z, span, -Acc(INFINITY));
    const Acc max = max_of(z, sums.row.max);
    const Acc reference = max == -Acc(INFINITY) ? Acc(0) : max;
    leave_out(z, span, reference);
    const bool has_target = replace_target(z, span, reference);
    Values q;
    if constexpr (!Uniform::value) {
      spread.load(logits, span.first, q);
      replace_target(q, span.first, Acc(0));
    }
    const int size = kPackets * kPacket<T>, left_out = size - count<kPackets>(span) + has_target;
    Acc ties = 0;
    Series pass;
#pragma unroll
    for (int k = 0; k < kPackets; ++k) {
#pragma unroll
      for (int i = 0; i < kPacket<T>; ++i) {
        const bool tie = z[k][i] == reference;
        const Acc gap = reference - z[k][i];
        const Acc e = tie ? Acc(0) : exp_nonpos(-gap);
        const Acc finite_gap = fmin(gap, -ExpTraits<Acc>::kLowest);  // it meets e = 0
        if (tie) ties += Acc(1);
        pass.row.sum += e;
        Acc term = e;
        if constexpr (Uniform::value) {
          pass.row.spread_gap += gap;
        } else {
          if (tie) pass.focal.top += q[i];
          if (!tie) pass.row.spread_weight += q[i];
          pass.row.spread_gap = add_unless_zero(pass.row.spread_gap, q[i], gap);
          term = rounded_product(q[i], e);
        }
#pragma unroll
        for (int power = 0; power < kSeriesDegree; ++power) {
          pass.focal.power[power] += term;
          pass.focal.times_gap[power] = std::fma(term, finite_gap, pass.focal.times_gap[power]);
          term = rounded_product(term, e);
        }
      }
    }
    if constexpr (Uniform::value) {
      const Acc each = work.smoothing.each;
      pass.row.spread_weight = rounded_product(each, Acc(size) - ties);
      pass.row.spread_gap = rounded_product(each, pass.row.spread_gap);
      pass.focal.top = rounded_product(each, ties - Acc(left_out));
#pragma unroll
      for (int power = 0; power < kSeriesDegree; ++power) {
        pass.focal.power[power] = rounded_product(each, pass.focal.power[power]);
        pass.focal.times_gap[power] = rounded_product(each, pass.focal.times_gap[power]);
      }
    }
    // a maximum of +inf makes the row NaN
    pass.row.sum = mul_add(ties - Acc(left_out), exp_nonpos(max - reference), pass.row.sum);
    pass.row.max = max;
    sums = add_sums(rebase(sums, max), pass);
  }
};

}  // namespace torchce::cuda
