// Which architecture the kernels were compiled for, on the current device. Machine code made from
// an older PTX has none of what came later, whatever the device could do: clusters, above all.
#include "launch.h"

namespace torchce::cuda {
namespace {

__global__ void empty_kernel() {}

}  // namespace

int compiled_architecture() {
  cudaFuncAttributes attributes;
  return cudaFuncGetAttributes(&attributes, empty_kernel) == cudaSuccess ? attributes.ptxVersion
                                                                         : 0;
}

}  // namespace torchce::cuda
