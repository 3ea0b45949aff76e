// Cross entropy of rows, tile by tile: classes are neighbours in memory, or the rows are few.
//
// forward   each logit is read once:  rows * cols * b bytes in, 12 or 16 bytes of state a row out
// backward  read once, gradient written once:  2 * rows * cols * b
// both      the same 2 * rows * cols * b, since the second look at a row finds it in cache (L2
// holds
//           256 k float32 logits a core); `grad` may be the logits' memory, as a tile is read
//           before it is written
// Bound     memory; one exp per logit and direction costs about 0.2 ns on one AVX-512 core.
// A row's sums are those of its tiles merged in order, so work may be split by rows or by tiles,
// over any number of threads, without changing a bit.
#include <algorithm>
#include <vector>

#include "kernels.h"
#include "parallel.h"
#include "row_lanes.h"
#include "tile.h"

namespace torchce::cpu {
namespace {

// A thread is woken for at least this many logits: about 10 us of work.
constexpr int64_t kGrainLogits = 32768;
// Rows that are finished side by side.
constexpr int kFinished = 16;
// Rows of no more logits than this in all wait for each other between the two looks of a pass that
// takes both: 32 KiB of float32, in L2 with what they become.
constexpr int64_t kWaitingLogits = 8192;
// With fewer rows than this, tiles are shared out instead of rows, so that no thread idles.
constexpr int64_t kFewRows = 64;

template <class T>
class Rows {
  using Acc = acc_t<T>;
  // Tiles are merged in double: 25 roundings of a vocabulary of 50257 in float would be the largest
  // error of the whole row.
  using Total = RowSums<double>;
  static constexpr DType kAccDType = std::is_same_v<Acc, double> ? DType::float64 : DType::float32;

  // float16 is not: its conversions cost more registers than a fused loop has (0.69 ns instead of
  // 0.53).
  static constexpr bool kMayBeDirect = !std::is_same_v<T, Float16>;

 public:
  explicit Rows(const Problem& problem)
      : problem_(problem),
        tiles_((problem.cols + kTile - 1) / kTile),
        scale_(Acc(problem.options.logit_scale)),
        softcap_(Acc(problem.options.logit_softcap)),
        series_(Acc(problem.options.gamma)),
        spread_lies_ready_(problem.target_kind != TargetKind::probabilities ||
                           ((problem.probabilities.dtype == kAccDType ||
                             problem.probabilities.dtype == problem.logits.dtype) &&
                            problem.probabilities.layout.class_stride == 1 &&
                            problem.weight == nullptr)),
        logits_lie_ready_(kMayBeDirect && scale_ == Acc(1) && softcap_ == Acc(0) &&
                          problem.logits.layout.class_stride == 1),
        direct_(logits_lie_ready_ && problem.grad_layout.class_stride == 1 &&
                (spread_lies_ready_ || !problem.has_spread())),
        smoothing_(problem) {}

  void forward() const {
    if (problem_.rows >= kFewRows || tiles_ == 1) {
      for_each_group(kFinished, [this](int64_t row, int count, TileSums<Acc>* sums) {
        forward_group(row, count, sums);
      });
    } else {
      forward_by_tiles();
    }
  }

  void backward() const {
    const int64_t grain =
        std::max<int64_t>(1, kGrainLogits / std::min<int64_t>(kTile, problem_.cols));
    parallel_for(problem_.rows * tiles_, grain, [this](int64_t begin, int64_t end) {
      for (int64_t unit = begin; unit < end; ++unit) backward_tile(unit / tiles_, unit % tiles_);
    });
  }

  void forward_backward() const {
    if (problem_.rows >= kFewRows || tiles_ == 1) {
      const int64_t waiting = kWaitingLogits / problem_.cols;
      const int group = static_cast<int>(std::clamp<int64_t>(waiting, 1, kFinished));
      for_each_group(group, [this](int64_t row, int count, TileSums<Acc>* sums) {
        forward_group(row, count, sums);
        for (int64_t unit = row * tiles_; unit < (row + count) * tiles_; ++unit) {
          backward_tile(unit / tiles_, unit % tiles_);
        }
      });
    } else {
      forward_by_tiles();
      backward();
    }
  }

 private:
  // The part of a row that a tile holds.
  struct Span {
    int64_t begin;
    int size;
    bool holds(int64_t index) const { return index >= begin && index < begin + size; }
  };

  int64_t row_grain() const { return std::max<int64_t>(1, kGrainLogits / (problem_.cols + 1)); }

