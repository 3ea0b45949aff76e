// The CUDA runtime and PyTorch's streams, behind a few functions: the operators' file and the host
// tests' stand-in need no more.
#pragma once

#include "launch.h"

namespace torchce::cuda {

struct Device {
  // architecture: the lesser of what the device can do and what the kernels were compiled for
  int32_t architecture = 0, multiprocessors = 0;
  int64_t shared_bytes = 0;
};

const Device& device(int32_t index);

// Makes a device the current one for as long as it lives.
class DeviceGuard {
 public:
  explicit DeviceGuard(int32_t index);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  void* handle_ = nullptr;
};

cudaStream_t current_stream(int32_t index);

// Records in pinned memory that every device writes and the host reads without waiting.
struct TargetErrors {
  TargetError found;    // by a kernel on its way
  TargetError checked;  // by check_targets(True)
};

TargetErrors& target_errors();

bool is_capturing(cudaStream_t stream);
void synchronise(cudaStream_t stream);

const char* error_text(cudaError_t error);

}  // namespace torchce::cuda
