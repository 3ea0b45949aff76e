// The execution model: threads are fibers that switch only where they have to wait for each other;
// the blocks of a cluster run together, clusters one after another.
#include <dlfcn.h>
#include <link.h>

#include <algorithm>
#include <array>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "cuda_on_host.h"
#include "fiber.h"

#define EXPORTED extern "C" __attribute__((visibility("default")))

namespace cuda_on_host {
namespace {

constexpr unsigned kLanes = 32;
constexpr unsigned kAllLanes = ~0u;  // as a source: one bit of each
constexpr unsigned kMaxThreads = 1024, kMaxCluster = 8, kMaxBlocks = 0x7fffffff;
#if defined(CUDA_ON_HOST_THREAD)
constexpr unsigned kMostThreads = 4096;  // at a time
#else
constexpr unsigned kMostThreads = kMaxCluster * kMaxThreads;
#endif
constexpr long kMaxPolls = 1L << 21;  // in a row, by all threads, while nothing else happens
constexpr int kPoison = 0xff;         // every floating-point type reads it as NaN

enum Order { kForward, kReverse, kRandom };

struct Block;

struct PendingCopy {
  void* shared;
  const void* global;
  size_t bytes;
  unsigned group;
};

struct Thread : Fiber {
  enum State { kReady, kWaiting, kExited };

  unsigned index = 0;  // threadIdx.x
  Block* block = nullptr;
  State state = kReady;
  const char* waits_in = "";
  Location where;

  uint64_t given = 0, received = 0;  // of a warp collective
  unsigned source_lane = 0;

  bool arrived_at_cluster = false;
  unsigned cluster_phase = 0;

  std::vector<PendingCopy> copies;
  unsigned copy_group = 0;

  unsigned lane() const { return index % kLanes; }
};

// Some lanes of a warp in one collective.
struct Meeting {
  unsigned mask, arrived;
  const char* what;
  Location where;
  Edge* edge;
};

struct Warp {
  Thread* const* threads;  // by lane
  unsigned lanes;          // those that exist
  unsigned exited = 0;
  std::array<Meeting, kLanes>
      meetings{};  // with disjoint masks; a plain array: TSan watches malloc
  unsigned meeting_count = 0;
  std::array<Edge, 2> edges{};
  unsigned edges_used = 0;
};

// Memory of exactly this size, so that ASan sees the first byte behind it.
class Memory {
 public:
  Memory(size_t bytes, size_t alignment)
      : bytes_(bytes),
        alignment_(std::align_val_t(alignment)),
        data_(static_cast<unsigned char*>(operator new(bytes, alignment_))) {}
  ~Memory() {
    allow_access(data_, bytes_);
    operator delete(data_, alignment_);
  }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  unsigned char* data() const { return data_; }
  size_t size() const { return bytes_; }
  void poison() const { memset(data_, kPoison, bytes_); }

 private:
  size_t bytes_;
  std::align_val_t alignment_;
  unsigned char* data_;
};

struct Block {
  Block(size_t dynamic_bytes, size_t static_bytes, size_t static_alignment)
      : dynamic_shared(dynamic_bytes, 16), static_shared(static_bytes, static_alignment) {}

  unsigned index = 0, rank = 0;
  std::vector<Thread*> threads;
  std::vector<Warp> warps;
  Memory dynamic_shared, static_shared;
  unsigned running = 0;

  unsigned arrived = 0, barriers = 0;  // at __syncthreads
  Location where;
  std::array<Edge, 2> barrier_edges;
  Edge exit_edge;
};

struct Runtime {
  Runtime() {
    const char* wanted = getenv("CUDA_ON_HOST_ORDER");
    const std::string order = wanted == nullptr ? "forward" : wanted;
    this->order = order == "reverse" ? kReverse : order == "random" ? kRandom : kForward;
    if (const char* number = getenv("CUDA_ON_HOST_SEED")) seed = strtoul(number, nullptr, 10);
  }

