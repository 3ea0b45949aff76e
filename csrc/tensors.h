// From tensors to a Problem: shared by the ops of both backends, which differ in memory and launch
// only.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>

#include <vector>

#include "checks.h"

namespace torchce {

// A fresh contiguous tensor beside `like`. Straight through the C shim: the dispatcher would double
// the cost of a small call.
inline Tensor empty_beside(const Tensor& like, const int64_t* sizes, size_t dims,
                           ScalarType dtype) {
  constexpr size_t kMaxDims = 64;  // of any tensor
  int64_t strides[kMaxDims];
  int64_t step = 1;
  for (size_t d = dims; d-- > 0;) {
    strides[d] = step;
    step *= std::max<int64_t>(sizes[d], 1);
  }
  int32_t device_type = 0;
  aoti_torch_get_device_type(like.get(), &device_type);
  AtenTensorHandle handle = nullptr;
  const AOTITorchError error = aoti_torch_empty_strided(
      static_cast<int64_t>(dims), sizes, strides,
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)), device_type,
      like.is_cpu() ? 0 : like.get_device_index(), &handle);
  if (error != AOTI_TORCH_SUCCESS) {
    fail("out of memory for a tensor beside input of shape ", shape_of(like));
  }
  return Tensor(handle);
}

inline Tensor empty_beside(const Tensor& like, int64_t size, ScalarType dtype) {
  return empty_beside(like, &size, 1, dtype);
}

inline Tensor empty_scalar_beside(const Tensor& like, ScalarType dtype) {
  return empty_beside(like, nullptr, 0, dtype);
}

inline ScalarType acc_dtype_of(DType dtype) {
  return dtype == DType::float64 ? ScalarType::Double : ScalarType::Float;
}

inline int64_t element_bytes(DType dtype) {
  return dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2;
}

inline Tensor as_dtype(const Tensor& tensor, ScalarType dtype) {
  return tensor.scalar_type() == dtype ? tensor : torch::stable::to(tensor, dtype);
}

inline Tensor as_contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

// nullopt where the row dimensions do not merge into kMaxRowDims.
inline std::optional<RowLayout> row_layout(const Tensor& tensor) {
  RowLayout layout;
  const auto sizes = tensor.sizes(), strides = tensor.strides();
  const size_t dims = sizes.size(), class_dim = dims > 1 ? 1 : 0;
  layout.class_stride = strides[class_dim];
  int last = -1;
  for (size_t d = 0; d < dims; ++d) {
    const int64_t size = sizes[d], stride = strides[d];
    // A single position still tells that positions are neighbours: it is to be treated, to the bit,
    // as it would be among others.
    const bool lone_position =
        d == (dims == 2 ? 0 : dims - 1) && stride == 1 && layout.class_stride != 1;
    if (d == class_dim || (size == 1 && !lone_position)) continue;
    if (last >= 0 && layout.stride[last] == size * stride) {
      layout.size[last] *= size;
      layout.stride[last] = stride;
      continue;
    }
    if (++last == kMaxRowDims) return std::nullopt;
    layout.size[last] = size;
    layout.stride[last] = stride;
  }
  layout.dims = std::max(last, 0) + 1;
  return layout;
}

// Memory for the gradient: the strides of dense logits, so that both are walked the same way.
inline Tensor empty_gradient(const Tensor& logits) {
  if (!logits.is_contiguous()) return torch::stable::empty_like(logits);
  const auto sizes = logits.sizes();
  return empty_beside(logits, sizes.data(), sizes.size(), logits.scalar_type());
}

// A tensor whose rows a RowLayout can describe: itself, but for rare strides of 8 and more
// dimensions.
inline Tensor with_row_layout(const Tensor& tensor) {
  return row_layout(tensor).has_value() ? tensor : torch::stable::contiguous(tensor);
}

inline Strided strided(const Tensor& tensor, DType dtype) {
  return {tensor.const_data_ptr(), dtype, *row_layout(tensor)};
}

// The tensors that a Problem points into, kept alive beside it.
struct Arguments {
  Problem problem;
  Reduction reduction;
  Tensor logits, target;
  std::optional<Tensor> weight;
  ScalarType acc_dtype;
  // The problem is a part of one whose targets have all been looked at: where nobody waits for the
  // kernels, a bad one has been recorded by its row of the whole.
  bool targets_seen = false;

  // Whether a state begins with what the mean divides by; other losses are not divided.
  bool has_divisor() const { return reduction == Reduction::mean; }

