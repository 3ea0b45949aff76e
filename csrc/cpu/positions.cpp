// Cross entropy along positions: where they, not classes, are neighbours in memory ((N, C, d1, ..)
// and transposed (N, C)), and where rows are too short to fill a vector. A block is kLanes
// positions by kClassTile classes in a stack buffer; every loop runs along the positions, so
// nothing is permuted in memory, nothing is reduced across lanes, and a position's bits do not
// depend on its neighbours.
//
// Moves     as rows.cpp: forward reads each logit once, backward reads once and writes once. Where
// all
//           classes fit one class tile, forward_backward finds its second look in L1.
// Bound     memory, in runs of kLanes * b bytes per class.
#include <algorithm>

#include "../row_access.h"
#include "kernels.h"
#include "parallel.h"
#include "simd.h"
#include "storage.h"

namespace torchce::cpu {
namespace {

// 128, 512 and 1024 were 2 to 10 % slower forward at (2, 21, 512, 512) float32, one thread.
constexpr int kLanes = 256;
constexpr int kClassTile = 32;
constexpr int kCacheLine = 64;
constexpr int64_t kGrainLogits = 32768;

template <class T>
class Positions {
  using Acc = acc_t<T>;
  using Int = typename ExpTraits<Acc>::Int;  // as wide as Acc: comparisons fit the same vectors

  // One value per position; `[[maybe_unused]]` lanes past the block's count hold harmless numbers.
  using Lane = Acc[kLanes];

  struct alignas(64) Block {
    int64_t row;  // of lane 0
    int count, padded;
    Int target[kLanes];  // class index, or -1: ignored, or no index (probabilities)
    Lane keep;           // 1, or 0 where ignored
  };

  struct alignas(64) Grid {
    Acc z[kClassTile][kLanes];
    Acc q[kClassTile][kLanes];
  };

 public:
  explicit Positions(const Problem& problem)
      : problem_(problem),
        scale_(Acc(problem.options.logit_scale)),
        softcap_(Acc(problem.options.logit_softcap)),
        gamma_(Acc(problem.options.gamma)),
        kept_(Acc(1 - problem.options.label_smoothing)),
        smoothing_(Acc(problem.options.label_smoothing / static_cast<double>(problem.cols))),
        run_(problem.logits.layout.inner_size()) {
    if (problem.target_kind == TargetKind::probabilities) {
      run_ = std::min(run_, problem.probabilities.layout.inner_size());
    }
    if (problem.grad != nullptr) run_ = std::min(run_, problem.grad_layout.inner_size());
    blocks_per_run_ = (run_ + kLanes - 1) / kLanes;
  }

  void forward() const {
    for_each_block([this](const Block& block) { forward_block(block); });
  }
  void backward() const {
    for_each_block([this](const Block& block) { backward_block(block); });
  }
  void forward_backward() const {
    for_each_block([this](const Block& block) {
      forward_block(block);
      backward_block(block);
    });
  }

 private:
  template <class Body>
  void for_each_block(const Body& body) const {
    const int64_t blocks = problem_.rows / run_ * blocks_per_run_;
    const int64_t block_logits = std::min<int64_t>(kLanes, run_) * (problem_.cols + 1);
    parallel_for(blocks, std::max<int64_t>(1, kGrainLogits / block_logits),
                 [&](int64_t begin, int64_t end) {
                   for (int64_t index = begin; index < end; ++index) body(block(index));
                 });
  }

  Block block(int64_t index) const {
    Block block;
    const int64_t start = index % blocks_per_run_ * kLanes;
    block.row = index / blocks_per_run_ * run_ + start;
    block.count = static_cast<int>(std::min<int64_t>(kLanes, run_ - start));
    block.padded = (block.count + 15) / 16 * 16;
    std::fill(block.target, block.target + block.padded, Int(-1));
    std::fill(block.keep, block.keep + block.padded, Acc(1));
    if (problem_.target_kind == TargetKind::probabilities) return block;
    visit_indices(problem_, [&](auto* indices) {
      for (int lane = 0; lane < block.count; ++lane) {
        const int64_t index = indices[block.row + lane];
        const bool ignored = index == problem_.ignore_index;
        block.keep[lane] = ignored ? Acc(0) : Acc(1);
        block.target[lane] = ignored ? Int(-1) : static_cast<Int>(index);
      }
    });
    return block;
  }