  std::mutex mutex;
  Order order = kForward;
  unsigned seed = 1;
  std::mt19937 random;
  std::map<int, int> attributes = {
      {cudaDevAttrMultiProcessorCount, 4},
      {cudaDevAttrComputeCapabilityMajor, 9},
      {cudaDevAttrComputeCapabilityMinor, 0},
      {cudaDevAttrWarpSize, kLanes},
      {cudaDevAttrMaxThreadsPerBlock, kMaxThreads},
      {cudaDevAttrMaxThreadsPerMultiProcessor, 2048},
      {cudaDevAttrMaxSharedMemoryPerBlock, 48 << 10},
      {cudaDevAttrMaxSharedMemoryPerBlockOptin, 227 << 10},
      {cudaDevAttrMaxSharedMemoryPerMultiprocessor, 228 << 10},
  };

  Context launcher;  // the stack that called run()
  std::vector<std::unique_ptr<Thread>> threads;
  std::vector<std::unique_ptr<Block>> cluster;
  std::vector<Thread*> schedule;
  Thread* current = nullptr;
  void (*kernel)(void*) = nullptr;
  void* arguments = nullptr;
  unsigned running = 0;
  long polls = 0;
  bool released = false;  // since run_schedule last looked, some thread no longer waits
  Edge launch_edge, exit_edge;

  unsigned arrived_at_cluster = 0, cluster_barriers = 0;
  std::array<Edge, 2> cluster_edges;

  bool failed = false;
  char message[2048] = "";
  cudaError_t error = cudaSuccess;
  long launches = 0;
};

Runtime runtime;

// ---- static shared memory ----

// The module's thread-local storage holds the kernels' __shared__ variables. Position-independent
// code asks __tls_get_addr for their address, and here that is a function of this module: a thread
// of a kernel gets the memory of its block.
struct ThreadLocals {
  size_t module = 0, bytes = 0, alignment = 1;

  ThreadLocals() { dl_iterate_phdr(&inspect, this); }

  static int inspect(dl_phdr_info* module, size_t, void* result) {
    const auto here = reinterpret_cast<uintptr_t>(&inspect) - module->dlpi_addr;
    const ElfW(Phdr)* const end = module->dlpi_phdr + module->dlpi_phnum;
    const bool is_this = std::any_of(module->dlpi_phdr, end, [&](const ElfW(Phdr) & part) {
      return part.p_type == PT_LOAD && here - part.p_vaddr < part.p_memsz;
    });
    if (!is_this) return 0;
    auto* const found = static_cast<ThreadLocals*>(result);
    for (const auto* part = module->dlpi_phdr; part != end; ++part) {
      if (part->p_type != PT_TLS) continue;
      found->module = module->dlpi_tls_modid;
      found->bytes = part->p_memsz;
      found->alignment = std::max<size_t>(part->p_align, 16);
    }
    return 1;
  }
};

const ThreadLocals thread_locals;

// ---- failure ----

// Gives up the launch: no fiber goes on, run() returns the error.
[[noreturn]] __attribute__((format(printf, 1, 2))) void fail(const char* format, ...) {
  Thread& self = *runtime.current;
  const int used = snprintf(runtime.message, sizeof runtime.message,
                            "block %u thread %u: ", self.block->index, self.index);
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(runtime.message + used, sizeof runtime.message - used, format, arguments);
  va_end(arguments);
  runtime.failed = true;
  switch_stacks(self, runtime.launcher, /*from_ends=*/true);
  __builtin_unreachable();
}

#define FAIL(format, ...) \
  fail(format " at %s:%u" __VA_OPT__(, ) __VA_ARGS__, where.file_name(), where.line())

std::string at(const Location& where) {
  return std::string(" at ") + where.file_name() + ":" + std::to_string(where.line());
}

bool same(const Location& a, const Location& b) {
  return a.line() == b.line() && a.column() == b.column() &&
         strcmp(a.file_name(), b.file_name()) == 0;
}

void report_deadlock() {
  std::map<std::string, unsigned> places;
  unsigned exited = 0;
  for (const Thread* thread : runtime.schedule) {
    if (thread->state == Thread::kExited) {
      ++exited;
    } else {
      ++places[thread->waits_in + at(thread->where)];
    }
  }
  std::string text = "block " + std::to_string(runtime.cluster[0]->index) + ": deadlock";
  for (const auto& [place, count] : places) {
    text += ", " + std::to_string(count) + " threads wait in " + place;
  }
  if (exited > 0) text += ", " + std::to_string(exited) + " have exited";
  snprintf(runtime.message, sizeof runtime.message, "%s", text.c_str());
  runtime.failed = true;
}

// ---- waiting ----

void suspend() { switch_stacks(*runtime.current, runtime.launcher); }

void wait_in(const char* what, const Location& where) {
  runtime.current->state = Thread::kWaiting;
  runtime.current->waits_in = what;
  runtime.current->where = where;
  suspend();
}

void complete(Warp& warp, unsigned which) {
  const Meeting meeting = warp.meetings[which];
  warp.meetings[which] = warp.meetings[--warp.meeting_count];
  runtime.polls = 0;
  runtime.released = true;
  std::array<uint64_t, kLanes> given{};
  unsigned votes = 0;
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    if ((meeting.mask >> lane & 1) == 0) continue;
    given[lane] = warp.threads[lane]->given;
    votes |= (given[lane] != 0 ? 1u : 0u) << lane;
  }
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    if ((meeting.mask >> lane & 1) == 0) continue;
    Thread& thread = *warp.threads[lane];
    thread.received = thread.source_lane == kAllLanes ? votes : given[thread.source_lane];
    thread.state = Thread::kReady;
  }
}

