#include "runtime.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <algorithm>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

// In the CUDA builds of torch alone; without one of them no CUDA tensor ever comes here.
extern "C" __attribute__((weak)) AOTITorchError
aoti_torch_get_current_cuda_stream(int32_t device_index, void** ret_stream);

namespace torchce::cuda {
namespace {

void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string("torchce_cuda: ") + what + ": " + error_text(error));
  }
}

int32_t attribute(cudaDeviceAttr name, int32_t index) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, name, index), "device attribute");
  return value;
}

}  // namespace

const Device& device(int32_t index) {
  static std::mutex mutex;
  static std::vector<Device> devices(64);
  const std::lock_guard lock(mutex);
  Device& device = devices.at(static_cast<size_t>(index));
  if (device.architecture == 0) {
    device.multiprocessors = attribute(cudaDevAttrMultiProcessorCount, index);
    device.shared_bytes = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, index);
    const DeviceGuard guard(index);
    device.architecture = std::min(attribute(cudaDevAttrComputeCapabilityMajor, index) * 10 +
                                       attribute(cudaDevAttrComputeCapabilityMinor, index),
                                   compiled_architecture());
  }
  return device;
}

DeviceGuard::DeviceGuard(int32_t index) {
  DeviceGuardHandle handle = nullptr;
  if (aoti_torch_create_device_guard(index, &handle) != AOTI_TORCH_SUCCESS) {
    throw std::runtime_error("torchce_cuda: cannot use device " + std::to_string(index));
  }
  handle_ = handle;
}

DeviceGuard::~DeviceGuard() {
  aoti_torch_delete_device_guard(static_cast<DeviceGuardHandle>(handle_));
}

cudaStream_t current_stream(int32_t index) {
  void* stream = nullptr;
  if (aoti_torch_get_current_cuda_stream == nullptr ||
      aoti_torch_get_current_cuda_stream(index, &stream) != AOTI_TORCH_SUCCESS) {
    throw std::runtime_error("torchce_cuda: torch has no CUDA stream for device " +
                             std::to_string(index));
  }
  return static_cast<cudaStream_t>(stream);
}

TargetErrors& target_errors() {
  static TargetErrors* const records = [] {
    // The first call may be under capture, where allocations are refused unless the mode is
    // relaxed.
    cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    check(cudaThreadExchangeStreamCaptureMode(&mode), "capture mode");
    void* memory = nullptr;
    const cudaError_t error =
        cudaHostAlloc(&memory, sizeof(TargetErrors), cudaHostAllocPortable | cudaHostAllocMapped);
    check(cudaThreadExchangeStreamCaptureMode(&mode), "capture mode");
    check(error, "pinned memory");
    return new (memory) TargetErrors;
  }();
  return *records;
}

bool is_capturing(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(stream, &status), "capture status");
  return status != cudaStreamCaptureStatusNone;
}

void synchronise(cudaStream_t stream) { check(cudaStreamSynchronize(stream), "synchronisation"); }

const char* error_text(cudaError_t error) { return cudaGetErrorString(error); }

}  // namespace torchce::cuda
