// One sigmoid-loss problem as plain data: what the kernels of both backends are given.
#pragma once

#include <algorithm>

#include "dispatch.h"
#include "element_math.h"

namespace torchce {

enum class ElementType : int32_t {
  float64,
  float32,
  bfloat16,
  float16,
  int64,
  int32,
  uint8
};  // the first four are DType's; uint8 also holds bool

#ifdef __CUDACC__
#pragma nv_exec_check_disable
#endif
template <class Float64, class Float32, class BFloat16, class Float16, class Fn>
CE_HD void visit_element_type(ElementType type, Fn&& fn) {
  switch (type) {
    case ElementType::int64:
      return fn(Type<int64_t>{});
    case ElementType::int32:
      return fn(Type<int32_t>{});
    case ElementType::uint8:
      return fn(Type<uint8_t>{});
    default:
      visit_dtype<Float64, Float32, BFloat16, Float16>(static_cast<DType>(type), fn);
  }
}

template <class Fn>
auto visit_modulation(double gamma, Fn&& fn) {
  if (gamma == 0) return fn(std::integral_constant<Modulation, Modulation::none>{});
  if (gamma == 2) return fn(std::integral_constant<Modulation, Modulation::square>{});
  return fn(std::integral_constant<Modulation, Modulation::any>{});
}

constexpr int kMaxElementDims = 6;

// A tensor of the problem's shape, broadcast ones with strides of 0, all strides in elements.
struct Operand {
  void* data = nullptr;  // null: not given
  ElementType type = ElementType::float32;
  int64_t stride[kMaxElementDims] = {0};
};

// Dimensions go from the outermost of the logits' memory to the innermost; neighbours that form one
// arithmetic progression in every operand are merged, so that dense tensors have one.
struct ElementProblem {
  int64_t count = 0;
  int32_t dims = 1;
  int64_t size[kMaxElementDims] = {1};
  DType dtype = DType::float32;  // of the logits
  Operand logits, target, weight, pos_weight;
  double gamma = 0, alpha = -1;  // alpha < 0: none
  bool ignores = false;
  double ignore_value = 0;

  Operand loss;  // forward, reduction none: Acc

  // backward
  Operand grad_loss;              // Acc, broadcast where it is one value
  const void* divisor = nullptr;  // of the mean, one Acc
  Operand grad;                   // logits' dtype

  CE_HD int64_t inner_size() const { return size[dims - 1]; }

  // Whether the gradient of the loss is the same for all elements.
  bool one_upstream() const {
    return std::all_of(grad_loss.stride, grad_loss.stride + dims,
                       [](int64_t stride) { return stride == 0; });
  }

  CE_HD int64_t offset(const Operand& operand, int64_t index) const {
    int64_t at = 0;
    for (int d = dims - 1; d > 0; --d) {
      at += index % size[d] * operand.stride[d];
      index /= size[d];
    }
    return at + index * operand.stride[0];
  }

  template <class Acc>
  CE_HD ElementOptions<Acc> options() const {
    ElementOptions<Acc> out;
    out.gamma = Acc(gamma);
    if (alpha >= 0) {
      out.negative = Acc(1 - alpha);
      out.positive = Acc(alpha);
    }
    if (ignores) out.ignored = Acc(ignore_value);
    return out;
  }
};

}  // namespace torchce
