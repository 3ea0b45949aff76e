// CUDA's device language for a CPU compiler: a test's view of the kernels, on machines without a
// GPU.
//
// The toolkit's own headers give vector types, float16, bfloat16 and the runtime's declarations;
// this one gives what only nvcc knows. runtime.cpp executes it: see README.md for what that finds.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <source_location>
#include <tuple>
#include <type_traits>
#include <utility>

#define CUDA_ON_HOST 1

// ---- keywords ----

#undef __global__
#undef __device__
#undef __host__
#undef __constant__
#undef __shared__
#undef __launch_bounds__
#undef __grid_constant__
#undef __cluster_dims__
#undef __maxnreg__
#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __launch_bounds__(...)
#define __grid_constant__
#define __cluster_dims__(...)
#define __maxnreg__(...)
#define __builtin_assume(condition) ((void)0)

// Thread-local storage of the module is what the runtime replaces by the block's shared memory.
#define __shared__ static __thread

// ---- the runtime, in runtime.cpp ----

namespace cuda_on_host {

using Location = std::source_location;

struct Shape {
  unsigned blocks = 1, threads = 1, cluster = 1;
  size_t shared_bytes = 0;
};

cudaError_t run(const Shape& shape, void (*kernel)(void*), void* arguments);

void sync_block(Location where);
void sync_warp(unsigned mask, Location where);
unsigned ballot(unsigned mask, bool vote, Location where);
uint64_t shuffle(unsigned mask, uint64_t value, unsigned source_lane, Location where);
void arrive_at_cluster(Location where);
void wait_for_cluster(Location where);
void poll(Location where);  // a step of what may be a loop that waits for another thread
[[noreturn]] void trap(Location where);

void copy_later(void* shared, const void* global, size_t bytes, Location where);
void commit_copies();
void wait_for_copies(unsigned groups_left);

unsigned lane();
unsigned cluster_rank();
unsigned cluster_size();
unsigned char* dynamic_shared();
void* cluster_shared(void* here, unsigned rank, Location where);

// The kernel's parameters are copied once, as a launch does, then handed to every thread.
template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), const Shape& shape, Arguments&&... arguments) {
  using Values = std::tuple<std::remove_cv_t<Parameters>...>;
  struct Call {
    void (*kernel)(Parameters...);
    Values values;
  } call{kernel, Values(std::forward<Arguments>(arguments)...)};
  return run(
      shape,
      [](void* it) { std::apply(static_cast<Call*>(it)->kernel, static_cast<Call*>(it)->values); },
      &call);
}

template <class To, class From>
To reinterpret_bits(From from) {
  static_assert(std::is_trivially_copyable_v<From> && std::is_trivially_copyable_v<To>);
  To to{};
  std::memcpy(&to, &from, sizeof(To) < sizeof(From) ? sizeof(To) : sizeof(From));
  return to;
}

template <class T>
T shuffle_value(unsigned mask, T value, int source_lane, Location where) {
  static_assert(sizeof(T) <= 8);
  const auto bits = reinterpret_bits<uint64_t>(value);
  return reinterpret_bits<T>(shuffle(mask, bits, static_cast<unsigned>(source_lane), where));
}

// Lanes [first, last] of the segment of `width` lanes that this lane belongs to.
struct Segment {
  explicit Segment(int width)
      : lane(static_cast<int>(cuda_on_host::lane())),
        first(lane & -width),
        last(first + width - 1) {}
  int lane, first, last;
};

