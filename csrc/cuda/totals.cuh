// Sums over rows or elements: of losses, and of what their mean divides by. Taken in double over
// fixed blocks, each in a fixed tree, whose partial sums one block adds up: the same bits every
// time, without an atomic.
#pragma once

#include "team.cuh"

namespace torchce::cuda {

struct Totals {
  double loss = 0, weight = 0;
};

struct AddTotals {
  __device__ __forceinline__ Totals operator()(const Totals& a, const Totals& b) const {
    return {a.loss + b.loss, a.weight + b.weight};
  }
};

// This thread's part of the partial sums of `blocks` blocks.
__device__ __forceinline__ Totals sum_partials(const void* partials, int64_t blocks) {
  Totals totals;
  const AddTotals add;
  for (int64_t i = threadIdx.x; i < blocks; i += blockDim.x) {
    totals = add(totals, static_cast<const Totals*>(partials)[i]);
  }
  return totals;
}

// The mean and what it was divided by, one Acc each; null pointers are left out.
template <class Acc>
__device__ __forceinline__ void write_quotient(double sum, double divisor, void* loss,
                                               void* divisor_out) {
  if (loss != nullptr) *static_cast<Acc*>(loss) = static_cast<Acc>(sum / divisor);
  if (divisor_out != nullptr) *static_cast<Acc*>(divisor_out) = static_cast<Acc>(divisor);
}

}  // namespace torchce::cuda
