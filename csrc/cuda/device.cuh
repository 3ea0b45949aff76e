// What a kernel needs of the device beyond the language: launches, dynamic shared memory, copies
// that run by themselves, clusters.
//
// The host tests (tests/cuda_on_host) define the guard below first and put fibres on the CPU behind
// the same names; no other file knows of them.
#ifndef TORCHCE_CUDA_DEVICE_CUH
#define TORCHCE_CUDA_DEVICE_CUH

#include <cuda_runtime.h>

#include <cstdint>

namespace torchce::cuda {

struct Grid {
  unsigned blocks = 1, threads = 1, cluster = 1;
  size_t shared_bytes = 0;
};

// Lets a kernel have whatever shared memory the current device can give a block. The limit belongs
// to the kernel, not to a launch: every thread that sets it sets the same. How L1 and shared memory
// are divided does not follow from it, but from what a launch asks for.
template <class... P>
cudaError_t allow_all_shared_memory(void (*kernel)(P...)) {
  int device = 0, bytes = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  error = cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error != cudaSuccess) return error;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
}

// Calls fn with what the runtime wants to know of a launch.
template <class... P, class Fn>
cudaError_t configure(void (*kernel)(P...), Grid grid, cudaStream_t stream, const Fn& fn) {
  constexpr size_t kWithoutAsking = 48 << 10;
  if (grid.shared_bytes > kWithoutAsking) {
    const cudaError_t error = allow_all_shared_memory(kernel);
    if (error != cudaSuccess) return error;
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(grid.blocks);
  config.blockDim = dim3(grid.threads);
  config.dynamicSmemBytes = grid.shared_bytes;
  config.stream = stream;
  cudaLaunchAttribute cluster = {};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = grid.cluster;
  cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  config.attrs = &cluster;
  config.numAttrs = grid.cluster > 1 ? 1 : 0;
  return fn(config);
}

template <class... P, class... A>
cudaError_t launch(void (*kernel)(P...), Grid grid, cudaStream_t stream, A&&... arguments) {
  return configure(kernel, grid, stream, [&](const cudaLaunchConfig_t& config) {
    return cudaLaunchKernelEx(&config, kernel, static_cast<P>(arguments)...);
  });
}

__device__ __forceinline__ unsigned char* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char block_memory[];
  return block_memory;
}

// Copies kBytes (4, 8 or 16, on a boundary of as many) to shared memory without passing through a
// register, so that many are under way. Committed copies form groups; `copy_wait<kept>` waits for
// all but the newest `kept` groups of this thread, and lets this thread alone read them.
template <int kBytes>
__device__ __forceinline__ void copy_async(void* shared, const void* global) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  if constexpr (kBytes == 16) {  // past the L1 cache: nobody reads them twice
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(to), "l"(global), "n"(kBytes)
                 : "memory");
  }
#else
  memcpy(__builtin_assume_aligned(shared, kBytes), __builtin_assume_aligned(global, kBytes),
         kBytes);
#endif
}

// Written out: from a plain assignment beside a path that stores element by element the compiler
// makes four stores of 4 bytes.
__device__ __forceinline__ void store_packet(void* global, uint4 bits) {
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(global)),
               "r"(bits.x), "r"(bits.y), "r"(bits.z), "r"(bits.w)
               : "memory");
}

__device__ __forceinline__ void copy_commit() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

template <int kept>
__device__ __forceinline__ void copy_wait() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kept) : "memory");
#endif
}

// Clusters: sm_90 and later. `choose_plan` makes none on an earlier device.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

__device__ __forceinline__ unsigned cluster_rank() {
  unsigned rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

__device__ __forceinline__ unsigned cluster_size() {
  unsigned size;
  asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
}

// Every thread of every block arrives and waits; what was written before an arrival is seen after
// the wait.
__device__ __forceinline__ void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
}

__device__ __forceinline__ void cluster_wait() {
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
}

// The same place in the shared memory of another block of the cluster.
template <class T>
__device__ __forceinline__ T* cluster_shared(T* here, unsigned rank) {
  uint64_t there;
  asm("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(reinterpret_cast<uint64_t>(here)), "r"(rank));
  return reinterpret_cast<T*>(there);
}

#else

__device__ __forceinline__ unsigned cluster_rank() { return 0; }
__device__ __forceinline__ unsigned cluster_size() { return 1; }
__device__ __forceinline__ void cluster_arrive() {}
__device__ __forceinline__ void cluster_wait() {}
template <class T>
__device__ __forceinline__ T* cluster_shared(T* here, unsigned) {
  return here;
}

#endif

}  // namespace torchce::cuda

#endif
