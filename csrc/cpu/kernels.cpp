// What surrounds the two strategies: the choice between them, the targets' check, the loss's sum.
#include "kernels.h"

#include <algorithm>
#include <atomic>
#include <vector>

#include "../row_access.h"
#include "parallel.h"
#include "tile.h"

namespace torchce::cpu {
namespace {

// Rows up to this many classes leave vectors idle; many rows side by side fill them. Forward, and
// forward + backward, of rows side by side: 0.5 and 0.8 of the time at 33 classes, 0.6 and 1.2 at
// 48, 0.8 and 1.5 at 64 (float32, one thread).
constexpr int64_t kShortRow = 32;

// Rows are added up in blocks of this many, blocks in their order: the same sum for any threads.
constexpr int64_t kSumBlock = 4096;

template <class Value>
double sum_blocks(int64_t rows, const Value& value) {
  if (rows <= kSumBlock) return 0.0 + value(0, rows);
  const int64_t blocks = (rows + kSumBlock - 1) / kSumBlock;
  std::vector<double> partial(static_cast<size_t>(blocks));
  parallel_for(blocks, 4, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      partial[block] = value(block * kSumBlock, std::min(rows, (block + 1) * kSumBlock));
    }
  });
  double total = 0;
  for (const double part : partial) total += part;
  return total;
}

}  // namespace

Strategy choose_strategy(const Problem& problem) {
  const bool runs = problem.logits.layout.positions_are_neighbours() &&
                    (problem.target_kind != TargetKind::probabilities ||
                     problem.probabilities.layout.positions_are_neighbours()) &&
                    (problem.grad == nullptr || problem.grad_layout.positions_are_neighbours());
  return runs || problem.cols <= kShortRow ? Strategy::positions : Strategy::rows;
}

TargetScan scan_targets(const Problem& problem) {
  std::atomic<int64_t> first_bad{problem.rows};
  TargetScan scan;
  scan.weight_sum = visit_indices(problem, [&](auto* indices) {
    return sum_blocks(problem.rows, [&](int64_t begin, int64_t end) {
      double sum = 0;
      for (int64_t row = begin; row < end; ++row) {
        const int64_t index = indices[row];
        if (index == problem.ignore_index) continue;
        if (index < 0 || index >= problem.cols) {
          int64_t seen = first_bad.load();
          while (row < seen && !first_bad.compare_exchange_weak(seen, row)) {
          }
          break;
        }
        sum += problem.logits.dtype == DType::float64 ? weight_of<double>(problem, index)
                                                      : weight_of<float>(problem, index);
      }
      return sum;
    });
  });
  if (first_bad.load() < problem.rows) {
    scan.first_bad_row = first_bad.load();
    scan.bad_index = read_index(problem, scan.first_bad_row);
  }
  return scan;
}

double sum_row_loss(const Problem& problem) {
  return visit_storage(problem, [&](auto type) {
    using Acc = acc_t<typename decltype(type)::type>;
    const Acc* loss = static_cast<const Acc*>(problem.row_loss);
    return sum_blocks(problem.rows, [&](int64_t begin, int64_t end) {
      double lanes[kLanes] = {};
      const int64_t whole = begin + (end - begin) / kLanes * kLanes;
      multiversion([=, &lanes] {
        for (int64_t row = begin; row < whole; row += kLanes) {
          for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += loss[row + lane];
        }
      });
      double sum = fold_sum(lanes);
      for (int64_t row = whole; row < end; ++row) sum += loss[row];
      return sum;
    });
  });
}

void scale(void* values, DType dtype, int64_t count, double factor) {
  if (factor == 1) return;
  visit_dtype<double, float, BFloat16, Float16>(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    T* data = static_cast<T*>(values);
    parallel_for(count, 32768, [&](int64_t begin, int64_t end) {
      const acc_t<T> by = static_cast<acc_t<T>>(factor);
      multiversion([=] {
        for (int64_t i = begin; i < end; ++i) {
          const acc_t<T> value = to_acc(data[i]);
          // an ignored row stays 0 whatever comes from above
          data[i] = from_acc<T>(value == 0 ? value : value * by);
        }
      });
    });
  });
}

void forward(const Problem& problem) {
  if (problem.rows == 0 || problem.cols == 0) return;
  choose_strategy(problem) == Strategy::rows ? forward_rows(problem) : forward_positions(problem);
}

void backward(const Problem& problem) {
  if (problem.rows == 0 || problem.cols == 0) return;
  choose_strategy(problem) == Strategy::rows ? backward_rows(problem) : backward_positions(problem);
}

void forward_backward(const Problem& problem) {
  if (problem.rows == 0 || problem.cols == 0) return;
  choose_strategy(problem) == Strategy::rows ? forward_backward_rows(problem)
                                             : forward_backward_positions(problem);
}

}  // namespace torchce::cpu