  Span span(int64_t tile) const {
    const int64_t begin = tile * kTile;
    return {begin, static_cast<int>(std::min<int64_t>(kTile, problem_.cols - begin))};
  }

  int64_t target(int64_t row) const {
    return problem_.target_kind == TargetKind::probabilities ? kNoTarget
                                                             : read_index(problem_, row);
  }

  const T* logits(int64_t row, Span span) const {
    const RowLayout& layout = problem_.logits.layout;
    return static_cast<const T*>(problem_.logits.data) + layout.offset(row) +
           span.begin * layout.class_stride;
  }

  // Returns the padded size.
  int load_logits(int64_t row, Span span, Acc* z) const {
    load(logits(row, span), problem_.logits.layout.class_stride, span.size, z);
    transform(z, span.size, scale_, softcap_);
    return pad(z, span.size, -Acc(INFINITY));
  }

  // The spread as it lies in memory, where it does so.
  Spread<T> ready_spread(int64_t row, Span span) const {
    if (problem_.target_kind == TargetKind::probabilities) {
      const Strided& source = problem_.probabilities;
      const int64_t at = source.layout.offset(row) + span.begin;
      if (source.dtype == kAccDType) {
        return {static_cast<const Acc*>(source.data) + at, nullptr, smoothing_.kept,
                smoothing_.each};
      }
      return {nullptr, static_cast<const T*>(source.data) + at, smoothing_.kept, smoothing_.each};
    }
    if (problem_.weight == nullptr) return {nullptr, nullptr, Acc(0), smoothing_.each};
    const Acc* weight = static_cast<const Acc*>(problem_.weight);
    return {weight + span.begin, nullptr, smoothing_.each, Acc(0)};
  }

  // The spread of a tile, in `buffer` where memory does not hold it.
  Spread<T> spread(int64_t row, Span span, Acc* buffer) const {
    if (spread_lies_ready_) return ready_spread(row, span);
    load_spread(row, span, buffer);
    return {buffer, nullptr, Acc(1), Acc(0)};
  }

  void load_spread(int64_t row, Span span, Acc* q) const {
    if (spread_lies_ready_) return fill_spread(ready_spread(row, span), span.size, q);
    const Acc* weight = static_cast<const Acc*>(problem_.weight);
    load_probabilities(row, span, q);
    probability_spread(q, span.size, smoothing_.kept, smoothing_.each,
                       weight == nullptr ? nullptr : weight + span.begin);
  }

  void load_probabilities(int64_t row, Span span, Acc* q) const {
    const Strided& source = problem_.probabilities;
    const int64_t at = source.layout.offset(row) + span.begin * source.layout.class_stride;
    visit_dtype<double, float, BFloat16, Float16>(source.dtype, [&](auto type) {
      using S = typename decltype(type)::type;
      load(static_cast<const S*>(source.data) + at, source.layout.class_stride, span.size, q);
    });
  }

  // Sums over one tile without the target class, which only the spread of a loss that is not focal
  // counts.
  TileSums<Acc> sum_tile(int64_t row, int64_t target, int64_t index) const {
    const Span part = span(index);
    const T* source = logits(row, part);
    if constexpr (kMayBeDirect) {
      // the loop of a focal series uses each logit twice: converting it then costs more than a copy
      const bool converts_once = std::is_same_v<T, Acc> || !problem_.has_focal_spread();
      if (logits_lie_ready_ && converts_once) return sums_of(source, row, target, part, source);
    }
    alignas(64) Acc z[kTile];
    load_logits(row, part, z);
    return sums_of(z, row, target, part, source);
  }

  template <class Z>
  TileSums<Acc> sums_of(const Z* z, int64_t row, int64_t target, Span part, const T* source) const {
    TileSums<Acc> sums;
    sums.row.max = max_of(z, part.size);
    // the exponentials of a tile of nothing but -inf are about 0
    const Acc reference = sums.row.max == -Acc(INFINITY) ? Acc(0) : sums.row.max;
    const int left_out = part.holds(target) ? static_cast<int>(target - part.begin) : -1;
    if (left_out >= 0) sums.target_logit = to_acc(z[left_out]);
    const T* next = source + kTile;
    if (!problem_.has_spread()) {
      sums.row.sum = exp_sum<T>(z, part.size, left_out, reference, next);
      return sums;
    }
    alignas(64) Acc buffer[kTile];
    const Spread<T> q = spread(row, part, buffer);
    if (problem_.has_focal_spread()) {
      with_degree(series_, [&](auto degree) {
        spread_sums<decltype(degree)::value>(z, part.size, q, left_out, reference, next, sums);
      });
      return sums;
    }
    spread_sums<0>(z, part.size, q, left_out, reference, next, sums);
    if (left_out >= 0) {
      const Acc target_q = smoothing_.each * weight_of<Acc>(problem_, target);
      sums.row.spread_weight += target_q;
      sums.row.spread_gap += unless_zero(target_q, reference - sums.target_logit);
    }
    return sums;
  }

