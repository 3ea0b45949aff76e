// What surrounds a step: the problem, the check against float64, the clock.
//
//   nvcc -std=c++17 -O3 -arch=native 1_thread_per_row.cu -o step && ./step [rows classes]
//
// A step defines `kStep` and `run`. GB/s counts the bytes that the work needs, not those that the
// step moves, so that all steps of one work can be compared; 100 % is a device copy in the same
// run.
#pragma once

#include <cuda_bf16.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "../../csrc/cuda/device.cuh"
#include "../../csrc/elementary.h"

using namespace torchce;
using namespace torchce::cuda;

template <class T>
struct Problem {
  const T* logits;    // [rows, cols]
  const int* target;  // [rows]
  float* loss;        // [rows]
  float* lse;         // [rows], scratch
  T* grad;            // [rows, cols], of the loss's sum; lies as the logits do
  int64_t rows;
  int cols;
};

struct Step {
  bool gradient;  // beside the loss
  int passes;     // over memory of the logits' size, by the bytes model
};

extern const Step kStep;

template <class T>
cudaError_t run(const Problem<T>& problem, cudaStream_t stream);

// Blocks of which each works on `rows_per_block` rows.
template <class T>
unsigned blocks_for(const Problem<T>& problem, int rows_per_block) {
  return static_cast<unsigned>((problem.rows + rows_per_block - 1) / rows_per_block);
}

// For tests, which execute the kernels on the CPU.
#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED int run_float32(const float* logits, const int* target, float* loss, float* lse,
                         float* grad, int64_t rows, int cols) {
  return run<float>({logits, target, loss, lse, grad, rows, cols}, nullptr);
}

EXPORTED int run_bfloat16(const __nv_bfloat16* logits, const int* target, float* loss, float* lse,
                          __nv_bfloat16* grad, int64_t rows, int cols) {
  return run<__nv_bfloat16>({logits, target, loss, lse, grad, rows, cols}, nullptr);
}

EXPORTED bool has_gradient() { return kStep.gradient; }

#ifdef __CUDACC__  // what follows needs a GPU

inline void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s\n", cudaGetErrorString(error));
  std::exit(1);
}

__host__ __device__ inline uint32_t scramble(uint64_t x) {
  x = (x ^ x >> 31) * 0x7fb5d329728ea185ull;
  x = (x ^ x >> 27) * 0x81dadef4bc2dd44dull;
  return static_cast<uint32_t>(x >> 32);
}

__host__ __device__ inline int target_of(int64_t row, int cols) {
  return static_cast<int>(scramble(~uint64_t(row)) % cols);
}

// Of four rows one has all its weight at the target, one at the first class and one at the last,
// so that a class left out shows; in every other row one class is masked.
template <class T>
__global__ void fill_kernel(T* logits, int* target, int64_t rows, int cols) {
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const int class_index = target_of(row, cols);
    const int peaks[] = {-1, class_index, 0, cols - 1}, peak = peaks[row % 4];
    for (int col = threadIdx.x; col < cols; col += blockDim.x) {
      const int64_t i = row * cols + col;
      float z = 8 * (scramble(i) * 0x1p-32f) - 4;
      if (col == peak) z = 30;
      if (row % 2 == 0 && col == class_index + 1) z = -INFINITY;
      logits[i] = T(z);
    }
    if (threadIdx.x == 0) target[row] = class_index;
  }
}

template <class T>
std::vector<T> copy_to_host(const T* device, int64_t count) {
  std::vector<T> host(count);
  check(cudaMemcpy(host.data(), device, count * sizeof(T), cudaMemcpyDeviceToHost));
  return host;
}

// Float sums of up to 1e5 terms, and the rounding of a stored gradient; 1e-7 is what is left of
// p - 1 where p is 1.
template <class T>
void compare(double ours, double exact, bool stored, int64_t row, int col) {
  const double rounding = stored && sizeof(T) == 2 ? 1.0 / 256 : 0;
  const double allowed = (1e-4 + rounding) * std::abs(exact) + (stored ? 1e-7 : 1e-4);
  if (std::abs(ours - exact) <= allowed) return;
  std::fprintf(stderr, "row %lld, class %d: %g, not %g\n", static_cast<long long>(row), col, ours,
               exact);
  std::exit(1);
}

