// csrc/cuda/runtime.cpp over a CUDA runtime that answers as it is told to: what a device is asked
// only once, and answers that come only where something is wrong.
#include <sys/wait.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <stdexcept>

#include "../../csrc/cuda/runtime.h"

namespace {

cudaError_t architecture_error, clusters_error, capture_error;
bool clusters_scheduled = true;

void expect(bool holds, const char* what) {
  if (holds) return;
  std::printf("not so: %s\n", what);
  std::exit(1);
}

template <class Fn>
bool raises(const Fn& fn) {
  try {
    fn();
  } catch (const std::runtime_error&) {
    return true;
  }
  return false;
}

}  // namespace

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr name, int) {
  *value = name == cudaDevAttrComputeCapabilityMajor ? 9 : 0;
  return cudaSuccess;
}
cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned) {
  *memory = std::aligned_alloc(16, bytes);
  return cudaSuccess;
}
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) { return cudaSuccess; }
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus*) { return capture_error; }
cudaError_t cudaMemcpyAsync(void*, const void*, size_t, cudaMemcpyKind, cudaStream_t) {
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t) { return "as it was told to"; }
AOTITorchError aoti_torch_create_device_guard(int32_t, DeviceGuardHandle*) { return 0; }
AOTITorchError aoti_torch_delete_device_guard(DeviceGuardHandle) { return 0; }

namespace torchce::cuda {

cudaError_t ask_compiled_architecture(int& architecture) {
  architecture = 90;
  return architecture_error;
}

cudaError_t ask_for_clusters(int, int64_t, bool& scheduled) {
  scheduled = clusters_scheduled;
  return clusters_error;
}

}  // namespace torchce::cuda

int main() {
  using namespace torchce::cuda;
  const auto first = [] { device(0); };
  for (cudaError_t* error : {&architecture_error, &clusters_error}) {
    *error = cudaErrorMemoryAllocation;
    expect(raises(first), "a device that does not answer raises");
    expect(devices_in_use().empty(), "nothing is remembered of it");
    *error = cudaSuccess;
  }
  expect(device(0).architecture == 90, "it is asked again");
  clusters_scheduled = false;
  expect(device(1).architecture == 89, "a device without clusters came before them");
  expect(device(0).architecture == 90, "a device is asked once");
  expect(devices_in_use().size() == 2, "both are in use");

  const pid_t child = fork();
  if (child == 0) _exit(devices_in_use().empty() ? 0 : 1);
  int status = -1;
  waitpid(child, &status, 0);
  expect(status == 0, "a forked child uses none of its parent's devices");

  expect(!is_capturing(nullptr), "the default stream is not captured");
  capture_error = cudaErrorStreamCaptureImplicit;
  expect(is_capturing(nullptr), "nor can it be used while one is that it would wait for");
  capture_error = cudaErrorInvalidValue;
  expect(raises([] { is_capturing(nullptr); }), "another error is one");
  std::puts("as expected");
}