  // With focal loss every class has a factor that depends on its p. Where the series does not serve
  // a tile, it takes a second look at its logits.
  SpreadTerms<Acc> focal_spread_of(int64_t row, int64_t target, const TileSums<Acc>* sums,
                                   const RowNorm<Acc>& norm) const {
    SpreadTerms<double> total;
    for (int64_t index = 0; index < tiles_; ++index) {
      const RowSums<Acc>& row_sums = sums[index].row;
      const FocalSums<Acc>& focal_sums = sums[index].focal;
      const Acc distance = norm.log_sum + (norm.max - row_sums.max);
      const Acc r = -clamp_exponent(-distance);  // beyond, p is 0 and (1 - p)^gamma 1
      const Acc p = exp_nonpos(-r);
      SpreadTerms<Acc> terms;
      if (series_.serves(p, r)) {
        multiversion([&] { terms = focal_spread(row_sums, focal_sums, p, r, series_); });
        terms.loss =
            add_unless_zero(terms.loss, row_sums.spread_weight + focal_sums.top, distance - r);
      } else {
        terms = look_again(row, target, index, norm);
      }
      total.loss += terms.loss;
      total.slope += terms.slope;
    }
    return {Acc(total.loss), Acc(total.slope)};
  }

  SpreadTerms<Acc> look_again(int64_t row, int64_t target, int64_t index,
                              const RowNorm<Acc>& norm) const {
    Tile<Acc> tile;
    const Span part = span(index);
    const int padded = load_logits(row, part, tile.z);
    load_spread(row, part, tile.q);
    pad(tile.q, part.size, Acc(0));
    if (part.holds(target)) tile.q[target - part.begin] = Acc(0);
    return focal_spread_sums(tile.z, tile.q, padded, norm.max, norm.log_sum, series_.gamma);
  }

  // Calls body(first row, number of rows, room for the sums of their tiles) in parallel.
  template <class Body>
  void for_each_group(int group, const Body& body) const {
    parallel_for(problem_.rows, row_grain(), [&](int64_t begin, int64_t end) {
      std::vector<TileSums<Acc>> sums(static_cast<size_t>(tiles_ * group));
      for (int64_t row = begin; row < end; row += group) {
        body(row, static_cast<int>(std::min<int64_t>(group, end - row)), sums.data());
      }
    });
  }

  void forward_group(int64_t first, int count, TileSums<Acc>* sums) const {
    for (int64_t row = first; row < first + count; ++row) {
      if (is_ignored(problem_, row)) continue;
      const int64_t target = this->target(row);
      TileSums<Acc>* of_row = sums + (row - first) * tiles_;
      for (int64_t tile = 0; tile < tiles_; ++tile) of_row[tile] = sum_tile(row, target, tile);
    }
    finish(first, count, sums);
  }

