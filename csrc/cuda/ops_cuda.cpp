// The operators on CUDA tensors.
#include "backend.h"

STABLE_TORCH_LIBRARY_IMPL(torchce, CUDA, m) {
  torchce::Operators<torchce::cuda::Backend>::add_to(m);
  torchce::ElementOperators<torchce::cuda::Backend>::add_to(m);
}
