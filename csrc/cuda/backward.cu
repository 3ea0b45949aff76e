// Backward: the gradient of the logits from the state that forward left, element by element.
//
// Moves   rows * cols * b in, as much out. 8192 x 128256 bf16, 4.20 GB: 0.98 ms at 4.3 TB/s.
// Bound   device memory.
// Why     all sums are in the state, so threads need nothing of each other: any of them takes any
//         packet, with the next 8 of its own under way. The gradient may be the logits' memory,
//         since a packet is read and written by the same thread.
// Measured on an H200, bfloat16: 96 to 98 % of a copy, 91 % at 50257 classes, where a row begins
//         between packets, 79 % at 1000, where what a row costs whatever its length counts.
#include "device.cuh"
#include "row.cuh"

namespace torchce::cuda {
namespace {

template <class T, Terms terms>
__global__ void __launch_bounds__(128, kBlocks<T, terms == Terms::plain ? 7 : 5>)
    backward_kernel(const __grid_constant__ Work<acc_t<T>> work) {
  using Acc = acc_t<T>;
  const int size = 1 << work.lane_bits;
  const int64_t team = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) >> work.lane_bits;
  const int rank = threadIdx.x & (size - 1);
  const Share share(team, work.problem.rows, work.segments, size == 1);
  const int64_t index = share.row;
  if (index >= work.problem.rows || share.segment >= work.segments) return;
  const int begin = share.segment * work.segment_packets;
  const int next = begin + work.segment_packets;
  const Row<T, terms> row(work, index);
  const RowView<T> grad(work.problem.grad, work.problem.grad_layout, index, row.logits);
  // the last segment takes the packet that a row has more where it begins between two
  const int packets = row.logits.packets();
  const int end = share.segment == work.segments - 1 ? packets : next;
  const typename Row<T, terms>::Gradient gradient(work, read_state<Acc>(work.problem, index),
                                                  row_grad<Acc>(work.problem, index) * work.scale);
  if (row.target.ignored) {
    for (int packet = begin + rank; packet < end; packet += size) grad.store_zeros(packet);
    return;
  }
  PacketQueue<T, 1> queue(row.logits, dynamic_shared(), begin + rank, end, size);
  for (int first = begin + rank; first < end; first += kBatch * size) {
    row.write_gradient(grad, queue.next(), end, gradient);
  }
  row.write_target(grad, gradient, begin, end, rank, size);
}

}  // namespace

cudaError_t launch_backward(const Job& job, cudaStream_t stream) {
  return visit_storage(job.problem.logits.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    return visit_terms(job.problem, [&](auto terms) {
      return launch(backward_kernel<T, decltype(terms)::value>, grid_of(job.plan), stream,
                    Work<acc_t<T>>(job));
    });
  });
}

}  // namespace torchce::cuda
