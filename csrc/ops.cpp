// The schemas. Options have defaults so that a plain call hands over two tensors: each argument
// more costs about 0.15 us (measured, 64 x 10 eager).
//
// `state` is what backward needs of forward, opaque to Python: accumulators, for a mean its divisor
// and then always the planes of RowState (problem.h), [planes, rows].
#include <Python.h>
#include <torch/csrc/stable/library.h>

#include "checks.h"

// clang-format off
#define TORCHCE_OPTIONS                                                                  \
  "int ignore_index=-100, int reduction=1, float label_smoothing=0.0, float gamma=0.0, " \
  "float z_loss=0.0, float logit_scale=1.0, float logit_softcap=0.0"

#define TORCHCE_ELEMENT_OPTIONS \
  "int reduction=1, float gamma=0.0, float alpha=-1.0, float? ignore_value=None"

STABLE_TORCH_LIBRARY(torchce, m) {
  // targets_seen: the problem is a part of one that cross_entropy_divisor has looked at
  m.def("cross_entropy_forward(Tensor logits, Tensor target, Tensor? weight=None, "
        "Tensor? normalizer=None, *, " TORCHCE_OPTIONS ", bool targets_seen=False) "
        "-> (Tensor loss, Tensor state)");
  m.def("cross_entropy_backward(Tensor grad_loss, Tensor logits, Tensor target, Tensor state, "
        "Tensor? weight=None, *, " TORCHCE_OPTIONS ") -> Tensor");
  // the gradient takes the place of the logits
  m.def("cross_entropy_backward_(Tensor grad_loss, Tensor(a!) logits, Tensor target, Tensor state, "
        "Tensor? weight=None, *, " TORCHCE_OPTIONS ") -> ()");
  // both in the forward pass, for a scalar reduction
  m.def("cross_entropy_forward_backward(Tensor logits, Tensor target, Tensor? weight=None, "
        "Tensor? normalizer=None, *, " TORCHCE_OPTIONS ") -> (Tensor loss, Tensor grad)");
  m.def("cross_entropy_forward_backward_(Tensor(a!) logits, Tensor target, Tensor? weight=None, "
        "Tensor? normalizer=None, *, " TORCHCE_OPTIONS ", bool targets_seen=False) -> Tensor");
  // for a problem that is computed in parts: checks all of its arguments and targets, of `logits`
  // only the shape, and gives what its mean divides by
  m.def("cross_entropy_divisor(Tensor logits, Tensor target, Tensor? weight=None, "
        "Tensor? normalizer=None, *, " TORCHCE_OPTIONS ") -> Tensor");
  m.def("scale_(Tensor(a!) values, Tensor factor) -> ()");

  // element by element; all but divisor have the shape of `logits`, broadcast by strides of 0
  m.def("sigmoid_focal_forward(Tensor logits, Tensor target, Tensor? weight=None, "
        "Tensor? pos_weight=None, *, " TORCHCE_ELEMENT_OPTIONS ") -> (Tensor loss, Tensor divisor)");
  m.def("sigmoid_focal_backward(Tensor grad_loss, Tensor logits, Tensor target, Tensor divisor, "
        "Tensor? weight=None, Tensor? pos_weight=None, *, " TORCHCE_ELEMENT_OPTIONS ") -> Tensor");

  m.def("check_targets(bool? enabled=None) -> ()");
}
// clang-format on

static void check_targets(std::optional<bool> enabled) {
  if (enabled.has_value()) torchce::check_targets_at_once = *enabled;
  torchce::raise_found_targets();
}

STABLE_TORCH_LIBRARY_IMPL(torchce, CompositeExplicitAutograd, m) {
  m.impl("check_targets", TORCH_BOX(&check_targets));
}

// Lets Python load the library with an import; the ops themselves know nothing of Python.
static PyModuleDef module = {PyModuleDef_HEAD_INIT,
                             "_ops_library",
                             nullptr,
                             -1,
                             nullptr,
                             nullptr,
                             nullptr,
                             nullptr,
                             nullptr};

PyMODINIT_FUNC PyInit__ops_library(void) { return PyModule_Create(&module); }
