// The sigmoid losses, element by element: the loss with its sum, and the gradient.
//
// Moves   forward: the logits and the target, and the losses where they are not summed; backward:
//         the same and the gradient. 2^28 bfloat16 logits with as wide a target, 1.07 GB forward:
//         0.25 ms at 4.3 TB/s; 1.61 GB backward: 0.37 ms. What is broadcast comes from the caches.
// Bound   instructions. Counted in the machine code an element's mathematics are about 45 forward
//         and 33 backward, 75 and 80 with gamma = 2, 115 with another; at 4.3 TB/s an H200 can
//         issue 27 for 4 bytes an element, 55 for 8.
// Why     a thread has 8 elements at once, whose operands are moved in packets of 16 bytes: what
//         is done once for them (indices, dtypes, factors that are not given) is little beside
//         that. Which elements a block sums does not depend on the device.
#include "launch.h"
#include "operand.cuh"
#include "totals.cuh"

namespace torchce::cuda {
namespace {

constexpr int kThreads = 256;
// Blocks take more elements each rather than become more. Not yet measured.
constexpr int64_t kMostBlocks = 4096;

// Elements of a chunk: one packet of 16-bit logits, two of float32; one of float64, for few
// registers.
template <class T>
constexpr int kElements = sizeof(T) == 8 ? 2 : 8;

// A problem's chunks, `of_run` to each run of neighbours, and how they are shared out: a block
// takes `steps` for each of its threads.
struct Shares {
  Shares(const ElementProblem& problem, int elements) : of_run(chunks_of_run(problem, elements)) {
    if (problem.count == 0) return;
    chunks = problem.count / problem.inner_size() * of_run;
    while (chunks > steps * kThreads * kMostBlocks) steps *= 2;
    blocks = (chunks - 1) / (steps * kThreads) + 1;
  }

  int64_t of_run, chunks = 0, steps = 1, blocks = 1;
};

// The kernels' argument.
template <class T>
struct ElementWork {
  explicit ElementWork(const ElementProblem& problem)
      : problem(problem),
        options(problem.template options<acc_t<T>>()),
        shares(problem, kElements<T>),
        one_upstream(problem.one_upstream()) {}

  Grid grid(size_t shared_bytes) const {
    return {static_cast<unsigned>(shares.blocks), kThreads, 1, shared_bytes};
  }

  ElementProblem problem;
  ElementOptions<acc_t<T>> options;
  Shares shares;
  bool one_upstream;
};

// Calls body(chunk) for every chunk of this thread.
template <class T, class Body>
__device__ __forceinline__ void for_each_chunk(const ElementWork<T>& work, const Body& body) {
  const Shares& shares = work.shares;
  const int64_t begin = blockIdx.x * shares.steps * kThreads;
  const int64_t next = begin + shares.steps * kThreads;
  const int64_t end = next < shares.chunks ? next : shares.chunks;
#pragma unroll 1
  for (int64_t index = begin + threadIdx.x; index < end; index += kThreads) {
    body(Chunk<kElements<T>>(work.problem, index, shares.of_run));
  }
}

template <int kCount, class Acc>
__device__ __forceinline__ void multiply(const Chunk<kCount>& chunk, const Operand& operand,
                                         Acc (&values)[kCount]) {
  if (operand.data == nullptr) return;
  Acc factors[kCount];
  chunk.load(operand, factors);
#pragma unroll
  for (int i = 0; i < kCount; ++i) values[i] *= factors[i];
}

// The loss or the slope of each element, without what it is multiplied by, and a bit for each that
// counts. Factors are loaded afterwards, for the sake of registers.
template <Modulation kModulation, class T, class Select, int kCount>
__device__ __forceinline__ unsigned terms_of(const ElementWork<T>& work, const Chunk<kCount>& chunk,
                                             const Select& select, acc_t<T> (&out)[kCount]) {
  using Acc = acc_t<T>;
  const ElementProblem& problem = work.problem;
  Acc t[kCount], pos_weight[kCount];
  fill(pos_weight, Acc(1));
  if (problem.pos_weight.data != nullptr) chunk.load(problem.pos_weight, pos_weight);
  chunk.load(problem.target, t);
  // the logits last: a float32 target, not converted, is under way with them
  chunk.template load_as<T>(problem.logits, out);
  unsigned counted = 0;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if (chunk.holds(i) && !(t[i] == work.options.ignored)) counted |= 1u << i;
    out[i] = select(element_terms<kModulation>(out[i], t[i], pos_weight[i], work.options));
  }
  return counted;
}

// Elements that do not count become 0, whatever they were multiplied by.
template <int kCount, class Acc>
__device__ __forceinline__ void keep(unsigned counted, Acc (&values)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) values[i] = counted >> i & 1 ? values[i] : Acc(0);
}

