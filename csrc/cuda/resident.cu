// Forward, with or without the gradient, of rows that a team of threads keeps in shared memory.
//
// Moves   rows * cols * b in; with the gradient as much out again. Loss and state: O(rows).
// Bound   device memory. 8192 x 128256 bf16, in and out 4.20 GB: 0.98 ms at 4.3 TB/s.
// Why     all of a row is under way before any of it is used, at no cost in registers, and neither
//         the gradient nor a focal spread needs a second read. From 64 KiB on the row is spread
//         over a cluster of blocks, whose sums meet in distributed shared memory. Threads are as
//         many as let whole batches come out; the last one is filled up with -inf, never a loop
//         over packets. Short rows share a warp.
// Measured on an H200, bfloat16, one pass: 82 to 87 % of a copy where a warp or a block has the
//         row (1000, 4096, 32000 classes), 64 to 78 % where a cluster has it: a block then waits in
//         turn for its packets, its own sums and the other blocks', and three of them do not hide
//         that.
#include "finish.cuh"

namespace torchce::cuda {
namespace {

// This thread's part of a row in shared memory.
template <class T, class Team>
class ResidentRow {
 public:
  __device__ __forceinline__ ResidentRow(const RowView<T>& row, const Team& team,
                                         unsigned char* shared)
      : row_(row), slots_(shared), rank_(team.rank()), size_(team.size()) {}

  __device__ __forceinline__ void fetch() const {
    // The first batch last: where the row's first packet is cut off it is copied element by
    // element, and the others should not wait for that.
    const int packets = row_.packets(), lane = rank_ % Team::kGroup;
    unsigned slot = kBatch;
    for (int first = rank_ + kBatch * size_; first - lane < packets; first += kBatch * size_) {
      slots_.fetch_batch(row_, first, size_, packets, slot);
      slot += kBatch;
    }
    if (rank_ - lane < packets) slots_.fetch_batch(row_, rank_, size_, packets, 0);
    copy_commit();
  }

  __device__ __forceinline__ void wait() const {
    copy_wait<0>();
    slots_.synchronise();
  }

  template <class Body>
  __device__ __forceinline__ void pieces(const Body& body) const {
    look<Team::kGroup>(body, row_.pieces(), row_.shift);
  }

  template <class Body>
  __device__ __forceinline__ void packets(const Body& body) const {
    look<1>(body, row_.packets(), 0);
  }

 private:
  template <int kAs, class Body>
  __device__ __forceinline__ void look(const Body& body, int end, int shift) const {
    const int lane = rank_ % kAs;
    unsigned slot = 0;
    for (int first = rank_; first - lane < end; first += kBatch * size_, slot += kBatch) {
      body(slots_.template batch<kAs>(slot, shift, first, size_));
    }
  }

  const RowView<T>& row_;
  const Slots<T, Team::kGroup> slots_;
  const int rank_, size_;
};

template <class T, class Team, Terms terms, bool gradient>
__global__ void __launch_bounds__(256, kForwardBlocks<T, terms != Terms::plain ? 2
                                                         : gradient            ? 3
                                                                               : 4>)
    resident_kernel(const __grid_constant__ Work<acc_t<T>> work) {
  using Acc = acc_t<T>;
  Team team(dynamic_shared());
  const int64_t index = team.index();
  if (index >= work.problem.rows) return;  // whole teams
  const Row<T, terms> row(work, index);
  const ResidentRow<T, Team> resident(row.logits, team, dynamic_shared() + work.row_at);
  // A short row is under way before its target is known, since two waits in turn would be half of
  // its time. A long one that is ignored is not read.
  constexpr bool kShort = Team::kIsInWarp;
  if constexpr (kShort) resident.fetch();
  if (row.target.ignored) {
    if constexpr (kShort) resident.wait();
    return write_ignored<gradient>(work, index, row.target, row.logits, team);
  }
  if constexpr (!kShort) resident.fetch();
  const Acc target_logit = row.target_logit();  // before any thread can have overwritten it
  resident.wait();
  typename Row<T, terms>::Sums sums;
  resident.pieces([&](const auto& batch) { row.add(sums, batch); });
  row.settle(sums);
  sums = team.reduce(sums, TeamSums<terms, Acc>{});
  finish<gradient>(work, index, row, team, sums, target_logit, resident);
}

template <class T, Terms terms, bool gradient>
cudaError_t launch_teams(const Job& job, cudaStream_t stream) {
  using Acc = acc_t<T>;
  const LaunchPlan& plan = job.plan;
  const Work<Acc> work(job);
  const auto kernel = plan.lanes == 4     ? resident_kernel<T, Lanes<4>, terms, gradient>
                      : plan.lanes == 8   ? resident_kernel<T, Lanes<8>, terms, gradient>
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