template <class T>
void verify_row(const Problem<T>& problem, int64_t row) {
  const int target = target_of(row, problem.cols);
  const std::vector<T> logits = copy_to_host(problem.logits + row * problem.cols, problem.cols);
  std::vector<double> z(problem.cols);
  for (int col = 0; col < problem.cols; ++col) z[col] = float(logits[col]);
  const double max = *std::max_element(z.begin(), z.end());
  double sum = 0;
  for (const double value : z) sum += std::exp(value - max);
  const double lse = max + std::log(sum);
  compare<T>(copy_to_host(problem.loss + row, 1)[0], lse - z[target], false, row, target);
  if (!kStep.gradient) return;
  const std::vector<T> grad = copy_to_host(problem.grad + row * problem.cols, problem.cols);
  for (int col = 0; col < problem.cols; ++col) {
    compare<T>(float(grad[col]), std::exp(z[col] - lse) - (col == target), true, row, col);
  }
}

// The median of 20, in milliseconds.
template <class Fn>
float time_of(const Fn& fn) {
  cudaEvent_t begin, end;
  check(cudaEventCreate(&begin));
  check(cudaEventCreate(&end));
  std::vector<float> times(20);
  for (float& time : times) {
    check(cudaEventRecord(begin));
    check(fn());
    check(cudaEventRecord(end));
    check(cudaEventSynchronize(end));
    check(cudaEventElapsedTime(&time, begin, end));
  }
  check(cudaEventDestroy(begin));
  check(cudaEventDestroy(end));
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

template <class T>
void run_step(int64_t rows, int cols, bool timed) {
  const size_t bytes = rows * cols * sizeof(T);
  T *logits, *grad;
  int* target;
  float *loss, *lse;
  check(cudaMalloc(&logits, bytes));
  check(cudaMalloc(&grad, bytes));
  check(cudaMalloc(&target, rows * sizeof(int)));
  check(cudaMalloc(&loss, rows * sizeof(float)));
  check(cudaMalloc(&lse, rows * sizeof(float)));
  fill_kernel<<<4096, 256>>>(logits, target, rows, cols);
  const Problem<T> problem{logits, target, loss, lse, grad, rows, cols};
  std::printf("%s %lld x %d: ", sizeof(T) == 2 ? "bfloat16" : "float32",
              static_cast<long long>(rows), cols);
  const cudaError_t error = run(problem, nullptr);
  if (error == cudaErrorInvalidValue) {
    (void)cudaGetLastError();  // it would be reported again
    std::printf("a row does not fit\n");
  } else {
    check(error);
    check(cudaDeviceSynchronize());
    const int64_t stride = timed ? std::max<int64_t>(1, rows / 7) : 1;
    for (int64_t row = 0; row < rows; row += stride) verify_row(problem, row);
    verify_row(problem, rows - 1);
    std::printf("right");
    if (timed) {
      const float time = time_of([&] { return run(problem, nullptr); });
      const float copy = time_of(
          [&] { return cudaMemcpyAsync(grad, logits, bytes, cudaMemcpyDeviceToDevice, nullptr); });
      const double needed = (kStep.gradient ? 2.0 : 1.0) * bytes / time;
      const double moved = 1.0 * kStep.passes * bytes / time, copied = 2.0 * bytes / copy;
      std::printf(", %.3f ms, %.0f GB/s, %.1f %% of the copy's %.0f; by the model it moves %.0f",
                  time, needed * 1e-6, 100 * needed / copied, copied * 1e-6, moved * 1e-6);
    }
    std::printf("\n");
  }
  check(cudaFree(logits));
  check(cudaFree(grad));
  check(cudaFree(target));
  check(cudaFree(loss));
  check(cudaFree(lse));
}

int main(int count, char** arguments) {
  for (const int cols : {1, 7, 1000, 1001, 50257}) {
    run_step<float>(9, cols, false);
    run_step<__nv_bfloat16>(9, cols, false);
  }
  if (count == 3) {
    run_step<__nv_bfloat16>(std::atoll(arguments[1]), std::atoi(arguments[2]), true);
  } else {
    run_step<__nv_bfloat16>(8192, 50257, true);
    run_step<__nv_bfloat16>(8192, 128256, true);
  }
}

#endif
