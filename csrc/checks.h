// Every check of an op's arguments, each with the offending value. Exception classes are PyTorch's own
// for the same mistake: the binding turns std::out_of_range into IndexError, std::invalid_argument
// into ValueError and std::runtime_error into RuntimeError.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>

#include "problem.h"

namespace torchce {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class Error = std::runtime_error, class... Parts>
void check(bool condition, const Parts&... parts) {
  if (condition) return;
  std::ostringstream message;
  message << "cross_entropy: ";
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

inline bool same_shape(const Tensor& a, const Tensor& b) {
  if (a.dim() != b.dim()) return false;
  for (int64_t d = 0; d < a.dim(); ++d) {
    if (a.size(d) != b.size(d)) return false;
  }
  return true;
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
  check(dtype.has_value(), "input has dtype number ", static_cast<int>(logits.scalar_type()),
        ", but must be float64, float32, bfloat16 or float16");
  check(logits.dim() >= 1, "input is a scalar, but must be of shape (C), (N, C) or (N, C, d1, ..)");
  return *dtype;
}

// Probabilities if and only if the shapes are equal, as in PyTorch.
inline TargetKind check_target(const Tensor& logits, const Tensor& target) {
  if (same_shape(logits, target)) {
    const auto dtype = float_dtype(target);
    check(dtype.has_value(), "target has the shape of input, ", shape_of(target),
          ", so it must hold class probabilities of a floating dtype; got dtype number ",
          static_cast<int>(target.scalar_type()));
    check(logits.scalar_type() == ScalarType::Double || dtype != DType::float64,
          "target is float64: input must be float64 too");
    return TargetKind::probabilities;
  }
  const bool batched = logits.dim() > 1;
  check<std::invalid_argument>(
      !batched || (target.dim() > 0 && target.size(0) == logits.size(0)), "target has shape ",
      shape_of(target), ", but input of shape ", shape_of(logits), " has batch size ", logits.size(0));
  bool fits = target.dim() == (batched ? logits.dim() - 1 : 0);
  for (int64_t d = 1; fits && d < target.dim(); ++d) fits = target.size(d) == logits.size(d + 1);
  check(fits, "target has shape ", shape_of(target), ", but input of shape ", shape_of(logits),
        " needs class indices of the shape of input without dimension ", batched ? 1 : 0,
        ", or probabilities of the shape of input");
  switch (target.scalar_type()) {
    case ScalarType::Long:
      return TargetKind::int64;
    case ScalarType::Int:
      return TargetKind::int32;
    case ScalarType::Byte:
      return TargetKind::uint8;
    default:
      check(false, "target holds class indices of dtype number ",
            static_cast<int>(target.scalar_type()), ", but must be int64, int32 or uint8");
      return TargetKind::int64;
  }
}

inline void check_weight(const Tensor& weight, int64_t classes) {
  check(weight.dim() == 1 && weight.size(0) == classes, "weight has shape ", shape_of(weight),
        ", but must have shape [", classes, "], one value per class");
  check(float_dtype(weight).has_value(), "weight has dtype number ",
        static_cast<int>(weight.scalar_type()), ", but must be floating");
}

inline void check_options(const RowOptions& options, TargetKind kind, int64_t ignore_index) {
  check(options.label_smoothing >= 0 && options.label_smoothing <= 1, "label_smoothing is ",
        options.label_smoothing, ", but must be between 0 and 1");
  check<std::invalid_argument>(options.gamma >= 0 && std::isfinite(options.gamma), "gamma is ",
                               options.gamma, ", but must be a finite number >= 0");
  check<std::invalid_argument>(options.logit_softcap >= 0 && std::isfinite(options.logit_softcap),
                               "logit_softcap is ", options.logit_softcap, ", but must be > 0");
  check(kind != TargetKind::probabilities || ignore_index < 0, "ignore_index is ", ignore_index,
        ", but has no meaning for a target of probabilities");
}

inline void check_same_device(const Tensor& logits, const Tensor& other, const char* name) {
  const bool same = logits.is_cpu() == other.is_cpu() && logits.is_cuda() == other.is_cuda() &&
                    (logits.is_cpu() || logits.get_device_index() == other.get_device_index());
  check(same, name, " is on another device than input");
}

}  // namespace torchce
