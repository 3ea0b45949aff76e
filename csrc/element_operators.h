// The operators of the sigmoid losses, once for both backends: check, describe, allocate; a backend
// computes. It gives
//
//   Tensor empty_gradient(logits)                    memory for a gradient
//   void elements_forward(elements, loss, divisor)   writes both, and elements.problem.loss
//   void elements_backward(elements)
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <numeric>
#include <tuple>

#include "element_problem.h"
#include "tensors.h"

namespace torchce {

struct Elements {
  ElementProblem problem;
  Reduction reduction;
  ScalarType acc_dtype;
  Tensor logits;
};

inline ElementType element_type(const Tensor& tensor, const char* name) {
  if (const auto dtype = float_dtype(tensor)) return static_cast<ElementType>(*dtype);
  switch (tensor.scalar_type()) {
    case ScalarType::Long:
      return ElementType::int64;
    case ScalarType::Int:
      return ElementType::int32;
    case ScalarType::Byte:
    case ScalarType::Bool:
      return ElementType::uint8;
    default:
      fail(name, " has dtype ", dtype_of(tensor),
           ", but must be floating, int64, int32, uint8 or bool");
  }
}

// Collects operands, then orders and merges the dimensions of all at once.
class ElementLayout {
 public:
  explicit ElementLayout(const Tensor& logits)
      : sizes_(logits.sizes().begin(), logits.sizes().end()) {
    order_.resize(sizes_.size());
    std::iota(order_.begin(), order_.end(), size_t{0});
    const auto strides = logits.strides();
    std::stable_sort(order_.begin(), order_.end(),
                     [&](size_t a, size_t b) { return strides[a] > strides[b]; });
  }

  void add_input(Operand& operand, const Tensor& tensor, ElementType type) {
    add(operand, tensor, const_cast<void*>(tensor.const_data_ptr()), type);
  }
  void add_output(Operand& operand, const Tensor& tensor, ElementType type) {
    add(operand, tensor, tensor.mutable_data_ptr(), type);
  }

  // Whether kMaxElementDims were enough.
  bool describe(ElementProblem& problem) const {
    int last = -1;
    problem.count = 1;
    for (const size_t d : order_) {
      problem.count *= sizes_[d];
      if (sizes_[d] == 1) continue;
      if (last >= 0 && merges(last, d)) {
        problem.size[last] *= sizes_[d];
      } else {
        if (++last == kMaxElementDims) return false;
        problem.size[last] = sizes_[d];
      }
      for (const auto& [operand, strides] : operands_) operand->stride[last] = strides[d];
    }
    problem.dims = std::max(last, 0) + 1;
    return true;
  }

 private:
  struct Entry {
    Operand* operand;
    std::vector<int64_t> strides;
  };

  void add(Operand& operand, const Tensor& tensor, void* data, ElementType type) {
    operand.data = data;
    operand.type = type;
    const auto strides = tensor.strides();
    operands_.push_back({&operand, {strides.begin(), strides.end()}});
  }

  bool merges(int last, size_t d) const {
    return std::all_of(operands_.begin(), operands_.end(), [&](const Entry& entry) {
      return entry.operand->stride[last] == sizes_[d] * entry.strides[d];
    });
  }

  std::vector<int64_t> sizes_;
  std::vector<size_t> order_;
  std::vector<Entry> operands_;
};

// A value as a tensor of this dtype can hold it: what an element is compared with.
inline double as_held(double value, ElementType type) {
  switch (type) {
    case ElementType::float32:
      return static_cast<float>(value);
    case ElementType::bfloat16:
      return static_cast<float>(torch::headeronly::BFloat16(static_cast<float>(value)));
    case ElementType::float16:
      return static_cast<float>(torch::headeronly::Half(static_cast<float>(value)));
    default:
      return value;
  }
}

struct ElementArguments {
  double gamma, alpha;
  std::optional<double> ignore_value;
  int64_t reduction;
};

inline Elements make_elements(const Tensor& logits, const ElementArguments& arguments) {
  const auto dtype = float_dtype(logits);
  if (!dtype.has_value()) {
    fail("input has dtype ", dtype_of(logits),
         ", but must be float64, float32, bfloat16 or float16");
  }
  if (!(arguments.gamma >= 0 && finite_beside(*dtype, arguments.gamma))) {
    fail<std::invalid_argument>("gamma is ", arguments.gamma, ", but must be a finite number >= 0");
  }
  if (!(arguments.alpha <= 1)) {
    fail<std::invalid_argument>("alpha is ", arguments.alpha,
                                ", but must be between 0 and 1, or negative for none");
  }
  if (arguments.reduction < 0 || arguments.reduction > 2) {
    fail<std::invalid_argument>("reduction is ", arguments.reduction,
                                ", but must be 0 (none), 1 (mean) or 2 (sum)");
  }
  Elements out{{}, static_cast<Reduction>(arguments.reduction), acc_dtype_of(*dtype), logits};
  ElementProblem& problem = out.problem;
  problem.dtype = *dtype;
  problem.gamma = arguments.gamma;
  problem.alpha = arguments.alpha;
  problem.ignores = arguments.ignore_value.has_value();
  problem.ignore_value = arguments.ignore_value.value_or(0);
  return out;
}

inline void check_operand(const Tensor& logits, const Tensor& operand, const char* name) {
  check_same_device(logits, operand, name);
  if (!same_shape(logits, operand)) {
    fail(name, " has shape ", shape_of(operand), ", but must have the shape of input, ",
         shape_of(logits), " (broadcast it)");
  }
}

template <class Backend>
struct ElementOperators {
  using Optional = std::optional<Tensor>;

