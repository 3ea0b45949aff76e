#include "backend.h"

#include <algorithm>
#include <limits>

#include "runtime.h"

namespace torchce::cuda {
namespace {

constexpr int64_t kLargestGrid = std::numeric_limits<int32_t>::max();
// Columns are 32-bit in the kernels, and run a little past the end of a row.
constexpr int64_t kMostClasses = kLargestGrid - (int64_t{1} << 20);

void check_launch(cudaError_t error) {
  if (error != cudaSuccess) fail("CUDA kernel launch: ", error_text(error));
}

bool is_empty(const TargetError& record) {
  return __atomic_load_n(&record.row_plus_one, __ATOMIC_ACQUIRE) == 0;
}

// Takes what kernels have recorded, if anything. They leave a record alone until it is taken.
std::optional<TargetError> take(TargetError& record) {
  if (is_empty(record)) return std::nullopt;
  const TargetError error = record;
  if (__atomic_exchange_n(&record.row_plus_one, 0, __ATOMIC_ACQ_REL) == 0) return std::nullopt;
  return error;
}

// Raises what kernels have recorded. The stream is waited for first: the kernel that met one bad
// row may be about to meet another, and would record it once the first has been taken. Nobody can
// wait for a stream under capture; what has been found by then a later call raises.
void raise_found(const Device& device, cudaStream_t stream) {
  TargetError& record = device.target_errors->found;
  if (is_empty(record) || is_capturing(stream)) return;
  synchronise(stream);
  const auto found = take(record);
  if (!found.has_value()) return;
  fail<std::out_of_range>("Target ", found->index, " is out of bounds: row ",
                          found->row_plus_one - 1,
                          " of the target of an earlier call, whose loss and gradient are NaN in "
                          "that row; torchce_cuda.check_targets(True) raises at the call itself");
}

// For torchce_cuda.check_targets: waits for the current stream of each device; for all of a device
// nobody can wait while any of its streams is captured. Before a first call nobody asks whether
// there is a device.
void raise_found_on_all_devices() {
  for (const int32_t index : devices_in_use()) {
    const RelaxedCapture relaxed;
    const DeviceGuard guard(index);
    const cudaStream_t stream = current_stream(index);
    if (is_capturing(stream)) continue;
    synchronise(stream);
    raise_found(device(index), stream);
  }
}

[[maybe_unused]] const bool is_asked = [] {
  raise_found_targets = raise_found_on_all_devices;
  return true;
}();

// One call of an operator: its device, its stream.
struct Call {
  explicit Call(const Tensor& logits)
      : guard(logits.get_device_index()),
        device(cuda::device(logits.get_device_index())),
        stream(current_stream(logits.get_device_index())) {
    raise_found(device, stream);
  }

  // With check_targets(True): nothing is read or written before every target has been seen. A call
  // under capture cannot wait, and is treated as any other. The record is this call's own: other
  // threads check their targets meanwhile.
  void check_targets(const Arguments& arguments) const {
    const Problem& problem = arguments.problem;
    if (!check_targets_at_once || arguments.targets_seen ||
        problem.target_kind == TargetKind::probabilities || is_capturing(stream)) {
      return;
    }
    Tensor record = empty_beside(arguments.logits, sizeof(TargetError), ScalarType::Byte);
    torch::stable::zero_(record);
    auto* on_device = static_cast<TargetError*>(record.mutable_data_ptr());
    check_launch(launch_check_targets(problem, on_device, stream));
    TargetError bad;
    copy_to_host(&bad, on_device, sizeof(TargetError), stream);
    if (bad.row_plus_one == 0) return;
    fail<std::out_of_range>("Target ", bad.index, " is out of bounds: row ", bad.row_plus_one - 1,
                            " of target, allowed are 0 to ", problem.cols - 1, " and ignore_index ",
                            problem.ignore_index);
  }

  // The first bad target of a problem whose kernels see parts of it, and number rows by the part.
  void record_bad_target(const Problem& problem) const {
    if (problem.target_kind == TargetKind::probabilities) return;
    check_launch(launch_check_targets(problem, &device.target_errors->found, stream));
  }

