// Introspection and test hooks for Python: no tensors, so nothing here touches the ops' ABI.
#include <pybind11/pybind11.h>

#include <string>

#include "cpu/simd.h"
#include "cuda/plan.h"
#include "row_math.h"

namespace py = pybind11;

namespace torchce {
namespace {

// One class-index row without a spread, from the sums a kernel would have: for tests of row_math.h.
template <class Acc>
py::dict finish_index_row(Acc others_max, Acc others_sum, Acc target_logit, Acc weight,
                          double gamma, double z_loss) {
  RowSums<Acc> others;
  others.max = others_max;
  others.sum = others_sum;
  RowOptions options;
  options.gamma = gamma;
  options.z_loss = z_loss;
  const RowResult<Acc> row =
      finish_row(normalise(others, target_logit), weight, Acc(0), SpreadTerms<Acc>{}, options);
  py::dict out;
  out["loss"] = row.loss;
  out["max"] = row.state.max;
  out["coef"] = row.state.coef;
  out["target_grad"] = row.state.target_grad;
  return out;
}

// What the CUDA backend would launch; no GPU is needed to ask.
py::dict launch_plan(const std::string& direction, int64_t rows, int64_t cols, int element_bytes,
                     bool classes_are_neighbours, bool second_look, int architecture,
                     int multiprocessors, int64_t shared_bytes) {
  cuda::PlanQuery query;
  query.direction = direction == "forward"    ? cuda::Direction::forward
                    : direction == "backward" ? cuda::Direction::backward
                                              : cuda::Direction::forward_backward;
  query.rows = rows;
  query.cols = cols;
  query.element_bytes = element_bytes;
  query.classes_are_neighbours = classes_are_neighbours;
  query.second_look = second_look;
  query.architecture = architecture;
  query.multiprocessors = multiprocessors;
  query.shared_bytes = shared_bytes;
  const cuda::LaunchPlan plan = cuda::choose_plan(query);
  py::dict out;
  out["text"] = cuda::to_string(plan);
  out["lanes"] = plan.lanes;
  out["threads"] = plan.threads;
  out["cluster"] = plan.cluster;
  out["slots"] = plan.slots;
  out["segment_packets"] = plan.segment_packets;
  out["segments"] = plan.segments;
  out["split"] = plan.split;
  out["blocks"] = plan.blocks;
  out["shared_bytes"] = cuda::shared_bytes(plan);
  return out;
}

py::dict build_info() {
  py::dict info;
  info["isa"] = cpu::isa_name();
  info["compiler"] = __VERSION__;
  info["cuda"] = static_cast<bool>(TORCHCE_WITH_CUDA);
  return info;
}

}  // namespace
}  // namespace torchce

PYBIND11_MODULE(_C, m) {
  using namespace torchce;
  m.doc() = "Build information and scalar test hooks; the ops are in torch.ops.torchce.";
  m.def("build_info", &build_info);
  m.def("launch_plan", &launch_plan, py::arg("direction"), py::arg("rows"), py::arg("cols"),
        py::arg("element_bytes"), py::kw_only(), py::arg("classes_are_neighbours") = true,
        py::arg("second_look") = false, py::arg("architecture") = 90,
        py::arg("multiprocessors") = 132, py::arg("shared_bytes") = 232448);
  m.def("finish_index_row_f32", &finish_index_row<float>);
  m.def("finish_index_row_f64", &finish_index_row<double>);
  m.def("exp_nonpos_f32", [](float x) { return exp_nonpos(x); });
  m.def("exp_nonpos_f64", [](double x) { return exp_nonpos(x); });
  m.def("exp_of_sum_f32", [](float x) { return exp_of_sum(x); });
  m.def("exp_nonpos_coarse_f32", [](float x) { return exp_nonpos_coarse(x); });
  m.def("log_positive_f32", [](float x) { return log_positive(x); });
  m.def("log1p_nonneg_f32", [](float x) { return log1p_nonneg(x); });
  m.def("log1p_unit_f32", [](float x) { return log1p_unit(x); });
  m.def("tanh_f32", [](float x) { return tanh_any(x); });
  m.def("one_minus_exp_f32", [](float r) { return one_minus_exp(r, exp_nonpos(-r)); });
}
