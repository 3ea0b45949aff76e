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

#include "../row_access.h"
#include "kernels.h"
#include "parallel.h"
#include "tile.h"

namespace torchce::cpu {
namespace {

// A thread is woken for at least this many logits: about 10 us of work.
constexpr int64_t kGrainLogits = 32768;
// With fewer rows than this, tiles are shared out instead of rows, so that no thread idles.
constexpr int64_t kFewRows = 64;

template <class T>
class Rows {
  using Acc = acc_t<T>;
  // Tiles are merged in double: 25 roundings of a vocabulary of 50257 in float would be the largest
  // error of the whole row.
  using Total = RowSums<double>;

 public:
  explicit Rows(const Problem& problem)
      : problem_(problem),
        tiles_((problem.cols + kTile - 1) / kTile),
        scale_(Acc(problem.options.logit_scale)),
        softcap_(Acc(problem.options.logit_softcap)),
        gamma_(Acc(problem.options.gamma)),
        direct_(problem.target_kind != TargetKind::probabilities && !problem.has_focal_spread() &&
                scale_ == Acc(1) && softcap_ == Acc(0) && problem.logits.layout.class_stride == 1 &&
                problem.grad_layout.class_stride == 1),
        smoothing_(problem) {}

  void forward() const {
    if (problem_.rows >= kFewRows || tiles_ == 1) {
      parallel_for(problem_.rows, row_grain(), [this](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) forward_row(row);
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
      parallel_for(problem_.rows, row_grain(), [this](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
          forward_row(row);
          for (int64_t tile = 0; tile < tiles_; ++tile) backward_tile(row, tile);
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

  Acc logit(int64_t row, int64_t index) const {
    const RowLayout& layout = problem_.logits.layout;
    const T x = static_cast<const T*>(
        problem_.logits.data)[layout.offset(row) + index * layout.class_stride];
    return transform_logit(to_acc(x), scale_, softcap_);
  }

  // Returns the padded size.
  int load_logits(int64_t row, Span span, Acc* z) const {
    const RowLayout& layout = problem_.logits.layout;
    const T* source = static_cast<const T*>(problem_.logits.data) + layout.offset(row) +
                      span.begin * layout.class_stride;
    load(source, layout.class_stride, span.size, z);
    transform(z, span.size, scale_, softcap_);
    return pad(z, span.size, -Acc(INFINITY));
  }

  // The spread of a tile; `buffer` holds what is not in memory as it is needed.
  Spread<Acc> spread(int64_t row, Span span, Acc* buffer) const {
    const Acc* weight = problem_.weight == nullptr
                            ? nullptr
                            : static_cast<const Acc*>(problem_.weight) + span.begin;
    const bool whole = span.size % kLanes == 0;
    if (problem_.target_kind == TargetKind::probabilities) {
      load_probabilities(row, span, buffer);
      probability_spread(buffer, span.size, smoothing_.kept, smoothing_.each, weight);
      pad(buffer, span.size, Acc(0));
      return {buffer, Acc(1)};
    }
    if (whole) return {weight, smoothing_.each};
    if (weight == nullptr) {
      std::fill_n(buffer, span.size, Acc(1));
    } else {
      std::copy_n(weight, span.size, buffer);
    }
    pad(buffer, span.size, Acc(0));
    return {buffer, smoothing_.each};
  }

  // The same as values alone.
  void load_spread(int64_t row, Span span, Acc* q) const {
    const Spread<Acc> part = spread(row, span, q);
    if (part.values == q && part.factor == Acc(1)) return;
    const int padded = (span.size + kLanes - 1) / kLanes * kLanes;
    for (int i = 0; i < padded; ++i)
      q[i] = part.factor * (part.values == nullptr ? Acc(1) : part.values[i]);
  }

  void load_probabilities(int64_t row, Span span, Acc* q) const {
    const Strided& source = problem_.probabilities;
    const int64_t at = source.layout.offset(row) + span.begin * source.layout.class_stride;
    visit_dtype<double, float, BFloat16, Float16>(source.dtype, [&](auto type) {
      using S = typename decltype(type)::type;
      load(static_cast<const S*>(source.data) + at, source.layout.class_stride, span.size, q);
    });
  }

  // Sums over one tile without the target class.
  RowSums<Acc> sum_tile(int64_t row, int64_t target, int64_t index) const {
    Tile<Acc> tile;
    const Span part = span(index);
    const int padded = load_logits(row, part, tile.z);
    RowSums<Acc> sums;
    sums.max = max_of(tile.z, padded);
    const Acc reference = sums.max == -Acc(INFINITY) ? Acc(0) : sums.max;
    if (problem_.has_spread() && !problem_.has_focal_spread()) {
      spread_sums(tile.z, spread(row, part, tile.q), padded, reference, sums);
    }
    if (part.holds(target)) tile.z[target - part.begin] = -Acc(INFINITY);
    sums.sum = exp_sum(tile.z, padded, reference);
    return sums;
  }

  // With focal loss every class has a factor that depends on its p: a second look at the row, which
  // leaves out the target class.
  SpreadTerms<Acc> focal_spread(int64_t row, int64_t target, const RowNorm<Acc>& norm) const {
    SpreadTerms<Acc> total;
    for (int64_t index = 0; index < tiles_; ++index) {
      Tile<Acc> tile;
      const Span part = span(index);
      const int padded = load_logits(row, part, tile.z);
      load_spread(row, part, tile.q);
      if (part.holds(target)) tile.q[target - part.begin] = Acc(0);
      const SpreadTerms<Acc> terms =
          focal_spread_sums(tile.z, tile.q, padded, norm.max, norm.log_sum, gamma_);
      total.loss += terms.loss;
      total.slope += terms.slope;
    }
    return total;
  }

  void forward_row(int64_t row) const {
    if (is_ignored(problem_, row)) return write_row<Acc>(problem_, row, {});
    const int64_t target = this->target(row);
    Total total = sum_tile(row, target, 0).template as<double>();
    for (int64_t tile = 1; tile < tiles_; ++tile) {
      total = merge(total, sum_tile(row, target, tile).template as<double>());
    }
    write_row(problem_, row, finish(row, target, total));
  }

  void forward_by_tiles() const {
    std::vector<Total> sums(static_cast<size_t>(problem_.rows * tiles_));
    parallel_for(problem_.rows * tiles_, kGrainLogits / kTile, [&](int64_t begin, int64_t end) {
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t row = unit / tiles_;
        if (is_ignored(problem_, row)) continue;
        sums[unit] = sum_tile(row, target(row), unit % tiles_).template as<double>();
      }
    });
    parallel_for(problem_.rows, 1, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        if (is_ignored(problem_, row)) {
          write_row<Acc>(problem_, row, {});
          continue;
        }
        Total total = sums[row * tiles_];
        for (int64_t tile = 1; tile < tiles_; ++tile)
          total = merge(total, sums[row * tiles_ + tile]);
        write_row(problem_, row, finish(row, target(row), total));
      }
    });
  }

  RowResult<Acc> finish(int64_t row, int64_t target, const Total& total) const {
    const RowSums<Acc> sums = total.template as<Acc>();
    const RowNorm<Acc> norm =
        normalise_row(sums, target, target == kNoTarget ? Acc(0) : logit(row, target));
    const SpreadTerms<Acc> focal =
        problem_.has_focal_spread() ? focal_spread(row, target, norm) : SpreadTerms<Acc>{};
    return finish_row(problem_, smoothing_, target, sums, norm, focal);
  }

  void backward_tile(int64_t row, int64_t index) const {
    const Span part = span(index);
    const RowLayout& layout = problem_.grad_layout;
    T* out = static_cast<T*>(problem_.grad) + layout.offset(row) + part.begin * layout.class_stride;
    if (is_ignored(problem_, row)) {
      for (int i = 0; i < part.size; ++i) out[i * layout.class_stride] = T{};
      return;
    }
    const RowState<Acc> state = read_state<Acc>(problem_, row);
    const Acc grad = row_grad<Acc>(problem_, row) * scale_;
    const Acc coef = grad * state.coef;
    const int64_t target = this->target(row);
    if constexpr (std::is_same_v<T, Acc>) {
      if (direct_) {
        backward_directly(row, part, state, coef, grad, out);
        if (part.holds(target)) out[target - part.begin] = grad * state.target_grad;
        return;
      }
    }
    Tile<Acc> tile, logits;
    const int padded = load_logits(row, part, tile.z);
    if (softcap_ > Acc(0)) std::copy_n(tile.z, part.size, logits.z);
    if (problem_.has_focal_spread()) {
      load_spread(row, part, tile.q);
      focal_spread_gradient(tile.z, tile.q, padded, state.max, coef, state.log_sum, gamma_, grad);
    } else if (problem_.has_spread()) {
      spread_gradient(tile.z, spread(row, part, tile.q), padded, state.max, coef, grad);
    } else {
      plain_gradient(tile.z, padded, state.max, coef);
    }
    if (part.holds(target)) tile.z[target - part.begin] = grad * state.target_grad;
    if (softcap_ > Acc(0)) apply_slope(tile.z, logits.z, part.size, softcap_);
    store<T>(tile.z, part.size, out, layout.class_stride);
  }

  void backward_directly(int64_t row, Span part, const RowState<Acc>& state, Acc coef, Acc grad,
                         Acc* out) const {
    const Acc* source = static_cast<const Acc*>(problem_.logits.data) +
                        problem_.logits.layout.offset(row) + part.begin;
    if (problem_.has_spread()) {
      const Acc* weight = problem_.weight == nullptr
                              ? nullptr
                              : static_cast<const Acc*>(problem_.weight) + part.begin;
      with_spread(Spread<Acc>{weight, smoothing_.each * grad}, [&](auto grad_q) {
        direct_gradient(source, part.size, state.max, coef, grad_q, out);
      });
    } else {
      direct_gradient(source, part.size, state.max, coef, [](int64_t) { return Acc(0); }, out);
    }
  }

  const Problem& problem_;
  const int64_t tiles_;
  const Acc scale_, softcap_, gamma_;
  const bool direct_;  // a gradient needs nothing but the logits as they are, and the weights
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