  int64_t state_size() const {
    const int planes = kStatePlanes + (problem.has_focal_spread() ? 1 : 0);
    return (has_divisor() ? 1 : 0) + planes * problem.rows;
  }

  // The planes of RowState, behind the divisor.
  void* state_planes(const Tensor& state) const {
    const int64_t bytes = acc_dtype == ScalarType::Double ? 8 : 4;
    return static_cast<char*>(state.mutable_data_ptr()) + (has_divisor() ? bytes : 0);
  }

  // Memory for the loss of each row, in the shape of the rows. Without classes it is 0: then not
  // every backend has a kernel write it.
  Tensor empty_row_loss() const {
    const auto sizes = logits.sizes();
    std::vector<int64_t> shape(sizes.begin(), sizes.end());
    shape.erase(shape.begin() + (shape.size() > 1 ? 1 : 0));
    Tensor loss = empty_beside(logits, shape.data(), shape.size(), acc_dtype);
    return problem.cols > 0 ? loss : torch::stable::zero_(loss);
  }
};

inline Arguments make_arguments(const Tensor& logits, const Tensor& target,
                                const std::optional<Tensor>& weight, int64_t ignore_index,
                                int64_t reduction, const RowOptions& options) {
  const DType dtype = check_logits(logits);
  const TargetKind kind = check_target(logits, target);
  check_same_device(logits, target, "target");
  check_options(options, dtype, kind, ignore_index, reduction);
  const ScalarType acc_dtype = acc_dtype_of(dtype);
  const bool index = kind != TargetKind::probabilities;
  Arguments out{{},
                static_cast<Reduction>(reduction),
                with_row_layout(logits),
                index ? as_contiguous(target) : with_row_layout(target),
                std::nullopt,
                acc_dtype};
  Problem& problem = out.problem;
  const auto sizes = logits.sizes();
  const size_t class_dim = sizes.size() > 1 ? 1 : 0;
  problem.cols = sizes[class_dim];
  problem.rows = 1;
  for (size_t d = 0; d < sizes.size(); ++d) problem.rows *= d == class_dim ? 1 : sizes[d];
  if (weight.has_value()) {
    check_weight(*weight, problem.cols);
    check_same_device(logits, *weight, "weight");
    out.weight = as_contiguous(as_dtype(*weight, acc_dtype));
    problem.weight = out.weight->const_data_ptr();
  }
  problem.logits = strided(out.logits, dtype);
  problem.target_kind = kind;
  if (index) {
    problem.target = out.target.const_data_ptr();
  } else {
    problem.probabilities = strided(out.target, *float_dtype(out.target));
  }
  problem.ignore_index = ignore_index;
  problem.options = options;
  return out;
}

inline void check_normalizer(const Arguments& arguments, const std::optional<Tensor>& normalizer) {
  if (!normalizer.has_value()) return;
  if (arguments.reduction != Reduction::mean) {
    fail<std::invalid_argument>("normalizer needs reduction='mean'");
  }
  if (normalizer->numel() != 1 || normalizer->scalar_type() != ScalarType::Double) {
    fail("normalizer must be one float64 value, got ", dtype_of(*normalizer), " of shape ",
         shape_of(*normalizer));
  }
}

inline void check_in_place(const Arguments& arguments, const Tensor& logits) {
  if (arguments.logits.const_data_ptr() != logits.const_data_ptr()) {
    fail("inplace: the strides of input have too many dimensions to be written in place");
  }
}

inline void prepare_gradient(Problem& problem, const Tensor& grad) {
  problem.grad = grad.mutable_data_ptr();
  problem.grad_layout = *row_layout(grad);
}

// Returns what the problem points to, to be kept alive.
inline Tensor prepare_backward(Arguments& arguments, const Tensor& grad_loss, const Tensor& state,
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
  check_same_device(arguments.logits, state, "state");
  check_same_device(arguments.logits, grad_loss, "grad_loss");
  const Tensor grad_rows = as_contiguous(as_dtype(grad_loss, arguments.acc_dtype));
  problem.grad_loss = grad_rows.const_data_ptr();
  problem.grad_loss_stride = per_row ? 1 : 0;
  if (arguments.has_divisor()) problem.divisor = state.const_data_ptr();
  problem.state = arguments.state_planes(state);
  prepare_gradient(problem, grad);
  return grad_rows;
}

inline void prepare_forward_backward(Arguments& arguments, const Tensor& grad) {
  if (arguments.reduction == Reduction::none) {
    fail<std::invalid_argument>("the gradient is known in the forward pass only for a scalar loss");
  }
  prepare_gradient(arguments.problem, grad);
}

}  // namespace torchce
