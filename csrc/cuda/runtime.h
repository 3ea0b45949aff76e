// The CUDA runtime and PyTorch's streams, behind a few functions: the operators' file and the host
// tests' stand-in need no more.
#pragma once

#include <vector>

#include "launch.h"

namespace torchce::cuda {

// Records in pinned memory that the device writes and the host reads without waiting.
struct TargetErrors {
  TargetError found;
  TargetError
      seen;  // in problems that were looked at as a whole, and reported then; nobody reads it
};

struct Device {
  // What kernels can use: of what the device can do, and of what they were compiled for. Where the
  // device schedules no clusters, that of one before there were any.
  int32_t architecture = 0;
  int32_t multiprocessors = 0;
  int64_t shared_bytes = 0;
  TargetErrors* target_errors = nullptr;
};

// What is known of a device from its first use on.
const Device& device(int32_t index);
std::vector<int32_t> devices_in_use();

// Lets this thread do what a stream under capture forbids: the first call of all, and the first of
// each kernel, load machine code and allocate memory. None of it is a part of the graph.
class RelaxedCapture {
 public:
  RelaxedCapture();
  ~RelaxedCapture();
  RelaxedCapture(const RelaxedCapture&) = delete;
  RelaxedCapture& operator=(const RelaxedCapture&) = delete;

 private:
  cudaStreamCaptureMode before_;
};

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

// Also of the default stream while one is captured that it would wait for.
bool is_capturing(cudaStream_t stream);

// These two wait for the stream.
void synchronise(cudaStream_t stream);
void copy_to_host(void* to, const void* from, int64_t bytes, cudaStream_t stream);

const char* error_text(cudaError_t error);

}  // namespace torchce::cuda
