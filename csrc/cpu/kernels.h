// The CPU kernels, seen from the ops.
#pragma once

#include "../element_problem.h"
#include "../problem.h"

namespace torchce::cpu {

enum class Strategy { rows, positions };

// A pure function of shape and strides.
Strategy choose_strategy(const Problem& problem);

// What one look at every class index tells, before any logit is touched.
struct TargetScan {
  double weight_sum = 0;       // of w[y] over the rows that are not ignored
  int64_t first_bad_row = -1;  // not ignored, and its index is outside [0, cols)
  int64_t bad_index = 0;
};

TargetScan scan_targets(const Problem& problem);

void forward(const Problem& problem);   // logits -> state, row_loss
void backward(const Problem& problem);  // logits, state, grad_loss -> grad
// Both, a row's gradient while its logits are in cache; `grad` may be the logits' memory.
void forward_backward(const Problem& problem);

// sum of row_loss, in an order that does not depend on the number of threads
double sum_row_loss(const Problem& problem);

// values *= factor over contiguous memory, and nothing at all for factor 1
void scale(void* values, DType dtype, int64_t count, double factor);

struct ElementSums {
  double loss = 0, counted = 0;  // over elements; `counted` of them are not ignored
};

// logits, target -> sums, and problem.loss where it is given
ElementSums elements_forward(const ElementProblem& problem);
// logits, target, grad_loss -> grad
void elements_backward(const ElementProblem& problem);

void forward_rows(const Problem& problem);
void backward_rows(const Problem& problem);
void forward_backward_rows(const Problem& problem);
void forward_positions(const Problem& problem);
void backward_positions(const Problem& problem);
void forward_backward_positions(const Problem& problem);

}  // namespace torchce::cpu
