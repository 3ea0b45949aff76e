// What the current device and this build can do together, asked of a kernel that does nothing.
#include "device.cuh"
#include "launch.h"

namespace torchce::cuda {
namespace {

__global__ void empty_kernel() {}

}  // namespace

// Machine code made from an older PTX has none of what came later, whatever the device could do:
// clusters, above all.
cudaError_t ask_compiled_architecture(int& architecture) {
  cudaFuncAttributes attributes;
  const cudaError_t error = cudaFuncGetAttributes(&attributes, empty_kernel);
  if (error == cudaSuccess) architecture = attributes.ptxVersion;
  return error;
}

// Those that choose_plan makes are portable; but a part of a device, as MIG and MPS make them, may
// have too few multiprocessors together.
cudaError_t ask_for_clusters(int blocks, int64_t shared_bytes, bool& scheduled) {
  const unsigned size = static_cast<unsigned>(blocks);
  const Grid grid{size, 256, size, static_cast<size_t>(shared_bytes)};
  int clusters = 0;
  const auto ask = [&clusters](const cudaLaunchConfig_t& config) {
    return cudaOccupancyMaxActiveClusters(&clusters, empty_kernel, &config);
  };
  const cudaError_t error = configure(empty_kernel, grid, nullptr, ask);
  scheduled = error == cudaSuccess && clusters > 0;
  if (error != cudaErrorInvalidClusterSize && error != cudaErrorInvalidConfiguration) return error;
  cudaGetLastError();  // an answer too, not a failure to be found by a later call
  return cudaSuccess;
}

}  // namespace torchce::cuda