Meeting& find_meeting(Warp& warp, unsigned mask, const char* what, const Location& where) {
  for (unsigned i = 0; i < warp.meeting_count; ++i) {
    Meeting& meeting = warp.meetings[i];
    if ((meeting.mask & mask) == 0) continue;
    if (meeting.mask == mask && same(meeting.where, where)) return meeting;
    FAIL("other lanes of mask 0x%08x are in %s (mask 0x%08x)%s: this one in %s", mask, meeting.what,
         meeting.mask, at(meeting.where).c_str(), what);
  }
  Edge* edge = &warp.edges[warp.edges_used++ % warp.edges.size()];
  warp.meetings[warp.meeting_count] = {mask, 0, what, where, edge};
  return warp.meetings[warp.meeting_count++];
}

// The last lane of the mask to arrive completes the collective for all of them. Only __syncwarp
// orders memory.
uint64_t meet(const char* what, unsigned mask, uint64_t given, unsigned source_lane, bool orders,
              Location where) {
  Thread& self = *runtime.current;
  Warp& warp = self.block->warps[self.index / kLanes];
  if ((mask >> self.lane() & 1) == 0) {
    FAIL("%s by lane %u, which is not in its mask 0x%08x", what, self.lane(), mask);
  }
  mask &= warp.lanes;
  if ((mask & warp.exited) != 0) {
    FAIL("%s waits for lanes 0x%08x, which have exited", what, mask & warp.exited);
  }
  if (source_lane != kAllLanes && (mask >> source_lane & 1) == 0) {
    FAIL("%s reads lane %u, which is not in the mask 0x%08x", what, source_lane, mask);
  }
  Meeting& meeting = find_meeting(warp, mask, what, where);
  Edge* const edge = meeting.edge;
  if (orders) edge->release();
  self.given = given;
  self.source_lane = source_lane;
  meeting.arrived |= 1u << self.lane();
  if (meeting.arrived == mask) {
    self.state = Thread::kReady;
    complete(warp, static_cast<unsigned>(&meeting - warp.meetings.data()));
    suspend();  // who arrives last need not be the first to go on
  } else {
    wait_in(what, where);
  }
  if (orders) edge->acquire();
  return self.received;
}

