// The operators, once for both backends: check, describe, allocate; a backend computes. It gives
//
//   Tensor empty_gradient(logits)                            memory for a gradient
//   (loss, state) forward(arguments, normalizer)
//   void backward(arguments)                                 after prepare_backward
//   Tensor forward_backward(arguments, normalizer)           loss; problem.grad gets the gradient
//   Tensor divisor(arguments, normalizer)                    after a look at every target
//   void scale(values, dtype, factor)                        values *= factor
#pragma once

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "tensors.h"

namespace torchce {

template <class Backend>
struct Operators {
  using Weight = std::optional<Tensor>;

  static std::tuple<Tensor, Tensor> forward(const Tensor& logits, const Tensor& target,
                                            const Weight& weight,
                                            const std::optional<Tensor>& normalizer,
                                            int64_t ignore_index, int64_t reduction,
                                            double label_smoothing, double gamma, double z_loss,
                                            double logit_scale, double logit_softcap,
                                            bool targets_seen) {
    Arguments arguments =
        make_arguments(logits, target, weight, ignore_index, reduction,
                       {label_smoothing, gamma, z_loss, logit_scale, logit_softcap});
    arguments.targets_seen = targets_seen;
    check_normalizer(arguments, normalizer);
    return Backend::forward(arguments, normalizer);
  }

  static Tensor backward(const Tensor& grad_loss, const Tensor& logits, const Tensor& target,
                         const Tensor& state, const Weight& weight, int64_t ignore_index,
                         int64_t reduction, double label_smoothing, double gamma, double z_loss,
                         double logit_scale, double logit_softcap) {
    Arguments arguments =
        make_arguments(logits, target, weight, ignore_index, reduction,
                       {label_smoothing, gamma, z_loss, logit_scale, logit_softcap});
    return make_gradient(logits, [&](const Tensor& grad) {
      const Tensor kept = prepare_backward(arguments, grad_loss, state, grad);
      Backend::backward(arguments);
    });
  }

  static void backward_(const Tensor& grad_loss, const Tensor& logits, const Tensor& target,
                        const Tensor& state, const Weight& weight, int64_t ignore_index,
                        int64_t reduction, double label_smoothing, double gamma, double z_loss,
                        double logit_scale, double logit_softcap) {
    Arguments arguments =
        make_arguments(logits, target, weight, ignore_index, reduction,
                       {label_smoothing, gamma, z_loss, logit_scale, logit_softcap});
    check_in_place(arguments, logits);
    const Tensor kept = prepare_backward(arguments, grad_loss, state, logits);
    Backend::backward(arguments);
  }

  static std::tuple<Tensor, Tensor> forward_backward(const Tensor& logits, const Tensor& target,
                                                     const Weight& weight,
                                                     const std::optional<Tensor>& normalizer,
                                                     int64_t ignore_index, int64_t reduction,
                                                     double label_smoothing, double gamma,
                                                     double z_loss, double logit_scale,
                                                     double logit_softcap) {
    Arguments arguments =
        make_arguments(logits, target, weight, ignore_index, reduction,
                       {label_smoothing, gamma, z_loss, logit_scale, logit_softcap});
    check_normalizer(arguments, normalizer);
    Tensor loss;
    const Tensor grad = make_gradient(logits, [&](const Tensor& grad) {
      prepare_forward_backward(arguments, grad);
      loss = Backend::forward_backward(arguments, normalizer);
    });
    return {loss, grad};
  }

  static Tensor forward_backward_(const Tensor& logits, const Tensor& target, const Weight& weight,
                                  const std::optional<Tensor>& normalizer, int64_t ignore_index,
                                  int64_t reduction, double label_smoothing, double gamma,
                                  double z_loss, double logit_scale, double logit_softcap,
                                  bool targets_seen) {
    Arguments arguments =
        make_arguments(logits, target, weight, ignore_index, reduction,
                       {label_smoothing, gamma, z_loss, logit_scale, logit_softcap});
    arguments.targets_seen = targets_seen;
    check_normalizer(arguments, normalizer);
    check_in_place(arguments, logits);
    prepare_forward_backward(arguments, logits);
    return Backend::forward_backward(arguments, normalizer);
  }

  static Tensor divisor(const Tensor& logits, const Tensor& target, const Weight& weight,
                        const std::optional<Tensor>& normalizer, int64_t ignore_index,
                        int64_t reduction, double label_smoothing, double gamma, double z_loss,
                        double logit_scale, double logit_softcap) {
    Arguments arguments =
        make_arguments(logits, target, weight, ignore_index, reduction,
                       {label_smoothing, gamma, z_loss, logit_scale, logit_softcap});
    check_normalizer(arguments, normalizer);
    return Backend::divisor(arguments, normalizer);
  }

  static void scale_(const Tensor& values, const Tensor& factor) {
    const auto dtype = float_dtype(values);
    if (!dtype.has_value() || !values.is_contiguous()) {
      fail("scale_ needs contiguous floating values");
    }
    if (factor.numel() != 1 || !float_dtype(factor).has_value()) {
      fail("scale_ needs one floating factor, got shape ", shape_of(factor));
    }
    check_same_device(values, factor, "factor");
    Backend::scale(values, *dtype, as_dtype(factor, acc_dtype_of(*dtype)));
  }

  template <class Library>
  static void add_to(Library& library) {
    library.impl("cross_entropy_forward", TORCH_BOX(&Operators::forward));
    library.impl("cross_entropy_backward", TORCH_BOX(&Operators::backward));
    library.impl("cross_entropy_backward_", TORCH_BOX(&Operators::backward_));
    library.impl("cross_entropy_forward_backward", TORCH_BOX(&Operators::forward_backward));
    library.impl("cross_entropy_forward_backward_", TORCH_BOX(&Operators::forward_backward_));
    library.impl("cross_entropy_divisor", TORCH_BOX(&Operators::divisor));
    library.impl("scale_", TORCH_BOX(&Operators::scale_));
  }

 private:
  // A gradient of dense logits' strides. Where its rows are no RowLayout, as those of expanded
  // logits of many dimensions may be, compute is given other memory.
  template <class Compute>
  static Tensor make_gradient(const Tensor& logits, const Compute& compute) {
    Tensor grad = Backend::empty_gradient(logits);
    const Tensor described = with_row_layout(grad);
    compute(described);
    if (described.get() != grad.get()) torch::stable::copy_(grad, described);
    return grad;
  }
};

}  // namespace torchce