  Acc weight(int64_t index) const {
    return problem_.weight == nullptr ? Acc(1) : static_cast<const Acc*>(problem_.weight)[index];
  }

  // Classes [begin, begin + classes) of a block, one line per class.
  template <class S>
  void load_lines(const void* data, const RowLayout& layout, const Block& block, int64_t begin,
                  int classes, Acc (*lines)[kLanes]) const {
    const S* source =
        static_cast<const S*>(data) + layout.offset(block.row) + begin * layout.class_stride;
    const int64_t step = layout.class_stride, stride = layout.inner_stride();
    const int count = block.count, padded = block.padded;
    if (stride == 1) {
      multiversion([=] {
        for (int c = 0; c < classes; ++c) {
          const S* line = source + c * step;
          // the next block's: a stream per class is more than the hardware follows
          for (int lane = 0; lane < count; lane += kCacheLine / sizeof(S)) {
            __builtin_prefetch(line + kLanes + lane);
          }
          for (int lane = 0; lane < count; ++lane)
            lines[c][lane] = static_cast<Acc>(to_acc(line[lane]));
        }
      });
    } else {
      for (int lane = 0; lane < count; ++lane) {
        for (int c = 0; c < classes; ++c)
          lines[c][lane] = static_cast<Acc>(to_acc(source[c * step + lane * stride]));
      }
    }
    for (int c = 0; c < classes; ++c) {
      for (int lane = count; lane < padded; ++lane) lines[c][lane] = 0;
    }
  }

  void load_logits(const Block& block, int64_t begin, int classes, Grid& grid) const {
    load_lines<T>(problem_.logits.data, problem_.logits.layout, block, begin, classes, grid.z);
    if (softcap_ == Acc(0) && scale_ == Acc(1)) return;
    const int padded = block.padded;
    const Acc scale = scale_, softcap = softcap_;
    multiversion([=, &grid] {
      for (int c = 0; c < classes; ++c) {
        for (int lane = 0; lane < padded; ++lane) {
          grid.z[c][lane] = transform_logit(grid.z[c][lane], scale, softcap);
        }
      }
    });
  }

  void load_spread(const Block& block, int64_t begin, int classes, Grid& grid) const {
    const int padded = block.padded;
    const Acc kept = kept_, smoothing = smoothing_;
    const Acc* weights =
        problem_.weight == nullptr ? nullptr : static_cast<const Acc*>(problem_.weight) + begin;
    if (problem_.target_kind != TargetKind::probabilities) {
      multiversion([=, &grid] {
        for (int c = 0; c < classes; ++c) {
          const Acc value = weights == nullptr ? smoothing : smoothing * weights[c];
          for (int lane = 0; lane < padded; ++lane) grid.q[c][lane] = value;
        }
      });
      return;
    }
    const Strided& source = problem_.probabilities;
    visit_dtype<double, float, BFloat16, Float16>(source.dtype, [&](auto type) {
      load_lines<typename decltype(type)::type>(source.data, source.layout, block, begin, classes,
                                                grid.q);
    });
    multiversion([=, &grid] {
      for (int c = 0; c < classes; ++c) {
        const Acc w = weights == nullptr ? Acc(1) : weights[c];
        for (int lane = 0; lane < padded; ++lane) {
          grid.q[c][lane] = (grid.q[c][lane] * kept + smoothing) * w;
        }
      }
    });
  }

  using WideLane = double[kLanes];

  struct alignas(64) Sums {
    WideLane max, sum, spread_weight, spread_gap;
    Lane target_logit;
  };