void release_threads(const std::vector<Thread*>& threads, const char* from) {
  runtime.polls = 0;
  runtime.released = true;
  for (Thread* thread : threads) {
    if (thread->state == Thread::kWaiting && thread->waits_in == from) {
      thread->state = Thread::kReady;
    }
  }
}

constexpr char kSyncThreads[] = "__syncthreads", kClusterWait[] = "cluster_wait";

// ---- a thread's life ----

void exit_thread() {
  Thread& self = *runtime.current;
  Block& block = *self.block;
  Warp& warp = block.warps[self.index / kLanes];
  for (unsigned i = 0; i < warp.meeting_count; ++i) {
    const Meeting& meeting = warp.meetings[i];
    if ((meeting.mask >> self.lane() & 1) != 0) {
      fail("exits while other lanes wait for it in %s%s", meeting.what, at(meeting.where).c_str());
    }
  }
  if (self.arrived_at_cluster) fail("exits after cluster_arrive without cluster_wait");
  warp.exited |= 1u << self.lane();
  self.state = Thread::kExited;
  runtime.polls = 0;
  --runtime.running;
  block.exit_edge.release();
  if (--block.running == 0 && runtime.cluster.size() > 1) {
    // Shared memory is gone with its block. For TSan this is a write, which nothing orders after
    // another block's access but a barrier that comes between the access and the exit.
    block.exit_edge.acquire();
    note_write(block.dynamic_shared.data(), block.dynamic_shared.size());
    block.dynamic_shared.poison();
    forbid_access(block.dynamic_shared.data(), block.dynamic_shared.size());
  }
  runtime.exit_edge.release();
}

void run_thread() {
  finish_first_switch(runtime.launcher);
  runtime.launch_edge.acquire();
  runtime.kernel(runtime.arguments);
  exit_thread();
  switch_stacks(*runtime.current, runtime.launcher, /*from_ends=*/true);
  __builtin_unreachable();
}

void go_on_with(Thread& thread) {
  runtime.current = &thread;
  threadIdx.x = thread.index;
  blockIdx.x = thread.block->index;
  switch_stacks(runtime.launcher, thread);
  runtime.current = nullptr;
}

// ---- the schedule ----

// Threads, warps or whole blocks keep together: each shows other mistakes.
void shuffle_schedule() {
  const size_t count = runtime.schedule.size();
  const size_t sizes[] = {1, kLanes, count / runtime.cluster.size()};
  const size_t size = sizes[runtime.random() % std::size(sizes)];
  std::vector<size_t> groups((count + size - 1) / size);
  std::iota(groups.begin(), groups.end(), 0);
  std::shuffle(groups.begin(), groups.end(), runtime.random);
  auto next = runtime.schedule.begin();
  for (const size_t group : groups) {
    for (size_t i = group * size; i < std::min(count, (group + 1) * size); ++i) {
      *next++ = runtime.threads[i].get();
    }
  }
}

// Runs the threads of the cluster to their end. Either each has its turn, or whoever comes first in
// the schedule and can go on goes on: then some get as far ahead of others as the barriers allow.
void run_schedule() {
  const bool random = runtime.order == kRandom;
  const bool run_ahead = random && runtime.random() % 2 == 0;
  if (random) shuffle_schedule();
  if (runtime.order == kReverse) std::reverse(runtime.schedule.begin(), runtime.schedule.end());
  while (runtime.running > 0) {
    bool any = false;
    if (random && runtime.random() % 8 == 0) shuffle_schedule();
    for (size_t i = 0; i < runtime.schedule.size();) {
      Thread& thread = *runtime.schedule[i++];
      if (thread.state != Thread::kReady) continue;
      go_on_with(thread);
      if (runtime.failed) return;
      any = true;
      if (run_ahead && std::exchange(runtime.released, false)) i = 0;
    }
    if (!any) return report_deadlock();
  }
}

// ---- a launch ----

