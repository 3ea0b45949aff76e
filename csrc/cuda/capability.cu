// What the current device and this build can do together, asked of a kernel that does nothing.
#include "device.cuh"
#include "launch.h"

namespace torchce::cuda {
namespace {

__global__ void empty_kernel() {}

}  // namespace

// Machine code made from an older PTX has none of what came later, whatever the device could do:
// clusters, above all.
int compiled_architecture() {
  cudaFuncAttributes attributes;
  return cudaFuncGetAttributes(&attributes, empty_kernel) == cudaSuccess ? attributes.ptxVersion
                                                                         : 0;
}

// Those that choose_plan makes are portable; but a part of a device, as MIG and MPS make them, may
// have too few multiprocessors together.
bool schedules_clusters(int blocks, int64_t shared_bytes) {
  const unsigned size = static_cast<unsigned>(blocks);
  const Grid grid{size, 256, size, static_cast<size_t>(shared_bytes)};
  int clusters = 0;
  const auto ask = [&clusters](const cudaLaunchConfig_t& config) {
    return cudaOccupancyMaxActiveClusters(&clusters, empty_kernel, &config);
  };
  const bool answered = configure(empty_kernel, grid, nullptr, ask) == cudaSuccess;
  if (!answered) cudaGetLastError();  // an answer too, not a failure to be found by a later call
  return answered && clusters > 0;
}

}  // namespace torchce::cuda
