#include "plan.h"

#include <algorithm>
#include <sstream>

namespace torchce::cuda {
namespace {

// Figures: share of a copy's bandwidth on an H200, bfloat16, rows of 1 GiB in all, measured side by
// side (bench/progression).

// Threads of a block whose teams are smaller than it, and of a backward block. 8192 x 128256
// backward: 97.7 % with 128, 97.3 % with 256 and twice the segment; 4096 classes, one pass: 86.8
// and 81.3 %.
constexpr int kTeamBlock = 128;
// Teams within a warp. What a row costs whatever its length is shared by as many rows as a warp
// holds: 1000 classes, one pass, 58 % with 32 threads a row and 79 % with 8.
constexpr int kFewLanes = 4, kSomeLanes = 8;
constexpr int kWarp = 32;
// Packets of a team's thread, at most. 4096 classes, one pass: 86.8 % in a warp, 61 % in a block.
constexpr int kTeamSlots = 16;
// A block keeps at most 64 KiB of a row if a cluster can take the rest: then three blocks share a
// multiprocessor, and one loads while another stores. 8192 x 128256, one pass: 76.6 %, and 51 to
// 58 % with 128 KiB.
constexpr int64_t kBlockPackets = 4096;
// Its threads: as many as let whole batches come out, with up to 4 batches each. 8192 classes, one
// pass: 82.5 % with 64 threads, 77.5 % with 128; 32000 classes: 87.0 % with 256, 81.5 % with 128.
constexpr int kFewThreads = 64, kLargestBlock = 256, kBlockBatches = 4;
// Of a block that walks along a row. Forward, 128256 classes: 94.1 % with 256 threads; 32000: 87.1,
// 89.2 and 87.7 % with 256, 128 and 64; 8192: 66 and 81 % with 128 and 64; float32, 32000: 81, 80
// and 89 %.
constexpr int kStreamingBlock = 256, kMediumStreamingBlock = 128, kSmallStreamingBlock = 64;
constexpr int64_t kLongRow = 8192, kMediumRow = 1024;
// What two blocks of 256 need: their packets under way, and their reductions.
constexpr int64_t kTwoLargeBlocks =
    2 * (kBatch * kQueueBatches * 264 * kPacketBytes + kExchangeBytes);
// Sums are merged every 64 KiB of a row (every 256 KiB would give 0.5 to 1 % more, and fewer blocks
// to few rows), or every 2 KiB where one thread has the row to itself (not yet measured).
constexpr int64_t kSegmentPackets = 4096, kThreadSegmentPackets = 128;
// A block of the backward pass: up to 16 KiB read and 16 KiB written.
constexpr int64_t kBackwardPackets = 1024;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t per_packet(const PlanQuery& query) { return kPacketBytes / query.element_bytes; }

// Pieces of a row (row_view.cuh): what plans are made from, so that a row's bits do not depend on
// where it lies.
int64_t row_pieces(const PlanQuery& query) {
  return std::max<int64_t>(1, divide_up(query.cols, per_packet(query)));
}

// Packets of a row that begins anywhere: what there must be room for.
int64_t row_packets(const PlanQuery& query) {
  return divide_up(query.cols + per_packet(query) - 1, per_packet(query));
}

// For a team that is a block or more.
int32_t exchange_bytes(const PlanQuery& query) {
  return query.element_bytes == 8 ? kExchangeBytes : kExchangeBytes / 2;
}

// Slots of each of `threads` threads for a row: a batch is read as a whole.
int32_t whole_batches(int64_t packets, int64_t threads) {
  return static_cast<int32_t>(divide_up(packets, kBatch * threads)) * kBatch;
}

void share_block(LaunchPlan& plan, const PlanQuery& query, int lanes) {
  plan.lanes = lanes;
  plan.threads = kTeamBlock;
  plan.blocks = divide_up(query.rows * plan.segments, kTeamBlock / lanes);
}

LaunchPlan backward_plan(const PlanQuery& query) {
  LaunchPlan plan;
  plan.strategy = Strategy::backward;
  plan.slots = kBatch * kQueueBatches;
  const int64_t pieces = row_pieces(query);
  if (!query.classes_are_neighbours) {
    plan.segment_packets = kThreadSegmentPackets;
    plan.segments = divide_up(pieces, plan.segment_packets);
    share_block(plan, query, 1);
    return plan;
  }
  int lanes = kFewLanes;
  while (lanes < kTeamBlock && lanes * kTeamSlots < pieces) lanes *= 2;
  const int64_t step = kBatch * lanes;
  plan.segment_packets = divide_up(std::min(pieces, kBackwardPackets), step) * step;
  plan.segments = divide_up(pieces, plan.segment_packets);
  share_block(plan, query, lanes);
  return plan;
}

int32_t streaming_threads(const PlanQuery& query) {
  const int64_t pieces = row_pieces(query);
  // half as many where a block would have a multiprocessor's shared memory to itself
  if (pieces >= kLongRow) {
    return query.shared_bytes < kTwoLargeBlocks ? kMediumStreamingBlock : kStreamingBlock;
  }
  return query.element_bytes == 2 && pieces > kMediumRow ? kMediumStreamingBlock
                                                         : kSmallStreamingBlock;
}

LaunchPlan streaming_plan(const PlanQuery& query) {
  LaunchPlan plan;
  plan.strategy = Strategy::streaming;
  plan.slots = kBatch * kQueueBatches;
  const bool by_thread = !query.classes_are_neighbours;
  plan.segment_packets = by_thread ? kThreadSegmentPackets : kSegmentPackets;
  plan.segments = divide_up(row_pieces(query), plan.segment_packets);
  plan.threads = by_thread ? kStreamingBlock : streaming_threads(query);
  if (!by_thread) {
    plan.exchange_bytes = exchange_bytes(query);
    plan.lanes = plan.threads;
  }
  // The row's sums are the same to the bit either way, so this may look at the number of rows.
  const int64_t teams = by_thread ? divide_up(query.rows, plan.threads) : query.rows;
  plan.split = plan.segments > 1 && !query.second_look && teams < 2 * query.multiprocessors;
  plan.blocks = divide_up(query.rows * (plan.split ? plan.segments : 1), plan.threads / plan.lanes);
  return plan;
}

LaunchPlan resident_plan(const PlanQuery& query, int64_t pieces) {
  LaunchPlan plan;
  plan.strategy = Strategy::resident;
  plan.segment_packets = pieces;
  if (pieces <= kWarp * kTeamSlots) {
    share_block(plan, query,
                pieces <= kFewLanes * kTeamSlots    ? kFewLanes
                : pieces <= kSomeLanes * kTeamSlots ? kSomeLanes
                                                    : kWarp);
    plan.slots = whole_batches(row_packets(query), plan.lanes);
    return plan;
  }
  const int largest = query.architecture >= kClusterArchitecture ? kLargestCluster : 1;
  while (plan.cluster < largest && plan.cluster * kBlockPackets < pieces) plan.cluster *= 2;
  const int64_t part = divide_up(pieces, plan.cluster);
  const int64_t batches = std::min<int64_t>(divide_up(part, kBatch * kFewThreads), kBlockBatches);
  plan.threads = static_cast<int32_t>(
      std::min<int64_t>(divide_up(part, kBatch * batches * kWarp) * kWarp, kLargestBlock));
  plan.lanes = plan.threads;
  plan.exchange_bytes = exchange_bytes(query);
  plan.slots = whole_batches(row_packets(query), int64_t{plan.threads} * plan.cluster);
  plan.blocks = query.rows * plan.cluster;
  return plan;
}

}  // namespace

int64_t shared_bytes(const LaunchPlan& plan) {
  const int group = plan.strategy == Strategy::backward ? 1 : std::min(plan.lanes, kWarp);
  const int64_t width = group == 1 ? 1 : group + 1;
  return plan.exchange_bytes + plan.slots * (plan.threads / group * width) * kPacketBytes;
}

LaunchPlan choose_plan(const PlanQuery& query) {
  if (query.direction == Direction::backward) return backward_plan(query);
  const int64_t pieces = row_pieces(query);
  // A forward pass looks at a row once: to keep more of it than a team's threads hold gains nothing
  // (32000 classes: 89 % walked along, 83 % kept).
  const bool keep = query.direction == Direction::forward_backward || query.second_look ||
                    pieces <= kWarp * kTeamSlots;
  if (query.classes_are_neighbours && keep) {
    const LaunchPlan plan = resident_plan(query, pieces);
    if (shared_bytes(plan) <= query.shared_bytes) return plan;
  }
  return streaming_plan(query);
}

std::string to_string(const LaunchPlan& plan) {
  const char* const names[] = {"resident", "streaming", "backward"};
  std::ostringstream text;
  text << names[static_cast<int>(plan.strategy)] << " lanes=" << plan.lanes
       << " threads=" << plan.threads << " cluster=" << plan.cluster << " slots=" << plan.slots
       << " segments=" << plan.segments << "x" << plan.segment_packets
       << (plan.split ? " split" : "") << " blocks=" << plan.blocks;
  return text.str();
}

}  // namespace torchce::cuda
