// The CUDA backend behind the operators on CPU tensors, its kernels executed by the host runtime:
// autograd, gradcheck and opcheck then exercise the CUDA route. Takes the place of ops_cuda.cpp and
// runtime.cpp.
#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "../../csrc/cuda/backend.h"
#include "../../csrc/cuda/runtime.h"

extern "C" const char* cuda_on_host_error();

namespace torchce::cuda {

namespace {

thread_local int relaxed_depth = 0;

TargetErrors target_errors;
bool in_use = false;

}  // namespace

const Device& device(int32_t) {
  if (relaxed_depth == 0) throw std::logic_error("a first call would fail under capture");
  in_use = true;
  // another device than the one whose plans are wanted can be asked for
  static const Device device = [] {
    const char* architecture = std::getenv("CUDA_ON_HOST_ARCHITECTURE");
    return Device{architecture == nullptr ? 90 : std::atoi(architecture), 132, 232448,
                  &target_errors};
  }();
  return device;
}

std::vector<int32_t> devices_in_use() {
  return in_use ? std::vector<int32_t>{0} : std::vector<int32_t>{};
}

RelaxedCapture::RelaxedCapture() : before_() { ++relaxed_depth; }
RelaxedCapture::~RelaxedCapture() { --relaxed_depth; }
DeviceGuard::DeviceGuard(int32_t) {}
DeviceGuard::~DeviceGuard() {}
cudaStream_t current_stream(int32_t) { return nullptr; }
bool is_capturing(cudaStream_t) { return false; }
void synchronise(cudaStream_t) {}
void copy_to_host(void* to, const void* from, int64_t bytes, cudaStream_t) {
  std::memcpy(to, from, static_cast<size_t>(bytes));
}
const char* error_text(cudaError_t) { return cuda_on_host_error(); }

}  // namespace torchce::cuda

STABLE_TORCH_LIBRARY_IMPL(torchce, CPU, m) {
  torchce::Operators<torchce::cuda::Backend>::add_to(m);
  torchce::ElementOperators<torchce::cuda::Backend>::add_to(m);
}
