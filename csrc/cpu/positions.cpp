// Cross entropy along positions: where they, not classes, are neighbours in memory ((N, C, d1, ..)
// and transposed (N, C)), and where rows are too short to fill a vector. A block is up to
// kPositions positions by kClassTile classes in a stack buffer; it may hold several runs of
// neighbours, since a few positions would leave vectors idle (2 M logits of 1000 classes, forward,
// one thread: runs of 2 2.4 instead of 14.9 ms, of 8 1.7 instead of 4.4). Every loop runs along the
// positions, so nothing is permuted in memory, nothing is reduced across lanes, and a position's
// bits do not depend on its neighbours.
//
// Moves     as rows.cpp: forward reads each logit once, backward reads once and writes once. Where
// all
//           classes fit one class tile, forward_backward finds its second look in L1.
// Bound     memory, in runs of up to kPositions * b bytes per class.
#include <algorithm>

#include "kernels.h"
#include "parallel.h"
#include "row_lanes.h"
#include "simd.h"
#include "storage.h"

namespace torchce::cpu {
namespace {

// 128, 512 and 1024 were 2 to 10 % slower forward at (2, 21, 512, 512) float32, one thread.
constexpr int kPositions = 256;
constexpr int kClassTile = 32;
constexpr int64_t kGrainLogits = 32768;

template <class T>
class Positions {
  using Acc = acc_t<T>;
  using Block = RowLanes<Acc, kPositions>;
  using Sums = LaneSums<Acc, kPositions>;
  using Norms = LaneNorms<Acc, kPositions>;
  using Int = typename Block::Int;
  // Positions whose sums stay in registers while a loop runs over the classes.
  static constexpr int kChunk = Block::kChunk;

  // One value per position; lanes past the block's count hold harmless numbers.
  using Lane = Acc[kPositions];

  struct alignas(64) Grid {
    Acc z[kClassTile][kPositions];
    Acc q[kClassTile][kPositions];
  };

 public:
  explicit Positions(const Problem& problem)
      : problem_(problem),
        scale_(Acc(problem.options.logit_scale)),
        softcap_(Acc(problem.options.logit_softcap)),
        series_(Acc(problem.options.gamma)),
        smoothing_(problem),
        run_(problem.logits.layout.inner_size()) {
    if (problem.target_kind == TargetKind::probabilities) {
      run_ = std::min(run_, problem.probabilities.layout.inner_size());
    }
    if (problem.grad != nullptr) run_ = std::min(run_, problem.grad_layout.inner_size());
    // a block is a part of a run, or as many whole runs as it holds
    block_ = run_ >= kPositions ? kPositions : kPositions / run_ * run_;
    stretch_ = run_ >= kPositions ? run_ : problem.rows;
    blocks_per_stretch_ = (stretch_ + block_ - 1) / block_;
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
    const int64_t blocks = problem_.rows / stretch_ * blocks_per_stretch_;
    const int64_t block_logits = std::min(block_, stretch_) * (problem_.cols + 1);
    parallel_for(blocks, std::max<int64_t>(1, kGrainLogits / block_logits),
                 [&](int64_t begin, int64_t end) {
                   for (int64_t index = begin; index < end; ++index) body(block(index));
                 });
  }

  Block block(int64_t index) const {
    const int64_t start = index % blocks_per_stretch_ * block_;
    return Block(problem_, index / blocks_per_stretch_ * stretch_ + start,
                 static_cast<int>(std::min(block_, stretch_ - start)));
  }

  // Calls body(first lane, number of lanes) for what a block holds of each run.
  template <class Body>
  void for_each_run(const Block& block, const Body& body) const {
    const int run = static_cast<int>(std::min<int64_t>(run_, block.count));
    for (int lane = 0; lane < block.count; lane += run) body(lane, run);
  }

