// The sigmoid losses, element by element, in tiles of accumulators.
//
// Moves   forward: the logits and the target once; backward: the same and the gradient.
// Bound   arithmetic: an exponential, a logarithm and a division an element.
// Why     operands come into the tile one by one, whatever their dtypes and strides, so that one
//         loop serves all; what is broadcast is never written out in full. Sums go tile by tile,
//         and over tiles in double, in an order that knows nothing of threads.
#include <algorithm>
#include <memory>

#include "kernels.h"
#include "parallel.h"
#include "tile.h"

namespace torchce::cpu {
namespace {

// Five tiles of float: 20 KiB of L1. Neither number has been compared with others.
constexpr int kElementTile = 1024;
constexpr int64_t kGrainTiles = 8;

template <class Acc, class T>
CE_HD Acc as_acc(T value) {
  if constexpr (std::is_arithmetic_v<T>) {
    return static_cast<Acc>(value);
  } else {
    return static_cast<Acc>(to_acc(value));
  }
}

// Calls body(offset of the operand, place in the tile, length) for each stretch of neighbours among
// `size` elements from `begin` on.
template <class Body>
void for_each_run(const ElementProblem& problem, const Operand& operand, int64_t begin, int size,
                  const Body& body) {
  const int64_t inner = problem.inner_size();
  for (int done = 0; done < size;) {
    const int64_t index = begin + done;
    const int run = static_cast<int>(std::min<int64_t>(size - done, inner - index % inner));
    body(problem.offset(operand, index), done, run);
    done += run;
  }
}

template <class Acc>
void fill(Acc* values, Acc with) {
  std::fill(values, values + kElementTile, with);
}

template <class Acc>
void load_tile(const ElementProblem& problem, const Operand& operand, int64_t begin, int size,
               Acc* out) {
  const int64_t stride = operand.stride[problem.dims - 1];
  visit_element_type<double, float, BFloat16, Float16>(operand.type, [&](auto type) {
    using T = typename decltype(type)::type;
    for_each_run(problem, operand, begin, size, [&](int64_t offset, int at, int run) {
      const T* source = static_cast<const T*>(operand.data) + offset;
      Acc* to = out + at;
      if (stride == 1) {
        multiversion([=] {
          for (int i = 0; i < run; ++i) to[i] = as_acc<Acc>(source[i]);
        });
      } else if (stride == 0) {
        std::fill(to, to + run, as_acc<Acc>(*source));
      } else {
        for (int i = 0; i < run; ++i) to[i] = as_acc<Acc>(source[i * stride]);
      }
    });
  });
}

template <class T>
void store_tile(const ElementProblem& problem, const Operand& operand, int64_t begin, int size,
                const acc_t<T>* values) {
  const int64_t stride = operand.stride[problem.dims - 1];
  for_each_run(problem, operand, begin, size, [&](int64_t offset, int at, int run) {
    store(values + at, run, static_cast<T*>(operand.data) + offset, stride);
  });
}

// What the loops read; operands that are not given are 1.
template <class Acc>
struct ElementTile {
  alignas(64) Acc x[kElementTile], t[kElementTile], weight[kElementTile],
      pos_weight[kElementTile], upstream[kElementTile];

  explicit ElementTile(const ElementProblem& problem) {
    if (problem.weight.data == nullptr) fill(weight, Acc(1));
    if (problem.pos_weight.data == nullptr) fill(pos_weight, Acc(1));
  }

