// One cross-entropy problem as plain data: what the kernels of both backends are given.
#pragma once

#include <cstdint>

#include "row_math.h"

namespace torchce {

enum class DType : int32_t { float64, float32, bfloat16, float16 };
enum class TargetKind : int32_t { int64, int32, uint8, probabilities };
enum class Reduction : int64_t {
  none = 0,
  mean = 1,
  sum = 2
};  // the numbers of torch.nn._reduction

constexpr int kMaxRowDims = 6;

// Where the rows of a [.., C, ..] tensor lie: row dimensions in row-major order, neighbours that
// form one arithmetic progression merged, all strides in elements. (N, C) is one dimension of
// stride C; a contiguous (N, C, H, W) is [N, H*W] with class_stride H*W: no permuted copy is ever
// made.
struct RowLayout {
  int64_t class_stride = 1;
  int32_t dims = 1;
  int64_t size[kMaxRowDims] = {1};
  int64_t stride[kMaxRowDims] = {0};

  CE_HD int64_t offset(int64_t row) const {
    int64_t at = 0;
    for (int d = dims - 1; d > 0; --d) {
      at += row % size[d] * stride[d];
      row /= size[d];
    }
    return at + row * stride[0];
  }
  // However few they are: a position's bits must not depend on the others'.
  CE_HD bool positions_are_neighbours() const { return class_stride != 1 && inner_stride() == 1; }
  CE_HD int64_t inner_size() const { return size[dims - 1]; }
  CE_HD int64_t inner_stride() const { return stride[dims - 1]; }
};

struct Strided {
  const void* data = nullptr;
  DType dtype = DType::float32;
  RowLayout layout;
};

// Accumulators ("Acc") are float, or double where the logits are float64.
struct Problem {
  int64_t rows = 0, cols = 0;
  Strided logits;
  TargetKind target_kind = TargetKind::int64;
  const void* target = nullptr;  // [rows] class indices; a kernel checks what it reads
  Strided probabilities;         // TargetKind::probabilities
  const void* weight = nullptr;  // [cols] Acc, or null
  int64_t ignore_index = -100;
  RowOptions options;

  void* state = nullptr;     // [kStatePlanes or kStatePlanes + 1, rows] Acc: RowState by member
  void* row_loss = nullptr;  // [rows] Acc

  // backward
  const void* grad_loss = nullptr;  // [rows] with grad_loss_stride, or one value (stride 0), Acc;
  int64_t grad_loss_stride = 0;     // null: 1
  const void* divisor = nullptr;    // of the mean, one Acc; null: 1
  void* grad = nullptr;             // logits' dtype; may be the logits' own memory
  RowLayout grad_layout;

  CE_HD bool has_spread() const {
    return target_kind == TargetKind::probabilities || options.label_smoothing > 0;
  }
  CE_HD bool has_focal_spread() const { return has_spread() && options.gamma > 0; }
  // Where the series of a focal spread ends with p^2 its sums need no normaliser.
  CE_HD bool has_quadratic_spread() const {
    return has_focal_spread() && FocalSeries<double>(options.gamma).degree == 2;
  }
};

constexpr int kStatePlanes =
    3;  // max, coef, target_grad; a fourth, log_sum, with has_focal_spread()

}  // namespace torchce
