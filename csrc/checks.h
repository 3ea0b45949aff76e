// Every check of an op's arguments, each with the offending value. Exception classes are PyTorch's
// own for the same mistake: the binding turns std::out_of_range into IndexError,
// std::invalid_argument into ValueError and std::runtime_error into RuntimeError.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <atomic>
#include <iterator>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>

#include "problem.h"

namespace torchce {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// torchce_cuda.check_targets: whether a call on a CUDA device waits for its own look at the
// targets.
inline std::atomic<bool> check_targets_at_once{false};
// And what it does besides: a backend whose kernels run without anybody waiting for them raises
// here what they have found.
inline void (*raise_found_targets)() = [] {};

// Called only where something is wrong: a message must cost nothing when all is well.
template <class Error = std::runtime_error, class... Parts>
[[noreturn, gnu::cold, gnu::noinline]] void fail(const Parts&... parts) {
  std::ostringstream message;
  message << "torchce_cuda: ";
  (message << ... << parts);
  throw Error(message.str());
}

inline std::string shape_of(const Tensor& tensor) {
  std::string text = "[";
  for (int64_t d = 0; d < tensor.dim(); ++d) {
    text += (d == 0 ? "" : ", ") + std::to_string(tensor.size(d));
  }
  return text + "]";
}

inline std::string dtype_of(const Tensor& tensor) {
  static const char* const names[] = {
      "uint8",     "int8",      "int16",      "int32", "int64", "float16", "float32", "float64",
      "complex32", "complex64", "complex128", "bool",  "qint8", "quint8",  "qint32",  "bfloat16"};
  const auto number = static_cast<size_t>(tensor.scalar_type());
  return number < std::size(names) ? names[number] : "dtype number " + std::to_string(number);
}

inline bool same_shape(const Tensor& a, const Tensor& b) {
  const auto left = a.sizes(), right = b.sizes();
  return left.size() == right.size() && std::equal(left.begin(), left.end(), right.begin());
}

inline std::optional<DType> float_dtype(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Double:
      return DType::float64;
    case ScalarType::Float:
      return DType::float32;
    case ScalarType::BFloat16:
      return DType::bfloat16;
    case ScalarType::Half:
      return DType::float16;
    default:
      return std::nullopt;
  }
}

inline DType check_logits(const Tensor& logits) {
  const auto dtype = float_dtype(logits);
  if (!dtype.has_value()) {
    fail("input has dtype ", dtype_of(logits),
         ", but must be float64, float32, bfloat16 or float16");
  }
  if (logits.dim() < 1) {
    fail("input is a scalar, but must be of shape (C), (N, C) or (N, C, d1, ..)");
  }
  return *dtype;
}

// Probabilities if and only if the shapes are equal, as in PyTorch.
inline TargetKind check_target(const Tensor& logits, const Tensor& target) {
  if (same_shape(logits, target)) {
    const auto dtype = float_dtype(target);
    if (!dtype.has_value()) {
      fail("target has the shape of input, ", shape_of(target),
           ", so it must hold class probabilities of a floating dtype, not ", dtype_of(target));
    }
    if (dtype == DType::float64 && logits.scalar_type() != ScalarType::Double) {
      fail("target is float64: input must be float64 too");
    }
    return TargetKind::probabilities;
  }
  const auto sizes = logits.sizes(), target_sizes = target.sizes();
  const bool batched = sizes.size() > 1;
  if (batched ? target_sizes.empty() || target_sizes[0] != sizes[0] : !target_sizes.empty()) {
    fail<std::invalid_argument>(
        "target has shape ", shape_of(target), ", but input of shape ", shape_of(logits),
        batched ? " has batch size " + std::to_string(sizes[0]) : " needs a target of shape []");
  }
  bool fits = target_sizes.size() == sizes.size() - 1;
  for (size_t d = 1; fits && d < target_sizes.size(); ++d) fits = target_sizes[d] == sizes[d + 1];
  if (!fits) {
    fail("target has shape ", shape_of(target), ", but input of shape ", shape_of(logits),
         " needs class indices of the shape of input without dimension 1, or probabilities of the "
         "shape of input");
  }
  switch (target.scalar_type()) {
    case ScalarType::Long:
      return TargetKind::int64;
    case ScalarType::Int:
      return TargetKind::int32;
    case ScalarType::Byte:
      return TargetKind::uint8;
    default:
      fail("target holds class indices of dtype ", dtype_of(target),
           ", but must be int64, int32 or uint8");
  }
}

inline void check_weight(const Tensor& weight, int64_t classes) {
  if (weight.dim() != 1 || weight.size(0) != classes) {
    fail("weight has shape ", shape_of(weight), ", but must have shape [", classes,
         "], one value per class");
  }
  if (!float_dtype(weight).has_value()) {
    fail("weight has dtype ", dtype_of(weight), ", but must be floating");
  }
}

// As an accumulator holds it: beside logits of float32 1e39 is infinite, and 1e-50 is 0.
inline double as_accumulator(DType dtype, double value) {
  return dtype == DType::float64 ? value : static_cast<float>(value);
}

inline bool finite_beside(DType dtype, double value) {
  return std::isfinite(as_accumulator(dtype, value));
}

inline void check_options(const RowOptions& options, DType dtype, TargetKind kind,
                          int64_t ignore_index, int64_t reduction) {
  if (!(options.label_smoothing >= 0 && options.label_smoothing <= 1)) {
    fail("label_smoothing is ", options.label_smoothing, ", but must be between 0 and 1");
  }
  if (!(options.gamma >= 0 && finite_beside(dtype, options.gamma))) {
    fail<std::invalid_argument>("gamma is ", options.gamma, ", but must be a finite number >= 0");
  }
  if (!finite_beside(dtype, options.z_loss)) {
    fail<std::invalid_argument>("z_loss is ", options.z_loss, ", but must be finite");
  }
  if (!finite_beside(dtype, options.logit_scale)) {
    fail<std::invalid_argument>("logit_scale is ", options.logit_scale, ", but must be finite");
  }
  const double softcap = as_accumulator(dtype, options.logit_softcap);
  const bool off = options.logit_softcap == 0;
  if (!(off || (softcap > 0 && std::isfinite(softcap)))) {
    fail<std::invalid_argument>("logit_softcap is ", options.logit_softcap,
                                ", but must be a finite number > 0");
  }
  if (kind == TargetKind::probabilities && ignore_index >= 0) {
    fail("ignore_index is ", ignore_index, ", but has no meaning for a target of probabilities");
  }
  if (reduction < 0 || reduction > 2) {
    fail<std::invalid_argument>("reduction is ", reduction,
                                ", but must be 0 (none), 1 (mean) or 2 (sum)");
  }
}

inline std::string device_of(const Tensor& tensor) {
  if (tensor.is_cpu()) return "cpu";
  const std::string index = std::to_string(tensor.get_device_index());
  return (tensor.is_cuda() ? "cuda:" : "another kind of device, number ") + index;
}

inline void check_same_device(const Tensor& logits, const Tensor& other, const char* name) {
  const bool same = logits.is_cpu() ? other.is_cpu()
                                    : logits.is_cuda() == other.is_cuda() &&
                                          logits.get_device_index() == other.get_device_index();
  if (!same) fail(name, " is on ", device_of(other), ", but input is on ", device_of(logits));
}

}  // namespace torchce