template <class Acc>
__device__ __forceinline__ void write_sums(const ElementSums& sums, const Totals& totals) {
  const double divisor = sums.mean ? totals.weight : 1.0;
  write_quotient<Acc>(totals.loss, divisor, sums.loss, sums.divisor);
}

template <class T, Modulation kModulation>
__global__ void __launch_bounds__(kThreads, kBlocks<T, 4>)
    elements_forward_kernel(const __grid_constant__ ElementWork<T> work,
                            const __grid_constant__ ElementSums sums) {
  using Acc = acc_t<T>;
  const ElementProblem& problem = work.problem;
  Block<double> block(dynamic_shared());
  double loss = 0;
  int counted = 0;
  for_each_chunk(work, [&](const auto& chunk) {
    Acc values[kElements<T>], sum = 0;
    const unsigned counts = terms_of<kModulation>(
        work, chunk, [](const ElementTerms<Acc>& terms) { return terms.loss; }, values);
    multiply(chunk, problem.weight, values);
    keep(counts, values);
    if (problem.loss.data != nullptr) chunk.template store<Acc>(problem.loss, values);
#pragma unroll
    for (int i = 0; i < kElements<T>; ++i) sum += values[i];
    loss += sum;
    counted += __popc(counts);
  });
  if (sums.loss == nullptr) {
    if (block.index() == 0 && block.leads()) write_sums<Acc>(sums, {});
    return;
  }
  const Totals totals = block.reduce(Totals{loss, static_cast<double>(counted)}, AddTotals{});
  if (!block.leads()) return;
  if (sums.partials == nullptr) return write_sums<Acc>(sums, totals);
  static_cast<Totals*>(sums.partials)[block.index()] = totals;
}

// One block, over the sums of the others.
template <class Acc>
__global__ void __launch_bounds__(kThreads)
    element_sums_kernel(const __grid_constant__ ElementSums sums, int64_t blocks) {
  Block<double> block(dynamic_shared());
  const Totals totals = block.reduce(sum_partials(sums.partials, blocks), AddTotals{});
  if (block.leads()) write_sums<Acc>(sums, totals);
}

template <class T, Modulation kModulation>
__global__ void __launch_bounds__(kThreads, kBlocks<T, 4>)
    elements_backward_kernel(const __grid_constant__ ElementWork<T> work) {
  using Acc = acc_t<T>;
  const ElementProblem& problem = work.problem;
  const Acc divisor = *static_cast<const Acc*>(problem.divisor);
  const Acc upstream = (work.one_upstream ? read_first<Acc>(problem.grad_loss) : Acc(1)) / divisor;
  for_each_chunk(work, [&](const auto& chunk) {
    Acc values[kElements<T>];
    const unsigned counts = terms_of<kModulation>(
        work, chunk, [](const ElementTerms<Acc>& terms) { return terms.slope; }, values);
    multiply(chunk, problem.weight, values);
    if (!work.one_upstream) multiply(chunk, problem.grad_loss, values);
#pragma unroll
    for (int i = 0; i < kElements<T>; ++i) values[i] *= upstream;
    keep(counts, values);
    chunk.template store<T>(problem.grad, values);
  });
}

// Calls fn(type, modulation) with what a problem asks for as types.
template <class Fn>
cudaError_t visit_elements(const ElementProblem& problem, const Fn& fn) {
  return visit_storage(problem.dtype, [&](auto type) {
    return visit_modulation(problem.gamma, [&](auto modulation) { return fn(type, modulation); });
  });
}

}  // namespace

int64_t element_partials_bytes(const ElementProblem& problem) {
  const int64_t blocks = visit_storage(problem.dtype, [&](auto type) {
    return Shares(problem, kElements<typename decltype(type)::type>).blocks;
  });
  return blocks == 1 ? 0 : blocks * int64_t{sizeof(Totals)};
}

cudaError_t launch_elements_forward(const ElementProblem& problem, const ElementSums& sums,
                                    cudaStream_t stream) {
  return visit_elements(problem, [&](auto type, auto modulation) {
    using T = typename decltype(type)::type;
    const ElementWork<T> work(problem);
    const cudaError_t error = launch(elements_forward_kernel<T, decltype(modulation)::value>,
                                     work.grid(kExchangeBytes), stream, work, sums);
    if (error != cudaSuccess || sums.partials == nullptr) return error;
    return launch(element_sums_kernel<acc_t<T>>, Grid{1, kThreads, 1, kExchangeBytes}, stream, sums,
                  work.shares.blocks);
  });
}

cudaError_t launch_elements_backward(const ElementProblem& problem, cudaStream_t stream) {
  if (problem.count == 0) return cudaSuccess;
  return visit_elements(problem, [&](auto type, auto modulation) {
    using T = typename decltype(type)::type;
    const ElementWork<T> work(problem);
    return launch(elements_backward_kernel<T, decltype(modulation)::value>, work.grid(0), stream,
                  work);
  });
}

}  // namespace torchce::cuda