template <class T, class Next>
T update_atomically(T* address, Next next, Location where) {
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  static_assert(sizeof(T) == sizeof(Bits));
  poll(where);
  auto* cell = reinterpret_cast<Bits*>(address);
  Bits old = __atomic_load_n(cell, __ATOMIC_RELAXED), desired;
  do {
    desired = reinterpret_bits<Bits>(static_cast<T>(next(reinterpret_bits<T>(old))));
  } while (
      !__atomic_compare_exchange_n(cell, &old, desired, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return reinterpret_bits<T>(old);
}

}  // namespace cuda_on_host

#define CUDA_ON_HOST_WHERE cuda_on_host::Location where = cuda_on_host::Location::current()

// ---- indices: the runtime sets them whenever it goes on with a thread ----

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
constexpr int warpSize = 32;

// ---- barriers and warp collectives ----

inline void __syncthreads(CUDA_ON_HOST_WHERE) { cuda_on_host::sync_block(where); }

inline void __syncwarp(unsigned mask = ~0u, CUDA_ON_HOST_WHERE) {
  cuda_on_host::sync_warp(mask, where);
}

inline unsigned __ballot_sync(unsigned mask, int vote, CUDA_ON_HOST_WHERE) {
  return cuda_on_host::ballot(mask, vote != 0, where);
}

inline int __any_sync(unsigned mask, int vote, CUDA_ON_HOST_WHERE) {
  return cuda_on_host::ballot(mask, vote != 0, where) != 0;
}

inline int __all_sync(unsigned mask, int vote, CUDA_ON_HOST_WHERE) {
  return cuda_on_host::ballot(mask, vote == 0, where) == 0;
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, CUDA_ON_HOST_WHERE) {
  const cuda_on_host::Segment segment(width);
  return cuda_on_host::shuffle_value(mask, value, segment.first + (source & (width - 1)), where);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, CUDA_ON_HOST_WHERE) {
  const cuda_on_host::Segment segment(width);
  const int source = segment.lane ^ lanes;  // earlier segments can be read, later ones cannot
  return cuda_on_host::shuffle_value(mask, value, source > segment.last ? segment.lane : source,
                                     where);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32, CUDA_ON_HOST_WHERE) {
  const cuda_on_host::Segment segment(width);
  const int source = segment.lane + static_cast<int>(by);
  return cuda_on_host::shuffle_value(mask, value, source > segment.last ? segment.lane : source,
                                     where);
}

// ---- memory ----

inline void __threadfence_block() { asm volatile("" ::: "memory"); }
inline void __threadfence() { asm volatile("" ::: "memory"); }
inline void __threadfence_system() { asm volatile("" ::: "memory"); }
inline void __nanosleep(unsigned, CUDA_ON_HOST_WHERE) { cuda_on_host::poll(where); }
[[noreturn]] inline void __trap(CUDA_ON_HOST_WHERE) { cuda_on_host::trap(where); }

template <class T>
T __ldg(const T* address) {
  return *address;
}

template <class T>
T __ldcs(const T* address) {
  return *address;
}

template <class T>
void __stcs(T* address, std::type_identity_t<T> value) {
  *address = value;
}

template <class T>
T atomicAdd(T* address, std::type_identity_t<T> value, CUDA_ON_HOST_WHERE) {
  return cuda_on_host::update_atomically(address, [&](T old) { return old + value; }, where);
}

template <class T>
T atomicMin(T* address, std::type_identity_t<T> value, CUDA_ON_HOST_WHERE) {
  return cuda_on_host::update_atomically(
      address, [&](T old) { return value < old ? value : old; }, where);
}

template <class T>
T atomicMax(T* address, std::type_identity_t<T> value, CUDA_ON_HOST_WHERE) {
  return cuda_on_host::update_atomically(
      address, [&](T old) { return old < value ? value : old; }, where);
}

template <class T>
T atomicCAS(T* address, std::type_identity_t<T> expected, std::type_identity_t<T> value,
            CUDA_ON_HOST_WHERE) {
  return cuda_on_host::update_atomically(
      address, [&](T old) { return old == expected ? value : old; }, where);
}

// ---- arithmetic ----

template <class A, class B>
constexpr std::common_type_t<A, B> min(A a, B b) {
  using T = std::common_type_t<A, B>;
  return T(b) < T(a) ? T(b) : T(a);
}

template <class A, class B>
constexpr std::common_type_t<A, B> max(A a, B b) {
  using T = std::common_type_t<A, B>;
  return T(a) < T(b) ? T(b) : T(a);
}

inline int __float_as_int(float x) { return cuda_on_host::reinterpret_bits<int>(x); }
inline unsigned __float_as_uint(float x) { return cuda_on_host::reinterpret_bits<unsigned>(x); }
inline float __int_as_float(int x) { return cuda_on_host::reinterpret_bits<float>(x); }
inline float __uint_as_float(unsigned x) { return cuda_on_host::reinterpret_bits<float>(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
// __expf and __logf: the C library declares them, runtime.cpp defines them
