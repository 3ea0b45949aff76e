// The CUDA backend behind the operators on CPU tensors, its kernels executed by the host runtime:
// autograd, gradcheck and opcheck then exercise the CUDA route. Takes the place of ops_cuda.cpp and
// runtime.cpp.
#include <cstdlib>

#include "../../csrc/cuda/backend.h"
#include "../../csrc/cuda/runtime.h"

extern "C" const char* cuda_on_host_error();

namespace torchce::cuda {

const Device& device(int32_t) {
  // another device than the one whose plans are wanted can be asked for
  static const Device device = [] {
    const char* architecture = std::getenv("CUDA_ON_HOST_ARCHITECTURE");
    return Device{architecture == nullptr ? 90 : std::atoi(architecture), 132, 232448};
  }();
  return device;
}

DeviceGuard::DeviceGuard(int32_t) {}
DeviceGuard::~DeviceGuard() {}
cudaStream_t current_stream(int32_t) { return nullptr; }
bool is_capturing(cudaStream_t) { return false; }
void synchronise(cudaStream_t) {}
const char* error_text(cudaError_t) { return cuda_on_host_error(); }

TargetErrors& target_errors() {
  static TargetErrors records;
  return records;
}

}  // namespace torchce::cuda

STABLE_TORCH_LIBRARY_IMPL(torchce, CPU, m) {
  torchce::Operators<torchce::cuda::Backend>::add_to(m);
  torchce::ElementOperators<torchce::cuda::Backend>::add_to(m);
}
