// What csrc/cuda/device.cuh gives the kernels, on the CPU. Included before a kernel file
// (g++ -include), it takes the header's place by its include guard.
#pragma once
#define TORCHCE_CUDA_DEVICE_CUH

#include "cuda_on_host.h"

namespace torchce::cuda {

struct Grid {
  unsigned blocks = 1, threads = 1, cluster = 1;
  size_t shared_bytes = 0;
};

template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), Grid grid, cudaStream_t /*stream*/,
                   Arguments&&... arguments) {
  return cuda_on_host::launch(kernel, {grid.blocks, grid.threads, grid.cluster, grid.shared_bytes},
                              std::forward<Arguments>(arguments)...);
}

inline unsigned char* dynamic_shared() { return cuda_on_host::dynamic_shared(); }

template <int bytes>
void copy_async(void* shared, const void* global, CUDA_ON_HOST_WHERE) {
  cuda_on_host::copy_later(shared, global, bytes, where);
}
inline void store_packet(void* global, uint4 bits) { *static_cast<uint4*>(global) = bits; }
inline void copy_commit() { cuda_on_host::commit_copies(); }
template <int kept>
void copy_wait() {
  cuda_on_host::wait_for_copies(kept);
}

inline unsigned cluster_rank() { return cuda_on_host::cluster_rank(); }
inline unsigned cluster_size() { return cuda_on_host::cluster_size(); }
inline void cluster_arrive(CUDA_ON_HOST_WHERE) { cuda_on_host::arrive_at_cluster(where); }
inline void cluster_wait(CUDA_ON_HOST_WHERE) { cuda_on_host::wait_for_cluster(where); }

template <class T>
T* cluster_shared(T* here, unsigned rank, CUDA_ON_HOST_WHERE) {
  auto* address = const_cast<std::remove_cv_t<T>*>(here);
  return static_cast<T*>(cuda_on_host::cluster_shared(address, rank, where));
}

}  // namespace torchce::cuda
