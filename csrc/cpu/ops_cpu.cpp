// The ops on CPU tensors: check, allocate, run.
#include <torch/csrc/stable/library.h>

#include <memory>

#include "../tensors.h"
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

int64_t element_bytes(const Tensor& tensor) {
  switch (*float_dtype(tensor)) {
    case DType::float64:
      return 8;
    case DType::float32:
      return 4;
    default:
      return 2;
  }
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

void* state_planes(const Tensor& state) {
  const int64_t bytes = state.scalar_type() == ScalarType::Double ? 8 : 4;
  return static_cast<char*>(state.mutable_data_ptr()) + bytes;
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
  if (normalizer.has_value()) {
    if (arguments.reduction != Reduction::mean) {
      fail<std::invalid_argument>("normalizer needs reduction='mean'");
    }
    divisor = read_scalar(*normalizer);
  }
  return arguments.reduction == Reduction::mean ? divisor : 1.0;
}

// Row losses that only their sum outlives. Plain memory: a tensor costs half a microsecond.
struct RowLossBuffer {
  explicit RowLossBuffer(const Arguments& arguments)
      : data(new char[static_cast<size_t>(arguments.problem.rows) *
                      (arguments.acc_dtype == ScalarType::Double ? 8 : 4)]) {}
  std::unique_ptr<char[]> data;
};

Tensor reduce(const Arguments& arguments, double divisor) {
  const Tensor loss = empty_scalar_beside(arguments.logits, arguments.acc_dtype);
  write_scalar(loss, 0, sum_row_loss(arguments.problem) / divisor);
  return loss;
}

std::tuple<Tensor, Tensor> cross_entropy_forward(
    const Tensor& logits, const Tensor& target, const std::optional<Tensor>& weight,
    const std::optional<Tensor>& normalizer, int64_t ignore_index, int64_t reduction,
    double label_smoothing, double gamma, double z_loss, double logit_scale, double logit_softcap) {
  Arguments arguments =
      make_arguments(logits, target, weight, ignore_index, reduction,
                     {label_smoothing, gamma, z_loss, logit_scale, logit_softcap});
  const double divisor = check_targets(arguments, normalizer);
  const Tensor state = empty_beside(logits, arguments.state_size(), arguments.acc_dtype);
  write_scalar(state, 0, divisor);
  arguments.problem.state = state_planes(state);
  if (arguments.reduction == Reduction::none) {
    const Tensor loss = arguments.empty_row_loss();
    arguments.problem.row_loss = loss.mutable_data_ptr();
    forward(arguments.problem);
    return {loss, state};
  }
  const RowLossBuffer row_loss(arguments);
  arguments.problem.row_loss = row_loss.data.get();
  forward(arguments.problem);
  return {reduce(arguments, divisor), state};
}

void run_backward(Arguments& arguments, const Tensor& grad_loss, const Tensor& state,
                  const Tensor& grad) {
  Problem& problem = arguments.problem;
  if (state.scalar_type() != arguments.acc_dtype || state.numel() != arguments.state_size() ||
      !state.is_contiguous()) {
    fail("state is not what the forward pass of these arguments returned");
  }
  const bool per_row = arguments.reduction == Reduction::none;
  if (grad_loss.numel() != (per_row ? problem.rows : 1)) {
    fail("grad_loss has shape ", shape_of(grad_loss), ", but must have the shape of the loss");
  }
  const Tensor grad_rows = as_contiguous(grad_loss.scalar_type() == arguments.acc_dtype
                                             ? grad_loss
                                             : torch::stable::to(grad_loss, arguments.acc_dtype));
  problem.grad_loss = grad_rows.const_data_ptr();
  problem.grad_loss_stride = per_row ? 1 : 0;
  problem.divisor = state.const_data_ptr();
  problem.state = state_planes(state);
  problem.grad = grad.mutable_data_ptr();
  problem.grad_layout = *row_layout(grad);
  backward(problem);
}

Tensor cross_entropy_backward(const Tensor& grad_loss, const Tensor& logits, const Tensor& target,
                              const Tensor& state, const std::optional<Tensor>& weight,
                              int64_t ignore_index, int64_t reduction, double label_smoothing,
                              double gamma, double z_loss, double logit_scale,
                              double logit_softcap) {
  Arguments arguments =
      make_arguments(logits, target, weight, ignore_index, reduction,
                     {label_smoothing, gamma, z_loss, logit_scale, logit_softcap});
  const Tensor grad = empty_gradient(arguments.logits);
  advise_huge_pages(grad.mutable_data_ptr(), grad.numel() * element_bytes(grad));
  run_backward(arguments, grad_loss, state, grad);
  return grad;
}

void check_in_place(const Arguments& arguments, const Tensor& logits) {
  if (arguments.logits.const_data_ptr() != logits.const_data_ptr()) {
    fail("inplace: the strides of input have too many dimensions to be written in place");
  }
}

void cross_entropy_backward_(const Tensor& grad_loss, const Tensor& logits, const Tensor& target,
                             const Tensor& state, const std::optional<Tensor>& weight,
                             int64_t ignore_index, int64_t reduction, double label_smoothing,
                             double gamma, double z_loss, double logit_scale,
                             double logit_softcap) {
  Arguments arguments =
      make_arguments(logits, target, weight, ignore_index, reduction,
                     {label_smoothing, gamma, z_loss, logit_scale, logit_softcap});
  check_in_place(arguments, logits);
  run_backward(arguments, grad_loss, state, logits);
}

// Loss and gradient, for a gradient of 1 that arrives at the loss; `grad` may be the logits.
Tensor run_forward_backward(Arguments& arguments, const std::optional<Tensor>& normalizer,
                            const Tensor& grad) {
  if (arguments.reduction == Reduction::none) {
    fail<std::invalid_argument>("the gradient is known in the forward pass only for a scalar loss");
  }
  const double divisor = check_targets(arguments, normalizer);
  Problem& problem = arguments.problem;
  const bool wide = arguments.acc_dtype == ScalarType::Double;
  const std::unique_ptr<char[]> state(
      new char[static_cast<size_t>(arguments.state_size()) * (wide ? 8 : 4)]);
  const RowLossBuffer row_loss(arguments);
  const float narrow_divisor = static_cast<float>(divisor);
  problem.state = state.get();
  problem.row_loss = row_loss.data.get();
  problem.divisor = wide ? static_cast<const void*>(&divisor) : &narrow_divisor;
  problem.grad = grad.mutable_data_ptr();
  problem.grad_layout = *row_layout(grad);
  forward_backward(problem);
  return reduce(arguments, divisor);
}

std::tuple<Tensor, Tensor> cross_entropy_forward_backward(
    const Tensor& logits, const Tensor& target, const std::optional<Tensor>& weight,
    const std::optional<Tensor>& normalizer, int64_t ignore_index, int64_t reduction,
    double label_smoothing, double gamma, double z_loss, double logit_scale, double logit_softcap) {
  Arguments arguments =
      make_arguments(logits, target, weight, ignore_index, reduction,
                     {label_smoothing, gamma, z_loss, logit_scale, logit_softcap});
  const Tensor grad = empty_gradient(arguments.logits);
  return {run_forward_backward(arguments, normalizer, grad), grad};
}

Tensor cross_entropy_forward_backward_(const Tensor& logits, const Tensor& target,
                                       const std::optional<Tensor>& weight,
                                       const std::optional<Tensor>& normalizer,
                                       int64_t ignore_index, int64_t reduction,
                                       double label_smoothing, double gamma, double z_loss,
                                       double logit_scale, double logit_softcap) {
  Arguments arguments =
      make_arguments(logits, target, weight, ignore_index, reduction,
                     {label_smoothing, gamma, z_loss, logit_scale, logit_softcap});
  check_in_place(arguments, logits);
  return run_forward_backward(arguments, normalizer, logits);
}

void scale_(const Tensor& values, const Tensor& factor) {
  const auto dtype = float_dtype(values);
  if (!dtype.has_value() || !values.is_contiguous())
    fail("scale_ needs contiguous floating values");
  scale(values.mutable_data_ptr(), *dtype, values.numel(), read_scalar(factor));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torchce, CPU, m) {
  m.impl("cross_entropy_forward", TORCH_BOX(&cross_entropy_forward));
  m.impl("cross_entropy_backward", TORCH_BOX(&cross_entropy_backward));
  m.impl("cross_entropy_backward_", TORCH_BOX(&cross_entropy_backward_));
  m.impl("cross_entropy_forward_backward", TORCH_BOX(&cross_entropy_forward_backward));
  m.impl("cross_entropy_forward_backward_", TORCH_BOX(&cross_entropy_forward_backward_));
  m.impl("scale_", TORCH_BOX(&scale_));
}

}  // namespace torchce::cpu
