// The CUDA kernels, seen from the ops: pointers, a plan, a stream. Each function returns the
// launch's error, and none waits for the device.
#pragma once

#include <cuda_runtime_api.h>

#include "../element_problem.h"
#include "plan.h"

namespace torchce::cuda {

// A class index that is neither in range nor ignored, in memory that host and device share. A
// kernel that meets one writes it here, makes its row NaN and goes on. Where several rows are bad,
// one of them is named; written at the same moment, row and index may be those of two.
struct alignas(16) TargetError {
  int64_t row_plus_one = 0;  // 0: none
  int64_t index = 0;
};

struct Job {
  Problem problem;
  LaunchPlan plan;
  void* partials = nullptr;  // split plans: [rows, segments] of RowSums, or of what a series needs
  TargetError* target_error = nullptr;
};

// Of the current device: what the kernels were compiled for, and whether it can schedule clusters
// of so many blocks, whatever shared memory up to so much each of them asks for.
cudaError_t ask_compiled_architecture(int& architecture);
cudaError_t ask_for_clusters(int blocks, int64_t shared_bytes, bool& scheduled);

int64_t partials_bytes(const Problem& problem, const LaunchPlan& plan);

// logits -> state (which may be null) and row_loss; and where there is a problem.grad also the
// gradient, which may be the logits' memory
cudaError_t launch_resident(const Job& job, cudaStream_t stream);
cudaError_t launch_streaming(const Job& job, cudaStream_t stream);
// logits, state, grad_loss -> grad
cudaError_t launch_backward(const Job& job, cudaStream_t stream);

// What follows the rows: sums over them in a fixed order. Null pointers are left out.
struct Summary {
  const void* row_loss = nullptr;    // [rows] Acc
  bool weigh_targets = false;        // the divisor is the sum of the weights of the rows that count
  const void* normalizer = nullptr;  // the divisor, one double on the device
  double divisor = 1;                // the divisor, where it is neither
  void* loss = nullptr;              // one Acc: sum of row_loss / divisor
  void* divisor_out = nullptr;       // one Acc
  void* partials = nullptr;          // summary_partials_bytes(rows)
};

// Looks at every target, and at nothing else; where the record is empty, records the first that is
// bad.
cudaError_t launch_check_targets(const Problem& problem, TargetError* record, cudaStream_t stream);

int64_t summary_partials_bytes(int64_t rows);
cudaError_t launch_summary(const Problem& problem, const Summary& summary, cudaStream_t stream);

// What becomes of the losses of elements.
struct ElementSums {
  void* loss = nullptr;     // one Acc: their sum / divisor; null: problem.loss has each of them
  void* divisor = nullptr;  // one Acc: for the mean, the number of elements that count; else 1
  bool mean = false;
  void* partials = nullptr;  // element_partials_bytes(problem), where there is a loss
};

// One partial sum for each of a number of blocks that does not depend on the device.
int64_t element_partials_bytes(const ElementProblem& problem);
// logits, target -> sums, or problem.loss and the divisor 1
cudaError_t launch_elements_forward(const ElementProblem& problem, const ElementSums& sums,
                                    cudaStream_t stream);
// logits, target, grad_loss -> grad
cudaError_t launch_elements_backward(const ElementProblem& problem, cudaStream_t stream);

// values *= factor (one Acc on the device); nothing is touched for factor 1
cudaError_t launch_scale(void* values, DType dtype, int64_t count, const void* factor,
                         cudaStream_t stream);

}  // namespace torchce::cuda