void begin_block(Block& block, unsigned index, unsigned rank, unsigned threads) {
  block.index = index;
  block.rank = rank;
  block.running = threads;
  block.arrived = 0;
  block.threads.clear();
  block.warps.clear();
  for (unsigned i = 0; i < threads; ++i) {
    Thread& thread = *runtime.threads[rank * threads + i];
    thread.index = i;
    thread.block = &block;
    thread.state = Thread::kReady;
    thread.arrived_at_cluster = false;
    thread.copies.clear();
    thread.copy_group = 0;
    thread.begin_with(run_thread);
    block.threads.push_back(&thread);
    runtime.schedule.push_back(&thread);
  }
  for (unsigned i = 0; i < threads; i += kLanes) {
    const unsigned lanes = std::min(kLanes, threads - i);
    block.warps.push_back({&block.threads[i], lanes == kLanes ? ~0u : (1u << lanes) - 1});
  }
  allow_access(block.dynamic_shared.data(), block.dynamic_shared.size());
  block.dynamic_shared.poison();
  block.static_shared.poison();
}

void run_cluster(unsigned first_block, unsigned threads) {
  runtime.schedule.clear();
  runtime.running = static_cast<unsigned>(runtime.cluster.size()) * threads;
  runtime.polls = 0;
  runtime.arrived_at_cluster = 0;
  for (unsigned rank = 0; rank < runtime.cluster.size(); ++rank) {
    begin_block(*runtime.cluster[rank], first_block + rank, rank, threads);
  }
  runtime.launch_edge.release();
  run_schedule();
  for (Thread* thread : runtime.schedule) {  // none, unless the launch failed
    if (thread->state != Thread::kExited) release_for(*thread, runtime.exit_edge);
  }
  runtime.exit_edge.acquire();
}

cudaError_t refuse(cudaError_t error, const char* why) {
  snprintf(runtime.message, sizeof runtime.message, "launch refused: %s", why);
  return error;
}

cudaError_t check(const Shape& shape) {
  constexpr auto bad_shape = cudaErrorInvalidConfiguration;
  if (shape.threads < 1 || shape.threads > kMaxThreads) {
    return refuse(bad_shape, "a block has 1 to 1024 threads");
  }
  if (shape.blocks < 1 || shape.blocks > kMaxBlocks) {
    return refuse(bad_shape, "a grid has 1 to 2^31 - 1 blocks");
  }
  if (shape.cluster < 1 || shape.cluster > kMaxCluster) {
    return refuse(bad_shape, "a cluster has 1 to 8 blocks");
  }
  if (shape.blocks % shape.cluster != 0) {
    return refuse(bad_shape, "the grid is not a multiple of the cluster");
  }
  if (shape.cluster * shape.threads > kMostThreads) {
    return refuse(cudaErrorLaunchOutOfResources, "TSan cannot follow more than 4096 threads");
  }
  if (shape.cluster > 1 && runtime.attributes[cudaDevAttrComputeCapabilityMajor] < 9) {
    return refuse(cudaErrorNotSupported, "clusters need compute capability 9.0");
  }
  const int most = runtime.attributes[cudaDevAttrMaxSharedMemoryPerBlockOptin];
  if (shape.shared_bytes > static_cast<size_t>(most)) {
    return refuse(cudaErrorInvalidValue, "more dynamic shared memory than a block can have");
  }
  return cudaSuccess;
}

std::vector<unsigned> order_of_clusters(unsigned count) {
  std::vector<unsigned> clusters(count);
  std::iota(clusters.begin(), clusters.end(), 0);
  if (runtime.order == kReverse) std::reverse(clusters.begin(), clusters.end());
  if (runtime.order == kRandom) std::shuffle(clusters.begin(), clusters.end(), runtime.random);
  return clusters;
}