  void load(const ElementProblem& problem, int64_t begin, int size) {
    load_tile(problem, problem.logits, begin, size, x);
    load_tile(problem, problem.target, begin, size, t);
    if (problem.weight.data != nullptr) load_tile(problem, problem.weight, begin, size, weight);
    if (problem.pos_weight.data != nullptr) {
      load_tile(problem, problem.pos_weight, begin, size, pos_weight);
    }
  }
};

// x becomes the loss of each element, upstream the number of those that count.
template <Modulation kModulation, class Acc>
void loss_of_tile(ElementTile<Acc>& tile, int size, const ElementOptions<Acc>& options) {
  multiversion([=, &tile] {
#pragma GCC ivdep
    for (int64_t i = 0; i < size; ++i) {
      const Acc t = tile.t[i];
      const bool counts = !(t == options.ignored);
      const ElementTerms<Acc> terms =
          element_terms<kModulation>(tile.x[i], t, tile.pos_weight[i], options);
      const Acc loss = tile.weight[i] * terms.loss;
      tile.x[i] = counts ? loss : Acc(0);
      tile.upstream[i] = counts ? Acc(1) : Acc(0);
    }
  });
}

template <class Acc>
void load_upstream(const ElementProblem& problem, int64_t begin, int size, Acc* upstream) {
  load_tile(problem, problem.grad_loss, begin, size, upstream);
  const Acc divisor = *static_cast<const Acc*>(problem.divisor);
  multiversion([=] {
    for (int i = 0; i < size; ++i) upstream[i] /= divisor;
  });
}

template <Modulation kModulation, class Acc>
void gradient_of_tile(ElementTile<Acc>& tile, int size, const ElementOptions<Acc>& options) {
  multiversion([=, &tile] {
#pragma GCC ivdep
    for (int64_t i = 0; i < size; ++i) {
      const Acc t = tile.t[i];
      const ElementTerms<Acc> terms =
          element_terms<kModulation>(tile.x[i], t, tile.pos_weight[i], options);
      const Acc grad = tile.upstream[i] * (tile.weight[i] * terms.slope);
      tile.x[i] = t == options.ignored ? Acc(0) : grad;
    }
  });
}

template <class Acc>
double sum_of_tile(Acc* values, int size) {
  const int padded = pad(values, size, Acc(0));
  Acc sum;
  multiversion([=, &sum] {
    alignas(64) Acc lanes[kLanes] = {};
    fill_lanes(lanes, padded, [values](Acc a, int64_t i) { return a + values[i]; });
    sum = fold_sum(lanes);
  });
  return static_cast<double>(sum);
}

int64_t tiles_of(const ElementProblem& problem) {
  return (problem.count + kElementTile - 1) / kElementTile;
}

// body(tile number, first element, size)
template <class Body>
void for_each_tile(const ElementProblem& problem, int64_t first, int64_t last, const Body& body) {
  for (int64_t tile = first; tile < last; ++tile) {
    const int64_t begin = tile * kElementTile;
    body(tile, begin, static_cast<int>(std::min<int64_t>(kElementTile, problem.count - begin)));
  }
}

template <class Fn>
void visit_element_storage(const ElementProblem& problem, Fn&& fn) {
  visit_dtype<double, float, BFloat16, Float16>(problem.dtype, fn);
}

}  // namespace

ElementSums elements_forward(const ElementProblem& problem) {
  ElementSums total;
  if (problem.count == 0) return total;
  const int64_t tiles = tiles_of(problem);
  const std::unique_ptr<ElementSums[]> sums(new ElementSums[tiles]);
  visit_element_storage(problem, [&](auto type) {
    using Acc = acc_t<typename decltype(type)::type>;
    visit_modulation(problem.gamma, [&](auto modulation) {
      parallel_for(tiles, kGrainTiles, [&](int64_t first, int64_t last) {
        ElementTile<Acc> tile(problem);
        const ElementOptions<Acc> options = problem.template options<Acc>();
        for_each_tile(problem, first, last, [&](int64_t number, int64_t begin, int size) {
          tile.load(problem, begin, size);
          loss_of_tile<decltype(modulation)::value>(tile, size, options);
          if (problem.loss.data != nullptr) {
            store_tile<Acc>(problem, problem.loss, begin, size, tile.x);
          }
          sums[number] = {sum_of_tile(tile.x, size), sum_of_tile(tile.upstream, size)};
        });
      });
    });
  });
  for (int64_t tile = 0; tile < tiles; ++tile) {
    total.loss += sums[tile].loss;
    total.counted += sums[tile].counted;
  }
  return total;
}

void elements_backward(const ElementProblem& problem) {
  if (problem.count == 0) return;
  visit_element_storage(problem, [&](auto type) {
    using T = typename decltype(type)::type;
    using Acc = acc_t<T>;
    visit_modulation(problem.gamma, [&](auto modulation) {
      parallel_for(tiles_of(problem), kGrainTiles, [&](int64_t first, int64_t last) {
        ElementTile<Acc> tile(problem);
        const ElementOptions<Acc> options = problem.template options<Acc>();
        const bool one_upstream = problem.one_upstream();
        if (one_upstream) load_upstream(problem, 0, kElementTile, tile.upstream);
        for_each_tile(problem, first, last, [&](int64_t, int64_t begin, int size) {
          tile.load(problem, begin, size);
          if (!one_upstream) load_upstream(problem, begin, size, tile.upstream);
          gradient_of_tile<decltype(modulation)::value>(tile, size, options);
          store_tile<T>(problem, problem.grad, begin, size, tile.x);
        });
      });
    });
  });
}

}  // namespace torchce::cpu
