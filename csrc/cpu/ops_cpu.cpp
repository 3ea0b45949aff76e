// The operators on CPU tensors: targets are checked before anything is read or written.
#include <algorithm>
#include <memory>

#include "../element_operators.h"
#include "../operators.h"
#include "kernels.h"
#include "parallel.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace torchce::cpu {

void run_ranges(int64_t count, int64_t grain, void (*body)(int64_t, int64_t, void*),
                void* context) {
  torch_parallel_for(0, count, grain, body, context);
}

namespace {

// Fresh memory of this size comes from the kernel page by page; in pages of 2 MiB that costs a
// tenth.
void advise_huge_pages(void* data, int64_t bytes) {
#ifdef __linux__
  constexpr uintptr_t kPage = uintptr_t{2} << 20;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kPage - 1) / kPage * kPage;
  const uintptr_t end =
      (reinterpret_cast<uintptr_t>(data) + static_cast<uintptr_t>(bytes)) / kPage * kPage;
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

double read_scalar(const Tensor& tensor) {
  if (tensor.numel() != 1 || !tensor.is_cpu()) {
    fail("expected one value on the CPU, got shape ", shape_of(tensor));
  }
  switch (tensor.scalar_type()) {
    case ScalarType::Double:
      return *static_cast<const double*>(tensor.const_data_ptr());
    case ScalarType::Float:
      return *static_cast<const float*>(tensor.const_data_ptr());
    default:
      fail("expected a float64 or float32 value, got ", dtype_of(tensor));
  }
}

void write_scalar(const Tensor& tensor, int64_t index, double value) {
  if (tensor.scalar_type() == ScalarType::Double) {
    static_cast<double*>(tensor.mutable_data_ptr())[index] = value;
  } else {
    static_cast<float*>(tensor.mutable_data_ptr())[index] = static_cast<float>(value);
  }
}

// Looks at every target before anything is read or written; what the mean divides by.
double check_targets(const Arguments& arguments, const std::optional<Tensor>& normalizer) {
  const Problem& problem = arguments.problem;
  double divisor = static_cast<double>(problem.rows);
  if (problem.target_kind != TargetKind::probabilities) {
    const TargetScan scan = scan_targets(problem);
    if (scan.first_bad_row >= 0) {
      fail<std::out_of_range>("Target ", scan.bad_index, " is out of bounds: row ",
                              scan.first_bad_row, " of target, allowed are 0 to ", problem.cols - 1,
                              " and ignore_index ", problem.ignore_index);
    }
    divisor = scan.weight_sum;
  }
  if (normalizer.has_value()) divisor = read_scalar(*normalizer);
  return arguments.has_divisor() ? divisor : 1.0;
}

// As Arguments::empty_row_loss where only the sum outlives it. Plain memory: a tensor costs half a
// microsecond.
struct RowLossBuffer {
  explicit RowLossBuffer(const Arguments& arguments) {
    const size_t bytes = static_cast<size_t>(arguments.problem.rows) *
                         (arguments.acc_dtype == ScalarType::Double ? 8 : 4);
    data.reset(new char[bytes]);
    if (arguments.problem.cols == 0) std::fill_n(data.get(), bytes, char{0});
  }
  std::unique_ptr<char[]> data;
};

Tensor reduce(const Arguments& arguments, double divisor) {
  const Tensor loss = empty_scalar_beside(arguments.logits, arguments.acc_dtype);
  write_scalar(loss, 0, sum_row_loss(arguments.problem) / divisor);
  return loss;
}

struct Backend {
  static Tensor empty_gradient(const Tensor& logits) {
    const Tensor grad = torchce::empty_gradient(logits);
    advise_huge_pages(grad.mutable_data_ptr(), grad.numel() * element_bytes(*float_dtype(grad)));
    return grad;
  }

  static std::tuple<Tensor, Tensor> forward(Arguments& arguments,
                                            const std::optional<Tensor>& normalizer) {
    Problem& problem = arguments.problem;
    const double divisor = check_targets(arguments, normalizer);
    const Tensor state =
        empty_beside(arguments.logits, arguments.state_size(), arguments.acc_dtype);
    if (arguments.has_divisor()) write_scalar(state, 0, divisor);
    problem.state = arguments.state_planes(state);
    if (arguments.reduction == Reduction::none) {
      const Tensor loss = arguments.empty_row_loss();
      problem.row_loss = loss.mutable_data_ptr();
      cpu::forward(problem);
      return {loss, state};
    }
    const RowLossBuffer row_loss(arguments);
    problem.row_loss = row_loss.data.get();
    cpu::forward(problem);
    return {reduce(arguments, divisor), state};
  }

  static void backward(Arguments& arguments) { cpu::backward(arguments.problem); }

  static Tensor forward_backward(Arguments& arguments, const std::optional<Tensor>& normalizer) {
    Problem& problem = arguments.problem;
    const double divisor = check_targets(arguments, normalizer);
    const bool wide = arguments.acc_dtype == ScalarType::Double;
    const std::unique_ptr<char[]> state(
        new char[static_cast<size_t>(arguments.state_size()) * (wide ? 8 : 4)]);
    const RowLossBuffer row_loss(arguments);
    const float narrow_divisor = static_cast<float>(divisor);
    problem.state = state.get();
    problem.row_loss = row_loss.data.get();
    problem.divisor = wide ? static_cast<const void*>(&divisor) : &narrow_divisor;
    cpu::forward_backward(problem);
    return reduce(arguments, divisor);
  }

  static Tensor divisor(Arguments& arguments, const std::optional<Tensor>& normalizer) {
    const Tensor divisor = empty_scalar_beside(arguments.logits, arguments.acc_dtype);
    write_scalar(divisor, 0, check_targets(arguments, normalizer));
    return divisor;
  }

  static void elements_forward(const Elements& elements, const Tensor& loss,
                               const Tensor& divisor) {
    const ElementSums sums = cpu::elements_forward(elements.problem);
    const double by = elements.reduction == Reduction::mean ? sums.counted : 1.0;
    write_scalar(divisor, 0, by);
    if (elements.reduction != Reduction::none) write_scalar(loss, 0, sums.loss / by);
  }

  static void elements_backward(const Elements& elements) {
    cpu::elements_backward(elements.problem);
  }

  static void scale(const Tensor& values, DType dtype, const Tensor& factor) {
    cpu::scale(values.mutable_data_ptr(), dtype, values.numel(), read_scalar(factor));
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torchce, CPU, m) {
  Operators<Backend>::add_to(m);
  ElementOperators<Backend>::add_to(m);
}

}  // namespace torchce::cpu