cudaError_t run_checked(const Shape& shape, void (*kernel)(void*), void* arguments) {
  while (runtime.threads.size() < shape.cluster * shape.threads) {
    runtime.threads.push_back(std::make_unique<Thread>());
  }
  for (unsigned rank = 0; rank < shape.cluster; ++rank) {
    runtime.cluster.push_back(
        std::make_unique<Block>(shape.shared_bytes, thread_locals.bytes, thread_locals.alignment));
  }
#if defined(CUDA_ON_HOST_THREAD)
  runtime.launcher.sanitizer = __tsan_get_current_fiber();
#endif
  gridDim = dim3(shape.blocks);
  blockDim = dim3(shape.threads);
  runtime.kernel = kernel;
  runtime.arguments = arguments;
  runtime.failed = false;
  runtime.random.seed(runtime.seed++);  // another order next time
  for (const unsigned i : order_of_clusters(shape.blocks / shape.cluster)) {
    run_cluster(i * shape.cluster, shape.threads);
    if (runtime.failed) break;
  }
  runtime.cluster.clear();
  if (!runtime.failed) return cudaSuccess;
  runtime.threads.clear();  // their stacks were left in the middle of something
  return cudaErrorLaunchFailure;
}

}  // namespace

cudaError_t run(const Shape& shape, void (*kernel)(void*), void* arguments) {
  const std::lock_guard lock(runtime.mutex);
  ++runtime.launches;
  cudaError_t error = check(shape);
  if (error == cudaSuccess) error = run_checked(shape, kernel, arguments);
  if (error != cudaSuccess) {
    runtime.error = error;
    fprintf(stderr, "cuda_on_host: %s\n", runtime.message);
  }
  return error;
}

// ---- what kernels call ----

unsigned lane() { return runtime.current->lane(); }
unsigned cluster_rank() { return runtime.current->block->rank; }
unsigned cluster_size() { return static_cast<unsigned>(runtime.cluster.size()); }
unsigned char* dynamic_shared() { return runtime.current->block->dynamic_shared.data(); }

void sync_warp(unsigned mask, Location where) {
  meet("__syncwarp", mask, 0, lane(), /*orders=*/true, where);
}

uint64_t shuffle(unsigned mask, uint64_t value, unsigned source_lane, Location where) {
  return meet("__shfl_sync", mask, value, source_lane % kLanes, /*orders=*/false, where);
}

unsigned ballot(unsigned mask, bool vote, Location where) {
  return static_cast<unsigned>(
      meet("__ballot_sync", mask, vote ? 1 : 0, kAllLanes, /*orders=*/false, where));
}

void sync_block(Location where) {
  Block& block = *runtime.current->block;
  if (block.arrived == 0) block.where = where;
  if (!same(block.where, where)) {
    FAIL("other threads of the block are in __syncthreads%s: this one in another",
         at(block.where).c_str());
  }
  Edge& edge = block.barrier_edges[block.barriers % 2];
  edge.release();
  if (++block.arrived == block.threads.size()) {
    block.arrived = 0;
    ++block.barriers;
    release_threads(block.threads, kSyncThreads);
    suspend();
  } else {
    wait_in(kSyncThreads, where);
  }
  edge.acquire();
}

void arrive_at_cluster(Location where) {
  Thread& self = *runtime.current;
  if (self.arrived_at_cluster) FAIL("a second cluster_arrive without cluster_wait");
  self.arrived_at_cluster = true;
  self.cluster_phase = runtime.cluster_barriers;
  runtime.cluster_edges[self.cluster_phase % 2].release();
  if (++runtime.arrived_at_cluster == runtime.schedule.size()) {
    runtime.arrived_at_cluster = 0;
    ++runtime.cluster_barriers;
    release_threads(runtime.schedule, kClusterWait);
  }
}

void wait_for_cluster(Location where) {
  Thread& self = *runtime.current;
  if (!self.arrived_at_cluster) FAIL("cluster_wait without cluster_arrive");
  if (self.cluster_phase == runtime.cluster_barriers) {
    wait_in(kClusterWait, where);
  } else {
    suspend();
  }
  self.arrived_at_cluster = false;
  runtime.cluster_edges[self.cluster_phase % 2].acquire();
}