  static std::tuple<Tensor, Tensor> forward(const Tensor& logits, const Tensor& target,
                                            const Optional& weight, const Optional& pos_weight,
                                            int64_t reduction, double gamma, double alpha,
                                            std::optional<double> ignore_value) {
    Elements elements = make_elements(logits, {gamma, alpha, ignore_value, reduction});
    const auto sizes = logits.sizes();
    const bool per_element = elements.reduction == Reduction::none;
    const Tensor loss = per_element
                            ? empty_beside(logits, sizes.data(), sizes.size(), elements.acc_dtype)
                            : empty_scalar_beside(logits, elements.acc_dtype);
    const Tensor divisor = empty_scalar_beside(logits, elements.acc_dtype);
    describe(elements, target, weight, pos_weight, [&](ElementLayout& layout) {
      if (per_element) {
        layout.add_output(elements.problem.loss, loss, acc_type(elements));
      }
    });
    Backend::elements_forward(elements, loss, divisor);
    return {loss, divisor};
  }

  static Tensor backward(const Tensor& grad_loss, const Tensor& logits, const Tensor& target,
                         const Tensor& divisor, const Optional& weight, const Optional& pos_weight,
                         int64_t reduction, double gamma, double alpha,
                         std::optional<double> ignore_value) {
    Elements elements = make_elements(logits, {gamma, alpha, ignore_value, reduction});
    check_same_device(logits, divisor, "divisor");
    if (divisor.numel() != 1 || divisor.scalar_type() != elements.acc_dtype) {
      fail("divisor is not what the forward pass of these arguments returned");
    }
    check_operand(logits, grad_loss, "grad_loss");
    const Tensor grad = Backend::empty_gradient(logits);
    describe(elements, target, weight, pos_weight, [&](ElementLayout& layout) {
      layout.add_input(elements.problem.grad_loss, grad_loss, element_type(grad_loss, "grad_loss"));
      layout.add_output(elements.problem.grad, grad,
                        static_cast<ElementType>(elements.problem.dtype));
    });
    elements.problem.divisor = divisor.const_data_ptr();
    Backend::elements_backward(elements);
    return grad;
  }

  template <class Library>
  static void add_to(Library& library) {
    library.impl("sigmoid_focal_forward", TORCH_BOX(&ElementOperators::forward));
    library.impl("sigmoid_focal_backward", TORCH_BOX(&ElementOperators::backward));
  }

 private:
  static ElementType acc_type(const Elements& elements) {
    return elements.acc_dtype == ScalarType::Double ? ElementType::float64 : ElementType::float32;
  }

  template <class AddMore>
  static void describe(Elements& elements, const Tensor& target, const Optional& weight,
                       const Optional& pos_weight, const AddMore& add_more) {
    ElementProblem& problem = elements.problem;
    const Tensor& logits = elements.logits;
    ElementLayout layout(logits);
    layout.add_input(problem.logits, logits, static_cast<ElementType>(problem.dtype));
    const auto add = [&](Operand& operand, const Tensor& tensor, const char* name) {
      check_operand(logits, tensor, name);
      layout.add_input(operand, tensor, element_type(tensor, name));
    };
    add(problem.target, target, "target");
    problem.ignore_value = as_held(problem.ignore_value, problem.target.type);
    if (weight.has_value()) add(problem.weight, *weight, "weight");
    if (pos_weight.has_value()) add(problem.pos_weight, *pos_weight, "pos_weight");
    add_more(layout);
    if (!layout.describe(problem)) {
      fail("input of shape ", shape_of(logits), " and the tensors beside it have more than ",
           kMaxElementDims,
           " dimensions that do not merge; make input, target and the expanded weights "
           "contiguous");
    }
  }
};

}  // namespace torchce
