// Which kernel computes a problem, and with how many threads: a pure function of shape and device,
// tested without a GPU.
#pragma once

#include <string>

#include "../problem.h"

namespace torchce::cuda {

// What every device with clusters can schedule, and the first architecture that has them.
constexpr int kLargestCluster = 8;
constexpr int32_t kClusterArchitecture = 90;

enum class Direction : int32_t { forward, backward, forward_backward };

// resident   a team of threads keeps the whole row in shared memory: one read, whatever follows
// streaming  a team walks along the row; a second look at it is a second read (L2 where it fits)
// backward   needs no sums, so no team: threads walk along the gradient
enum class Strategy : int32_t { resident, streaming, backward };

struct PlanQuery {
  Direction direction = Direction::forward;
  int64_t rows = 0, cols = 0;
  int32_t element_bytes = 4;
  bool classes_are_neighbours =
      true;                   // class stride 1; else neighbouring threads take neighbouring rows
  bool second_look = false;   // at the row before its loss is known
  int32_t architecture = 90;  // compute capability: major * 10 + minor
  int32_t multiprocessors = 132;
  int64_t shared_bytes = 232448;  // that a block may ask for
};

struct LaunchPlan {
  Strategy strategy = Strategy::streaming;
  // Neighbouring threads that share a row: 1, 4, 8, 32, or all `threads`; backward also 16, 64,
  // 128.
  int32_t lanes = 1;
  int32_t threads = 128;        // of a block
  int32_t cluster = 1;          // blocks that share a row (sm_90 and later)
  int32_t slots = 0;            // packets of a row that a thread has in shared memory
  int64_t segment_packets = 0;  // sums are merged segment by segment, whoever computes them
  int64_t segments = 1;         // of a row
  // Rows are few: a block per segment, and a launch that merges; the gradient is a pass of its own.
  bool split = false;
  int64_t blocks = 0;
  int32_t exchange_bytes = 0;  // shared memory of a block's reductions, in front of its packets
};

LaunchPlan choose_plan(const PlanQuery& query);
// Dynamic shared memory of a block: what its reductions need, then packets. Groups of threads that
// share a warp and a row have room for one packet more than they are threads.
int64_t shared_bytes(const LaunchPlan& plan);
std::string to_string(const LaunchPlan& plan);

constexpr int kPacketBytes = 16;
// Packets that a thread takes in one step: what is done once a step (addresses, checks, rescaling
// of sums) would be half of all instructions if it were done for each. Counted, not measured.
constexpr int kBatch = 4;
constexpr int kQueueBatches = 3;  // of a thread that walks: two under way; not yet measured
// What the reductions of double take, float's half as much.
constexpr int kExchangeBytes = 3360;

}  // namespace torchce::cuda