  RelaxedCapture relaxed;
  DeviceGuard guard;
  const Device& device;
  cudaStream_t stream;
};

LaunchPlan plan_for(const Problem& problem, Direction direction, const Call& call) {
  const Device& device = call.device;
  PlanQuery query;
  query.direction = direction;
  query.rows = problem.rows;
  query.cols = problem.cols;
  query.element_bytes = static_cast<int32_t>(element_bytes(problem.logits.dtype));
  query.classes_are_neighbours = !problem.logits.layout.positions_are_neighbours();
  query.second_look = problem.has_focal_spread() && !problem.has_quadratic_spread();
  query.architecture = device.architecture;
  query.multiprocessors = device.multiprocessors;
  query.shared_bytes = device.shared_bytes;
  const LaunchPlan plan = choose_plan(query);
  if (problem.cols > kMostClasses || plan.blocks > kLargestGrid) {
    fail("input has ", problem.rows, " rows of ", problem.cols,
         " classes, but on a CUDA device at most ", kMostClasses, " classes in ", kLargestGrid,
         " blocks are possible");
  }
  return plan;
}

std::optional<Tensor> workspace(const Tensor& logits, int64_t bytes) {
  if (bytes == 0) return std::nullopt;
  return empty_beside(logits, bytes, ScalarType::Byte);
}

void* data_of(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? tensor->mutable_data_ptr() : nullptr;
}

void run(const Arguments& arguments, const Problem& problem, const LaunchPlan& plan,
         const Call& call) {
  Job job;
  job.problem = problem;
  job.plan = plan;
  TargetErrors& errors = *call.device.target_errors;
  job.target_error = arguments.targets_seen ? &errors.seen : &errors.found;
  const std::optional<Tensor> partials = workspace(arguments.logits, partials_bytes(problem, plan));
  job.partials = data_of(partials);
  switch (plan.strategy) {
    case Strategy::resident:
      return check_launch(launch_resident(job, call.stream));
    case Strategy::streaming:
      return check_launch(launch_streaming(job, call.stream));
    case Strategy::backward:
      return check_launch(launch_backward(job, call.stream));
  }
}

void run_rows(const Arguments& arguments, Direction direction, const Call& call) {
  const Problem& problem = arguments.problem;
  const bool targets_to_see = problem.target_kind != TargetKind::probabilities;
  if (problem.rows == 0 || (problem.cols == 0 && !targets_to_see)) return;
  const LaunchPlan plan = plan_for(problem, direction, call);
  if (direction != Direction::forward_backward || !plan.split) {
    return run(arguments, problem, plan, call);
  }
  const Tensor state = empty_beside(arguments.logits, arguments.state_size(), arguments.acc_dtype);
  Problem forward = problem;
  forward.state = arguments.state_planes(state);
  forward.grad = nullptr;
  run(arguments, forward, plan, call);
  Problem backward = problem;
  backward.state = forward.state;
  run(arguments, backward, plan_for(problem, Direction::backward, call), call);
}

// Where the mean's divisor is to come from.
Summary divisor_of(const Arguments& arguments, const std::optional<Tensor>& normalizer) {
  Summary summary;
  if (arguments.reduction != Reduction::mean) return summary;
  if (normalizer.has_value() && normalizer->is_cpu()) {
    summary.divisor = *static_cast<const double*>(normalizer->const_data_ptr());
  } else if (normalizer.has_value()) {
    check_same_device(arguments.logits, *normalizer, "normalizer");
    summary.normalizer = normalizer->const_data_ptr();
  } else if (arguments.problem.target_kind == TargetKind::probabilities) {
    summary.divisor = static_cast<double>(arguments.problem.rows);
  } else {
    summary.weigh_targets = true;
  }
  return summary;
}

void summarise(const Arguments& arguments, Summary summary, const Call& call) {
  const bool sums_rows = summary.row_loss != nullptr || summary.weigh_targets;
  const std::optional<Tensor> partials =
      workspace(arguments.logits, sums_rows ? summary_partials_bytes(arguments.problem.rows) : 0);
  summary.partials = data_of(partials);
  check_launch(launch_summary(arguments.problem, summary, call.stream));
}

}  // namespace

Tensor Backend::empty_gradient(const Tensor& logits) { return torchce::empty_gradient(logits); }

std::tuple<Tensor, Tensor> Backend::forward(Arguments& arguments,
                                            const std::optional<Tensor>& normalizer) {
  const Call call(arguments.logits);
  Problem& problem = arguments.problem;
  call.check_targets(arguments);
  const Tensor state = empty_beside(arguments.logits, arguments.state_size(), arguments.acc_dtype);
  const Tensor row_loss = arguments.empty_row_loss();
  problem.state = arguments.state_planes(state);
  problem.row_loss = row_loss.mutable_data_ptr();
  run_rows(arguments, Direction::forward, call);
  if (arguments.reduction == Reduction::none) return {row_loss, state};

  Summary summary = divisor_of(arguments, normalizer);
  if (arguments.has_divisor()) summary.divisor_out = state.mutable_data_ptr();
  const Tensor loss = empty_scalar_beside(arguments.logits, arguments.acc_dtype);
  summary.row_loss = problem.row_loss;
  summary.loss = loss.mutable_data_ptr();
  summarise(arguments, summary, call);
  return {loss, state};
}

void Backend::backward(Arguments& arguments) {
  const Call call(arguments.logits);
  if (arguments.problem.cols > 0) run_rows(arguments, Direction::backward, call);
}

Tensor Backend::forward_backward(Arguments& arguments, const std::optional<Tensor>& normalizer) {
  const Call call(arguments.logits);
  Problem& problem = arguments.problem;
  call.check_targets(arguments);
  Summary summary = divisor_of(arguments, normalizer);
  std::optional<Tensor> divisor;  // the gradient needs it before there is a loss
  if (arguments.has_divisor()) {
    divisor = empty_scalar_beside(arguments.logits, arguments.acc_dtype);
    summary.divisor_out = data_of(divisor);
    summarise(arguments, summary, call);
    problem.divisor = data_of(divisor);
  }

  const Tensor row_loss = arguments.empty_row_loss();
  problem.row_loss = row_loss.mutable_data_ptr();
  run_rows(arguments, Direction::forward_backward, call);

  const Tensor loss = empty_scalar_beside(arguments.logits, arguments.acc_dtype);
  summary.row_loss = problem.row_loss;
  summary.loss = loss.mutable_data_ptr();
  summarise(arguments, summary, call);
  return loss;
}

Tensor Backend::divisor(Arguments& arguments, const std::optional<Tensor>& normalizer) {
  const Call call(arguments.logits);
  call.check_targets(arguments);
  call.record_bad_target(arguments.problem);
  const Tensor divisor = empty_scalar_beside(arguments.logits, arguments.acc_dtype);
  Summary summary = divisor_of(arguments, normalizer);
  summary.divisor_out = divisor.mutable_data_ptr();
  summarise(arguments, summary, call);
  return divisor;
}

void Backend::elements_forward(const Elements& elements, const Tensor& loss,
                               const Tensor& divisor) {
  const Call call(elements.logits);
  ElementSums sums;
  sums.divisor = divisor.mutable_data_ptr();
  std::optional<Tensor> partials;
  if (elements.reduction != Reduction::none) {
    partials = workspace(elements.logits, element_partials_bytes(elements.problem));
    sums.loss = loss.mutable_data_ptr();
    sums.mean = elements.reduction == Reduction::mean;
    sums.partials = data_of(partials);
  }
  check_launch(launch_elements_forward(elements.problem, sums, call.stream));
}

void Backend::elements_backward(const Elements& elements) {
  const Call call(elements.logits);
  check_launch(launch_elements_backward(elements.problem, call.stream));
}

void Backend::scale(const Tensor& values, DType dtype, const Tensor& factor) {
  const Call call(values);
  check_launch(launch_scale(values.mutable_data_ptr(), dtype, values.numel(),
                            factor.const_data_ptr(), call.stream));
}

}  // namespace torchce::cuda
