// PyTorch's thread pool, seen from the kernels as one function without any torch type.
#pragma once

#include <cstdint>

namespace torchce::cpu {

// Calls body(context, begin, end) over [0, count) in pieces of at least `grain`. Defined in
// ops_cpu.cpp.
void run_ranges(int64_t count, int64_t grain, void (*body)(int64_t, int64_t, void*), void* context);

template <class Body>
void parallel_for(int64_t count, int64_t grain, const Body& body) {
  if (count <= grain) {  // no need to wake the pool; this keeps small calls at a few microseconds
    if (count > 0) body(int64_t{0}, count);
    return;
  }
  auto call = [](int64_t begin, int64_t end, void* context) {
    (*static_cast<const Body*>(context))(begin, end);
  };
  run_ranges(count, grain, call, const_cast<void*>(static_cast<const void*>(&body)));
}

}  // namespace torchce::cpu