void* cluster_shared(void* here, unsigned rank, Location where) {
  const Memory& own = runtime.current->block->dynamic_shared;
  const auto offset = static_cast<size_t>(static_cast<unsigned char*>(here) - own.data());
  if (offset >= own.size()) FAIL("cluster_shared of what is not dynamic shared memory");
  if (rank >= runtime.cluster.size()) FAIL("cluster_shared of rank %u", rank);
  const Block& other = *runtime.cluster[rank];
  if (other.running == 0) FAIL("cluster_shared of block %u, which has exited", other.index);
  return other.dynamic_shared.data() + offset;
}

void poll(Location where) {
  if (++runtime.polls > kMaxPolls) FAIL("endless polling");
  suspend();
}

void trap(Location where) { FAIL("__trap"); }

// A copy happens when its thread waits for it, at the latest possible moment; until then the
// destination is poison.
void copy_later(void* shared, const void* global, size_t bytes, Location where) {
  const auto addresses = reinterpret_cast<uintptr_t>(shared) | reinterpret_cast<uintptr_t>(global);
  if (addresses % bytes != 0) FAIL("misaligned copy_async");
  note_write(shared, bytes);
  memset(shared, kPoison, bytes);
  Thread& self = *runtime.current;
  self.copies.push_back({shared, global, bytes, self.copy_group});
}

void commit_copies() { ++runtime.current->copy_group; }

void wait_for_copies(unsigned groups_left) {
  Thread& self = *runtime.current;
  size_t done = 0;
  for (; done < self.copies.size(); ++done) {
    const PendingCopy& copy = self.copies[done];
    if (copy.group + groups_left >= self.copy_group) break;  // the latest ones, or not committed
    note_read(copy.global, copy.bytes);
    note_write(copy.shared, copy.bytes);
    memcpy(copy.shared, copy.global, copy.bytes);
  }
  self.copies.erase(self.copies.begin(), self.copies.begin() + static_cast<ptrdiff_t>(done));
}

}  // namespace cuda_on_host

// ---- where a __shared__ variable is: see ThreadLocals ----

using cuda_on_host::runtime;

struct ThreadLocalIndex {
  size_t module, offset;
};

extern "C" void* __tls_get_addr(ThreadLocalIndex* index) {
  using AddressOf = void* (*)(ThreadLocalIndex*);
  static const auto loaders = reinterpret_cast<AddressOf>(dlsym(RTLD_DEFAULT, "__tls_get_addr"));
  const cuda_on_host::Thread* thread = runtime.current;
  if (thread != nullptr && index->module == cuda_on_host::thread_locals.module &&
      thread->holds(__builtin_frame_address(0))) {
    return thread->block->static_shared.data() + index->offset;
  }
  return loaders(index);
}

// ---- the few functions of the C library and of CUDA's runtime that the kernels' hosts call ----

extern "C" {

float __expf(float x) noexcept { return std::exp(x); }
float __logf(float x) noexcept { return std::log(x); }

cudaError_t cudaPeekAtLastError() { return runtime.error; }
cudaError_t cudaGetLastError() { return std::exchange(runtime.error, cudaSuccess); }
const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : runtime.message;
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const auto found = runtime.attributes.find(attribute);
  if (found == runtime.attributes.end()) return cudaErrorInvalidValue;
  *value = found->second;
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t) {
  memset(memory, value, bytes);
  return cudaSuccess;
}
}

// ---- what tests call ----

// 0 forward, 1 reverse, 2 random; the seed grows by one with each launch.
EXPORTED void cuda_on_host_set_order(int order, unsigned seed) {
  runtime.order = static_cast<cuda_on_host::Order>(order);
  runtime.seed = seed;
}

// What went wrong in the last launch that failed.
EXPORTED const char* cuda_on_host_error() { return runtime.message; }

EXPORTED long cuda_on_host_launches() { return runtime.launches; }

// Another device: cudaDevAttr.., value.
EXPORTED void cuda_on_host_set_attribute(int attribute, int value) {
  runtime.attributes[attribute] = value;
}
