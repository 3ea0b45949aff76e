#include "runtime.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>

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

TargetErrors* make_target_errors() {
  void* memory = nullptr;
  check(cudaHostAlloc(&memory, sizeof(TargetErrors), cudaHostAllocPortable | cudaHostAllocMapped),
        "pinned memory");
  return new (memory) TargetErrors;
}

// Of the current device. What cannot be asked now, as where memory has run out, can be later: it is
// raised, and nothing is remembered.
Device describe(int32_t index) {
  Device device;
  device.multiprocessors = attribute(cudaDevAttrMultiProcessorCount, index);
  device.shared_bytes = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, index);
  int compiled = 0;
  check(ask_compiled_architecture(compiled), "machine code");
  device.architecture = std::min(attribute(cudaDevAttrComputeCapabilityMajor, index) * 10 +
                                     attribute(cudaDevAttrComputeCapabilityMinor, index),
                                 compiled);
  if (device.architecture >= kClusterArchitecture) {
    bool scheduled = false;
    check(ask_for_clusters(kLargestCluster, device.shared_bytes, scheduled), "clusters");
    if (!scheduled) device.architecture = kClusterArchitecture - 1;
  }
  device.target_errors = make_target_errors();
  return device;
}

constexpr int32_t kMostDevices = 64;  // of a machine, as in PyTorch
std::mutex devices_mutex;
std::array<Device, kMostDevices> devices;
pid_t user = 0;  // the process that uses them: its forked children cannot

}  // namespace

const Device& device(int32_t index) {
  const std::lock_guard lock(devices_mutex);
  Device& device = devices.at(static_cast<size_t>(index));
  if (device.target_errors == nullptr) device = describe(index);
  user = getpid();
  return device;
}

std::vector<int32_t> devices_in_use() {
  const std::lock_guard lock(devices_mutex);
  std::vector<int32_t> in_use;
  if (user != getpid()) return in_use;
  for (int32_t index = 0; index < kMostDevices; ++index) {
    if (devices[static_cast<size_t>(index)].target_errors != nullptr) in_use.push_back(index);
  }
  return in_use;
}

RelaxedCapture::RelaxedCapture() : before_(cudaStreamCaptureModeRelaxed) {
  check(cudaThreadExchangeStreamCaptureMode(&before_), "capture mode");
}

RelaxedCapture::~RelaxedCapture() { cudaThreadExchangeStreamCaptureMode(&before_); }

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

bool is_capturing(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  const cudaError_t error = cudaStreamIsCapturing(stream, &status);
  if (error == cudaErrorStreamCaptureImplicit) {
    cudaGetLastError();  // an answer too
    return true;
  }
  check(error, "capture status");
  return status != cudaStreamCaptureStatusNone;
}

void synchronise(cudaStream_t stream) { check(cudaStreamSynchronize(stream), "synchronisation"); }

void copy_to_host(void* to, const void* from, int64_t bytes, cudaStream_t stream) {
  check(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost, stream),
        "copy to the host");
  synchronise(stream);
}

const char* error_text(cudaError_t error) {
  cudaGetLastError();  // told now; PyTorch would find it after its next launch, and blame that
  return cudaGetErrorString(error);
}

}  // namespace torchce::cuda