  // Classes [begin, begin + classes) of a block, one line per class.
  template <class S>
  void load_lines(const void* data, const RowLayout& layout, const Block& block, int64_t begin,
                  int classes, Acc (*lines)[kPositions]) const {
    const int64_t step = layout.class_stride, stride = layout.inner_stride();
    for_each_run(block, [&](int first, int run) {
      const S* source = static_cast<const S*>(data) + layout.offset(block.row + first) +
                        begin * layout.class_stride;
      if (stride == 1) {
        multiversion([=] {
          for (int c = 0; c < classes; ++c) {
            const S* line = source + c * step;
            // of a later block: a stream per class is more than the hardware follows
            for (int lane = 0; lane < run; lane += kCacheLine / sizeof(S)) {
              __builtin_prefetch(line + kPositions + lane);
            }
            for (int lane = 0; lane < run; ++lane)
              lines[c][first + lane] = static_cast<Acc>(to_acc(line[lane]));
          }
        });
      } else {
        for (int lane = 0; lane < run; ++lane) {
          for (int c = 0; c < classes; ++c)
            lines[c][first + lane] = static_cast<Acc>(to_acc(source[c * step + lane * stride]));
        }
      }
    });
    for (int c = 0; c < classes; ++c) {
      for (int lane = block.count; lane < block.padded; ++lane) lines[c][lane] = 0;
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
    const Acc kept = smoothing_.kept, each = smoothing_.each;
    const Acc* weights =
        problem_.weight == nullptr ? nullptr : static_cast<const Acc*>(problem_.weight) + begin;
    if (problem_.target_kind != TargetKind::probabilities) {
      multiversion([=, &grid] {
        for (int c = 0; c < classes; ++c) {
          const Acc value = weights == nullptr ? each : each * weights[c];
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
          grid.q[c][lane] = (grid.q[c][lane] * kept + each) * w;
        }
      }
    });
  }

  // Adds one class tile to the sums of the classes before it, in double: there may be thousands.
  template <bool kSpread>
  void add_tile(const Block& block, int64_t begin, int classes, const Grid& grid,
                Sums& sums) const {
    multiversion([=, padded = block.padded, &block, &grid, &sums] {
      for (int64_t at = 0; at < padded; at += kChunk) {
        alignas(64) Acc max[kChunk], reference[kChunk], target_logit[kChunk];
        alignas(64) Acc sum[kChunk] = {}, spread_weight[kChunk] = {}, spread_gap[kChunk] = {};
        for (int64_t lane = 0; lane < kChunk; ++lane) {
          max[lane] = -Acc(INFINITY);
          target_logit[lane] = sums.target_logit[at + lane];
        }
        for (int c = 0; c < classes; ++c) {
          for (int64_t lane = 0; lane < kChunk; ++lane) {
            const Acc z = grid.z[c][at + lane];
            max[lane] = max[lane] < z ? z : max[lane];
          }
        }
        for (int64_t lane = 0; lane < kChunk; ++lane) {
          reference[lane] = max[lane] == -Acc(INFINITY) ? Acc(0) : max[lane];
        }
        for (int c = 0; c < classes; ++c) {
          const Int index = static_cast<Int>(begin + c);
          for (int64_t lane = 0; lane < kChunk; ++lane) {
            const Acc z = grid.z[c][at + lane];
            const bool is_target = block.target[at + lane] == index;
            // left out by its exponent: a select on the result keeps the loop from vectors
            const Acc left_out = is_target ? ExpTraits<Acc>::kLowest : Acc(0);
            target_logit[lane] = is_target ? z : target_logit[lane];
            sum[lane] += exp_nonpos((z - reference[lane]) + left_out);
          }
          if constexpr (kSpread) {
            for (int64_t lane = 0; lane < kChunk; ++lane) {
              const Acc q = grid.q[c][at + lane];
              spread_weight[lane] += q;
              spread_gap[lane] += unless_zero(q, reference[lane] - grid.z[c][at + lane]);
            }
          }
        }
        for (int64_t lane = 0; lane < kChunk; ++lane) {
          RowSums<double> all{max[lane], sum[lane], spread_weight[lane], spread_gap[lane]};
          if (begin > 0) all = merge(sums.at(at + lane), all);
          sums.set(at + lane, all);
          sums.target_logit[at + lane] = target_logit[lane];
        }
      }
    });
  }

  template <class Body>
  void for_each_class_tile(const Body& body) const {
    for (int64_t begin = 0; begin < problem_.cols; begin += kClassTile) {
      body(begin, static_cast<int>(std::min<int64_t>(kClassTile, problem_.cols - begin)));
    }
  }

  // Calls body with a function (p, r) -> FocalTerms of any class: FocalSeries::exact without its
  // choice, which would be made for every lane.
  template <class Body>
  void with_focal_terms(const Body& body) const {
    if (series_.gamma == Acc(2)) {
      body([](Acc p, Acc r) { return focal_terms_squared(p, r); });
    } else {
      body([gamma = series_.gamma](Acc p, Acc r) { return focal_terms(p, r, gamma); });
    }
  }

  void add_focal_spread(const Block& block, int64_t begin, int classes, const Grid& grid,
                        Norms& norms) const {
    with_focal_terms([=, padded = block.padded, &block, &grid, &norms](auto focal) {
      multiversion([=, &block, &grid, &norms] {
        for (int64_t at = 0; at < padded; at += kChunk) {
          alignas(64) Acc loss[kChunk] = {}, slope[kChunk] = {};
          for (int c = 0; c < classes; ++c) {
            const Int index = static_cast<Int>(begin + c);
            for (int64_t lane = 0; lane < kChunk; ++lane) {
              const Acc counted = block.target[at + lane] == index ? Acc(0) : Acc(1);
              const Acc q = counted * grid.q[c][at + lane];
              const Acc r =
                  norms.log_sum[at + lane] + (norms.max[at + lane] - grid.z[c][at + lane]);
              const FocalTerms<Acc> terms = focal(exp_nonpos(-r), r);
              loss[lane] += unless_zero(q, terms.loss);
              slope[lane] += q * terms.slope;
            }
          }
          for (int64_t lane = 0; lane < kChunk; ++lane) {
            norms.spread_loss[at + lane] += loss[lane];
            norms.spread_slope[at + lane] += slope[lane];
          }
        }
      });
    });
  }

  void forward_block(const Block& block) const {
    Grid grid;
    Sums sums;
    std::fill(sums.target_logit, sums.target_logit + block.padded, Acc(0));
    const bool focal_spread = problem_.has_focal_spread();
    for_each_class_tile([&](int64_t begin, int classes) {
      load_logits(block, begin, classes, grid);
      if (problem_.has_spread()) load_spread(block, begin, classes, grid);
      if (problem_.has_spread() && !focal_spread) {
        add_tile<true>(block, begin, classes, grid, sums);
      } else {
        add_tile<false>(block, begin, classes, grid, sums);
      }
    });
    Norms norms;
    normalise_lanes(problem_, block, sums, norms);
    if (focal_spread) {
      for_each_class_tile([&](int64_t begin, int classes) {
        if (problem_.cols > kClassTile) {  // else they are there
          load_logits(block, begin, classes, grid);
          load_spread(block, begin, classes, grid);
        }
        add_focal_spread(block, begin, classes, grid, norms);
      });
    }
    finish_lanes(problem_, block, norms);
  }

  struct alignas(64) Factors {
    Lane max, coef, target_grad, log_sum, grad;
  };

  // What the gradient of each position is made of; harmless where it is ignored.
  void load_factors(const Block& block, Factors& factors) const {
    const Problem& problem = problem_;
    const bool focal_spread = problem.has_focal_spread();
    multiversion([=, scale = scale_, &problem, &block, &factors] {
      for (int lane = 0; lane < block.count; ++lane) {
        const RowState<Acc> state = read_state<Acc>(problem, block.row + lane);
        const Acc grad = row_grad<Acc>(problem, block.row + lane) * scale;
        factors.grad[lane] = grad;
        factors.max[lane] = state.max;
        factors.coef[lane] = grad * state.coef;
        factors.target_grad[lane] = grad * state.target_grad;
        factors.log_sum[lane] = state.log_sum;
      }
      for (int lane = block.count; lane < block.padded; ++lane) {
        factors.grad[lane] = factors.max[lane] = factors.coef[lane] = 0;
        factors.target_grad[lane] = factors.log_sum[lane] = 0;
      }
    });
    if (focal_spread) {  // dz then comes by way of p, not of exp(z - max)
      for (int lane = 0; lane < block.count; ++lane) {
        factors.coef[lane] *= std::exp(factors.log_sum[lane]);
      }
    }
  }

  // The gradient of a class tile's logits, in their place.
  void make_gradient(const Block& block, int64_t begin, int classes, const Factors& factors,
                     Grid& grid) const {
    const auto for_each_entry = [&](auto dz_of) {
      multiversion([=, softcap = softcap_, padded = block.padded, &block, &factors, &grid] {
        alignas(64) Acc slope[kChunk];
        for (int64_t lane = 0; lane < kChunk; ++lane) slope[lane] = Acc(1);
        for (int64_t at = 0; at < padded; at += kChunk) {
          for (int c = 0; c < classes; ++c) {
            const Int index = static_cast<Int>(begin + c);
            Acc* z = grid.z[c] + at;
            alignas(64) Acc dz[kChunk];
            for (int64_t lane = 0; lane < kChunk; ++lane) dz[lane] = dz_of(c, at + lane);
            if (softcap > Acc(0)) {
              for (int64_t lane = 0; lane < kChunk; ++lane) {
                slope[lane] = transform_slope(z[lane], softcap);
              }
            }
            // by bits: selects keep the loop from vectors. Ignored: exactly 0, whatever z is
            for (int64_t lane = 0; lane < kChunk; ++lane) {
              const Int at_target = block.target[at + lane] == index ? Int(-1) : Int(0);
              const Int bits = (bit_cast<Int>(dz[lane]) & ~at_target) |
                               (bit_cast<Int>(factors.target_grad[at + lane]) & at_target);
              const Acc gradient = bit_cast<Acc>(bits) * slope[lane];
              z[lane] =
                  bit_cast<Acc>(static_cast<Int>(bit_cast<Int>(gradient) & block.keep[at + lane]));
            }
          }
        }
      });
    };
    if (problem_.has_focal_spread()) {
      with_focal_terms([&](auto focal) {
        for_each_entry([focal, &factors, &grid](int c, int64_t lane) {
          const Acc r = factors.log_sum[lane] + (factors.max[lane] - grid.z[c][lane]);
          const Acc p = exp_nonpos(-r);
          return factors.coef[lane] * p -
                 factors.grad[lane] * (grid.q[c][lane] * focal(p, r).slope);
        });
      });
    } else if (problem_.has_spread()) {
      for_each_entry([&factors, &grid](int c, int64_t lane) {
        return factors.coef[lane] * exp_to_store<T>(grid.z[c][lane] - factors.max[lane]) -
               factors.grad[lane] * grid.q[c][lane];
      });
    } else {
      for_each_entry([&factors, &grid](int c, int64_t lane) {
        return factors.coef[lane] * exp_to_store<T>(grid.z[c][lane] - factors.max[lane]);
      });
    }
  }

  void backward_block(const Block& block) const {
    Factors factors;
    load_factors(block, factors);
    Grid grid;
    for_each_class_tile([&](int64_t begin, int classes) {
      load_logits(block, begin, classes, grid);
      if (problem_.has_spread()) load_spread(block, begin, classes, grid);
      make_gradient(block, begin, classes, factors, grid);
      store_lines(grid.z, block, begin, classes);
    });
  }

  void store_lines(const Acc (*lines)[kPositions], const Block& block, int64_t begin,
                   int classes) const {
    const RowLayout& layout = problem_.grad_layout;
    const int64_t step = layout.class_stride, stride = layout.inner_stride();
    for_each_run(block, [&](int first, int run) {
      T* out = static_cast<T*>(problem_.grad) + layout.offset(block.row + first) + begin * step;
      if (stride == 1) {
        multiversion([=] {
          for (int c = 0; c < classes; ++c) {
            for (int lane = 0; lane < run; ++lane)
              out[c * step + lane] = from_acc<T>(lines[c][first + lane]);
          }
        });
      } else {
        for (int lane = 0; lane < run; ++lane) {
          for (int c = 0; c < classes; ++c)
            out[c * step + lane * stride] = from_acc<T>(lines[c][first + lane]);
        }
      }
    });
  }

  const Problem& problem_;
  const Acc scale_, softcap_;
  const FocalSeries<Acc> series_;
  const Smoothing<Acc> smoothing_;
  int64_t run_;  // positions that are neighbours in every tensor involved
  int64_t block_, stretch_, blocks_per_stretch_;
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
