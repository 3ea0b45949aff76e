// Forward, with or without the gradient, of rows that a team of threads keeps in shared memory.
//
// Moves   rows * cols * b in; with the gradient as much out again. Loss and state: O(rows).
// Bound   device memory. 8192 x 128256 bf16, in and out 4.20 GB: 0.98 ms at 4.3 TB/s.
// Why     all of a row is under way before any of it is used, at no cost in registers, and neither
//         the gradient nor a focal spread needs a second read. From 64 KiB on the row is spread
//         over a cluster of blocks, whose sums meet in distributed shared memory. One exponential a
//         logit and look, and one a packet to rescale: for 2 bytes in and 2 out about two thirds of
//         what the special-function units of an H200 give at 4.3 TB/s.
#include "finish.cuh"

namespace torchce::cuda {
namespace {

template <class T, class Team, Terms terms, bool gradient>
__global__ void __launch_bounds__(Team::kThreads, kBlocks<T, Team::kBlocks>)
    resident_kernel(const __grid_constant__ Work<acc_t<T>> work) {
  using Acc = acc_t<T>;
  Team team(dynamic_shared());
  const int64_t index = team.index();
  if (index >= work.problem.rows) return;  // whole teams
  const Row<T, terms> row(work, index);
  if (row.target.ignored) {
    return write_ignored<gradient>(work, index, row.target, row.logits, team);
  }
  const int packets = row.logits.packets(), rank = team.rank(), size = team.size();
  uint4* const slots = reinterpret_cast<uint4*>(dynamic_shared() + work.row_at) + threadIdx.x;
  uint4* slot = slots;
  for (int packet = rank; packet < packets; packet += size, slot += blockDim.x) {
    row.logits.fetch(packet, slot);
  }
  copy_commit();
  const Acc target_logit = row.target_logit();  // before any thread can have overwritten it
  copy_wait<0>();
  const auto look = [&](const auto& body) {
    const uint4* slot = slots;
    for (int packet = rank; packet < packets; packet += size, slot += blockDim.x) {
      body(*slot, packet);
    }
  };
  RowSums<Acc> sums;
  look([&](uint4 bits, int packet) { row.add(sums, bits, packet); });
  sums = team.reduce(sums, MergeSums<Acc>{});
  finish<gradient>(work, index, row, team, sums, target_logit, look);
}

template <class T, Terms terms, bool gradient>
cudaError_t launch_teams(const Job& job, cudaStream_t stream) {
  using Acc = acc_t<T>;
  const LaunchPlan& plan = job.plan;
  const Work<Acc> work(job);
  const auto kernel = plan.lanes == 4     ? resident_kernel<T, Lanes<4>, terms, gradient>
                      : plan.lanes == 32  ? resident_kernel<T, Lanes<32>, terms, gradient>
                      : plan.cluster == 1 ? resident_kernel<T, Block<Acc>, terms, gradient>
                                          : resident_kernel<T, Cluster<Acc>, terms, gradient>;
  return launch(kernel, grid_of(plan), stream, work);
}

}  // namespace

cudaError_t launch_resident(const Job& job, cudaStream_t stream) {
  return visit_job(job, [&](auto type, auto terms, auto gradient) {
    return launch_teams<typename decltype(type)::type, decltype(terms)::value,
                        decltype(gradient)::value>(job, stream);
  });
}

}  // namespace torchce::cuda
