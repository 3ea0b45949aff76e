// The operators' CUDA backend (operators.h, element_operators.h): workspace, plan, launches.
// Nothing here waits for the device, unless check_targets(True) asks for it.
#pragma once

#include "../element_operators.h"
#include "../operators.h"

namespace torchce::cuda {

struct Backend {
  static Tensor empty_gradient(const Tensor& logits);
  static std::tuple<Tensor, Tensor> forward(Arguments& arguments,
                                            const std::optional<Tensor>& normalizer);
  static void backward(Arguments& arguments);
  static Tensor forward_backward(Arguments& arguments, const std::optional<Tensor>& normalizer);
  static Tensor divisor(Arguments& arguments, const std::optional<Tensor>& normalizer);
  static void elements_forward(const Elements& elements, const Tensor& loss, const Tensor& divisor);
  static void elements_backward(const Elements& elements);
  static void scale(const Tensor& values, DType dtype, const Tensor& factor);
};

}  // namespace torchce::cuda