  void forward_by_tiles() const {
    std::vector<TileSums<Acc>> sums(static_cast<size_t>(problem_.rows * tiles_));
    parallel_for(problem_.rows * tiles_, kGrainLogits / kTile, [&](int64_t begin, int64_t end) {
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t row = unit / tiles_;
        if (!is_ignored(problem_, row)) sums[unit] = sum_tile(row, target(row), unit % tiles_);
      }
    });
    // a focal spread may take a second look at its rows
    const int64_t grain = problem_.has_focal_spread() ? 1 : kFinished;
    parallel_for(problem_.rows, grain, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; row += kFinished) {
        finish(row, static_cast<int>(std::min<int64_t>(kFinished, end - row)), &sums[row * tiles_]);
      }
    });
  }

  // From the sums of the tiles of neighbouring rows to losses and states.
  void finish(int64_t first, int count, const TileSums<Acc>* sums) const {
    const RowLanes<Acc, kFinished> rows(problem_, first, count);
    LaneSums<Acc, kFinished> all;
    LaneNorms<Acc, kFinished> norms;
    for (int lane = 0; lane < rows.padded; ++lane) {
      const bool empty = lane >= count || rows.keep[lane] == 0;
      const TileSums<Acc>* of_row = sums + lane * tiles_;
      const int64_t target = rows.target[lane];
      all.set(lane, empty ? Total{} : merge_tiles(of_row));
      all.target_logit[lane] = target < 0 ? Acc(0) : of_row[target / kTile].target_logit;
    }
    normalise_lanes(problem_, rows, all, norms);
    if (problem_.has_focal_spread()) {
      for (int lane = 0; lane < count; ++lane) {
        if (rows.keep[lane] == 0) continue;
        const SpreadTerms<Acc> focal =
            focal_spread_of(first + lane, rows.target[lane], sums + lane * tiles_, norms.at(lane));
        norms.spread_loss[lane] = focal.loss;
        norms.spread_slope[lane] = focal.slope;
      }
    }
    finish_lanes(problem_, rows, norms);
  }

  Total merge_tiles(const TileSums<Acc>* sums) const {
    Total total = sums[0].row.template as<double>();
    if (tiles_ == 1) return total;
    multiversion([&] {  // scalar, but without an instruction for it each fma is a call
      for (int64_t tile = 1; tile < tiles_; ++tile) {
        total = merge(total, sums[tile].row.template as<double>());
      }
    });
    return total;
  }

  void backward_tile(int64_t row, int64_t index) const {
    const Span part = span(index);
    const RowLayout& layout = problem_.grad_layout;
    T* out = static_cast<T*>(problem_.grad) + layout.offset(row) + part.begin * layout.class_stride;
    if (is_ignored(problem_, row)) {
      for (int i = 0; i < part.size; ++i) out[i * layout.class_stride] = T{};
      return;
    }
    const Acc grad = row_grad<Acc>(problem_, row) * scale_;
    const int64_t target = this->target(row);
    const Acc at_target = grad * read_state<Acc>(problem_, row).target_grad;
    if constexpr (kMayBeDirect) {
      if (direct_) {
        const Spread<T> q = problem_.has_spread() ? ready_spread(row, part) : Spread<T>{};
        gradient_of(row, logits(row, part), part.size, grad, q, out);
        if (part.holds(target)) out[target - part.begin] = from_acc<T>(at_target);
        return;
      }
    }
    Tile<Acc> tile;
    alignas(64) Acc before[kTile];  // the slope of the soft cap needs them
    load_logits(row, part, tile.z);
    if (softcap_ > Acc(0)) std::copy_n(tile.z, part.size, before);
    const Spread<T> q = problem_.has_spread() ? spread(row, part, tile.q) : Spread<T>{};
    gradient_of(row, tile.z, part.size, grad, q, tile.z);
    if (part.holds(target)) tile.z[target - part.begin] = at_target;
    if (softcap_ > Acc(0)) apply_slope(tile.z, before, part.size, softcap_);
    store<T>(tile.z, part.size, out, layout.class_stride);
  }

  // Of every class as if it were not the target.
  template <class Z>
  void gradient_of(int64_t row, const Z* z, int size, Acc grad, const Spread<T>& q, Z* out) const {
    const RowState<Acc> state = read_state<Acc>(problem_, row);
    const Acc coef = grad * state.coef;
    if (problem_.has_focal_spread()) {
      focal_gradient<T>(z, size, state.max, coef, state.log_sum, series_, q.times(grad), out);
    } else {
      gradient<T>(z, size, state.max, coef, q.times(grad), out);
    }
  }

  const Problem& problem_;
  const int64_t tiles_;
  const Acc scale_, softcap_;
  const FocalSeries<Acc> series_;
  const bool spread_lies_ready_;  // in memory, up to a factor and a constant
  const bool logits_lie_ready_;
  const bool direct_;  // a gradient needs nothing but the logits and the spread as they lie
  const Smoothing<Acc> smoothing_;
};

}  // namespace

void forward_rows(const Problem& problem) {
  visit_storage(problem,
                [&](auto type) { Rows<typename decltype(type)::type>(problem).forward(); });
}

void backward_rows(const Problem& problem) {
  visit_storage(problem,
                [&](auto type) { Rows<typename decltype(type)::type>(problem).backward(); });
}

void forward_backward_rows(const Problem& problem) {
  visit_storage(
      problem, [&](auto type) { Rows<typename decltype(type)::type>(problem).forward_backward(); });
}

}  // namespace torchce::cpu