  // Adds one class tile to the sums of the classes before it, in double: there may be thousands.
  void add_tile(const Block& block, int64_t begin, int classes, const Grid& grid,
                Sums& sums) const {
    const int padded = block.padded;
    const bool spread = problem_.has_spread() && !problem_.has_focal_spread();
    multiversion([=, &block, &grid, &sums] {
      alignas(64) Lane max, reference, sum, spread_weight, spread_gap;
      for (int lane = 0; lane < padded; ++lane) max[lane] = -Acc(INFINITY);
      for (int c = 0; c < classes; ++c) {
        for (int lane = 0; lane < padded; ++lane) {
          const Acc z = grid.z[c][lane];
          max[lane] = max[lane] < z ? z : max[lane];
        }
      }
      for (int lane = 0; lane < padded; ++lane) {
        reference[lane] = max[lane] == -Acc(INFINITY) ? Acc(0) : max[lane];
        sum[lane] = spread_weight[lane] = spread_gap[lane] = 0;
      }
      for (int c = 0; c < classes; ++c) {
        const Int index = static_cast<Int>(begin + c);
        for (int lane = 0; lane < padded; ++lane) {
          const Acc z = grid.z[c][lane];
          const Acc e = exp_nonpos(z - reference[lane]);
          const bool is_target = block.target[lane] == index;
          sum[lane] += is_target ? Acc(0) : e;
          sums.target_logit[lane] = is_target ? z : sums.target_logit[lane];
        }
      }
      if (spread) {
        for (int c = 0; c < classes; ++c) {
          for (int lane = 0; lane < padded; ++lane) {
            const Acc q = grid.q[c][lane];
            spread_weight[lane] += q;
            spread_gap[lane] += unless_zero(q, reference[lane] - grid.z[c][lane]);
          }
        }
      }
      for (int lane = 0; lane < padded; ++lane) {
        RowSums<double> all{max[lane], sum[lane], spread_weight[lane], spread_gap[lane]};
        if (begin > 0) {
          const RowSums<double> before{sums.max[lane], sums.sum[lane], sums.spread_weight[lane],
                                       sums.spread_gap[lane]};
          all = merge(before, all);
        }
        sums.max[lane] = all.max;
        sums.sum[lane] = all.sum;
        sums.spread_weight[lane] = all.spread_weight;
        sums.spread_gap[lane] = all.spread_gap;
      }
    });
  }

  template <class Body>
  void for_each_class_tile(const Body& body) const {
    for (int64_t begin = 0; begin < problem_.cols; begin += kClassTile) {
      body(begin, static_cast<int>(std::min<int64_t>(kClassTile, problem_.cols - begin)));
    }
  }

  struct alignas(64) Norms {
    Lane max, sum, log_sum, p, one_minus_p, r;
    WideLane spread_loss, spread_slope;

    CE_HD RowNorm<Acc> at(int lane) const {
      return {max[lane], sum[lane], log_sum[lane], p[lane], one_minus_p[lane], r[lane]};
    }
  };

  void normalise_lanes(const Block& block, const Sums& sums, Norms& norms) const {
    const int padded = block.padded;
    visit_bool(problem_.target_kind != TargetKind::probabilities, [&](auto indexed) {
      multiversion([=, &sums, &norms] {
        for (int lane = 0; lane < padded; ++lane) {
          const RowSums<Acc> all{Acc(sums.max[lane]), Acc(sums.sum[lane]),
                                 Acc(sums.spread_weight[lane]), Acc(sums.spread_gap[lane])};
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

  void add_focal_spread(const Block& block, int64_t begin, int classes, const Grid& grid,
                        Norms& norms) const {
    const int padded = block.padded;
    const Acc gamma = gamma_;
    multiversion([=, &block, &grid, &norms] {
      alignas(64) Lane loss, slope;
      for (int lane = 0; lane < padded; ++lane) loss[lane] = slope[lane] = 0;
      for (int c = 0; c < classes; ++c) {
        const Int index = static_cast<Int>(begin + c);
        for (int lane = 0; lane < padded; ++lane) {
          const Acc given = grid.q[c][lane];
          const Acc q = block.target[lane] == index ? Acc(0) : given;
          const Acc r = norms.log_sum[lane] + (norms.max[lane] - grid.z[c][lane]);
          const FocalTerms<Acc> terms = focal_terms(exp_nonpos(-r), r, gamma);
          loss[lane] += unless_zero(q, terms.loss);
          slope[lane] += q * terms.slope;
        }
      }
      for (int lane = 0; lane < padded; ++lane) {
        norms.spread_loss[lane] += loss[lane];
        norms.spread_slope[lane] += slope[lane];
      }
    });
  }

  void forward_block(const Block& block) const {
    Grid grid;
    Sums sums;
    std::fill(sums.target_logit, sums.target_logit + block.padded, Acc(0));
    const bool spread = problem_.has_spread() && !problem_.has_focal_spread();
    for_each_class_tile([&](int64_t begin, int classes) {
      load_logits(block, begin, classes, grid);
      if (spread) load_spread(block, begin, classes, grid);
      add_tile(block, begin, classes, grid, sums);
    });
    Norms norms;
    normalise_lanes(block, sums, norms);
    if (problem_.has_focal_spread()) {
      for_each_class_tile([&](int64_t begin, int classes) {
        load_logits(block, begin, classes, grid);
        load_spread(block, begin, classes, grid);
        add_focal_spread(block, begin, classes, grid, norms);
      });
    }
    finish_lanes(block, norms);
  }

  void finish_lanes(const Block& block, const Norms& norms) const {
    alignas(64) Lane target_weight, target_spread;
    for (int lane = 0; lane < block.padded; ++lane) {
      const Int target = block.target[lane];
      target_weight[lane] = target < 0 ? Acc(0) : kept_ * weight(target);
      target_spread[lane] =
          target < 0 || !problem_.has_spread() ? Acc(0) : smoothing_ * weight(target);
      if (problem_.has_focal_spread()) {
        target_weight[lane] += target_spread[lane];
        target_spread[lane] = 0;
      }
    }
    const RowOptions options = problem_.options;
    const int count = block.count;
    const int64_t rows = problem_.rows;
    Acc* loss = static_cast<Acc*>(problem_.row_loss) + block.row;
    Acc* state = static_cast<Acc*>(problem_.state) + block.row;
    const bool log_sum = problem_.has_focal_spread();
    multiversion([=, &block, &norms, &target_weight, &target_spread] {
      alignas(64) Lane row_loss, coef, target_grad;
      for (int lane = 0; lane < count; ++lane) {
        const SpreadTerms<Acc> spread{Acc(norms.spread_loss[lane]), Acc(norms.spread_slope[lane])};
        const RowResult<Acc> row =
            finish_row(norms.at(lane), target_weight[lane], target_spread[lane], spread, options);
        const bool keep = block.keep[lane] != Acc(0);
        row_loss[lane] = keep ? row.loss : Acc(0);
        coef[lane] = keep ? row.state.coef : Acc(0);
        target_grad[lane] = keep ? row.state.target_grad : Acc(0);
      }
      std::copy(row_loss, row_loss + count, loss);
      std::copy(norms.max, norms.max + count, state);
      std::copy(coef, coef + count, state + rows);
      std::copy(target_grad, target_grad + count, state + 2 * rows);
      if (log_sum) std::copy(norms.log_sum, norms.log_sum + count, state + 3 * rows);
    });
  }

  void backward_block(const Block& block) const {
    const bool spread = problem_.has_spread(), focal_spread = problem_.has_focal_spread();
    alignas(64) Lane max, coef, target_grad, log_sum, grad;
    for (int lane = 0; lane < block.padded; ++lane) {
      const bool kept = block.keep[lane] != Acc(0);
      const RowState<Acc> state =
          kept ? read_state<Acc>(problem_, block.row + lane) : RowState<Acc>{};
      grad[lane] = kept ? row_grad<Acc>(problem_, block.row + lane) * scale_ : Acc(0);
      max[lane] = state.max;
      // with focal terms dz comes by way of p, not of exp(z - max)
      coef[lane] = grad[lane] * state.coef * (focal_spread ? std::exp(state.log_sum) : Acc(1));
      target_grad[lane] = grad[lane] * state.target_grad;
      log_sum[lane] = state.log_sum;
    }
    const RowLayout& layout = problem_.grad_layout;
    T* out = static_cast<T*>(problem_.grad) + layout.offset(block.row);
    const int count = block.count, padded = block.padded;
    const Acc softcap = softcap_, gamma = gamma_;
    Grid grid;
    for_each_class_tile([&](int64_t begin, int classes) {
      load_logits(block, begin, classes, grid);
      if (spread) load_spread(block, begin, classes, grid);
      multiversion([=, &block, &grid, &max, &coef, &target_grad, &log_sum, &grad] {
        for (int c = 0; c < classes; ++c) {
          Acc* z = grid.z[c];  // becomes the gradient
          const Acc* q = grid.q[c];
          alignas(64) Lane dz;
          if (focal_spread) {
            for (int lane = 0; lane < padded; ++lane) {
              const Acc r = log_sum[lane] + (max[lane] - z[lane]);
              const Acc p = exp_nonpos(-r);
              const Acc slope = focal_terms(p, r, gamma).slope;
              dz[lane] = coef[lane] * p - grad[lane] * (q[lane] * slope);
            }
          } else if (spread) {
            for (int lane = 0; lane < padded; ++lane) {
              dz[lane] = coef[lane] * exp_nonpos(z[lane] - max[lane]) - grad[lane] * q[lane];
            }
          } else {
            for (int lane = 0; lane < padded; ++lane) {
              dz[lane] = coef[lane] * exp_nonpos(z[lane] - max[lane]);
            }
          }
          const Int index = static_cast<Int>(begin + c);
          for (int lane = 0; lane < padded; ++lane) {
            const Acc at_target = target_grad[lane], elsewhere = dz[lane];
            const Acc value = block.target[lane] == index ? at_target : elsewhere;
            const Acc slope = softcap > Acc(0) ? transform_slope(z[lane], softcap) : Acc(1);
            // ignored: exactly 0, whatever its logits are
            z[lane] = block.keep[lane] == Acc(0) ? Acc(0) : value * slope;
          }
        }
      });
      store_lines(grid.z, classes, count, out + begin * layout.class_stride, layout);
    });
  }

  void store_lines(const Acc (*lines)[kLanes], int classes, int count, T* out,
                   const RowLayout& layout) const {
    const int64_t step = layout.class_stride, stride = layout.inner_stride();
    if (stride == 1) {
      multiversion([=] {
        for (int c = 0; c < classes; ++c) {
          for (int lane = 0; lane < count; ++lane)
            out[c * step + lane] = from_acc<T>(lines[c][lane]);
        }
      });
    } else {
      for (int lane = 0; lane < count; ++lane) {
        for (int c = 0; c < classes; ++c)
          out[c * step + lane * stride] = from_acc<T>(lines[c][lane]);
      }
    }
  }

  const Problem& problem_;
  const Acc scale_, softcap_, gamma_;
  const Acc kept_, smoothing_;
  int64_t run_, blocks_per_run_;  // positions that are neighbours in every tensor involved
};

}  // namespace

void forward_positions(const Problem& problem) {
  visit_storage(problem,
                [&](auto type) { Positions<typename decltype(type)::type>(problem).forward(); });
}

void backward_positions(const Problem& problem) {
  visit_storage(problem,
                [&](auto type) { Positions<typename decltype(type)::type>(problem).backward(); });
}

void forward_backward_positions(const Problem& problem) {
  visit_storage(problem, [&](auto type) {
    Positions<typename decltype(type)::type>(problem).forward_backward();
  });
}

}  // namespace torchce::cpu
