// A stack of its own for each CUDA thread, the switch between stacks, and what the sanitizers have
// to be told of either.
//
// CUDA_ON_HOST_ADDRESS or CUDA_ON_HOST_THREAD says which sanitizer the kernels are compiled with.
// This file and runtime.cpp are compiled with none: the runtime's own data are not the kernel's.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <new>

#if !defined(__x86_64__)
#error "the switch of stacks is written for x86-64"
#endif

#if defined(CUDA_ON_HOST_ADDRESS)
extern "C" {
void __sanitizer_start_switch_fiber(void** fake_stack, const void* stack, size_t size);
void __sanitizer_finish_switch_fiber(void* fake_stack, const void** stack, size_t* size);
void __asan_poison_memory_region(const volatile void* address, size_t size);
void __asan_unpoison_memory_region(const volatile void* address, size_t size);
}
#elif defined(CUDA_ON_HOST_THREAD)
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
void __tsan_read_range(void* address, unsigned long size);
void __tsan_write_range(void* address, unsigned long size);
}
#endif

namespace cuda_on_host {

// Whoever acquires an edge sees what those who released it did before. Without edges, two threads
// on one CPU thread race like any others: switching stacks orders nothing.
struct Edge {
#if defined(CUDA_ON_HOST_THREAD)
  void release() { __tsan_release(&address); }
  void acquire() { __tsan_acquire(&address); }
#else
  void release() {}
  void acquire() {}
#endif
  uint64_t address = 0;
};

// What the runtime does to memory on behalf of a CUDA thread.
inline void note_read([[maybe_unused]] const void* memory, [[maybe_unused]] size_t bytes) {
#if defined(CUDA_ON_HOST_THREAD)
  __tsan_read_range(const_cast<void*>(memory), bytes);
#endif
}

inline void note_write([[maybe_unused]] void* memory, [[maybe_unused]] size_t bytes) {
#if defined(CUDA_ON_HOST_THREAD)
  __tsan_write_range(memory, bytes);
#endif
}

// From now on any access is an error, until allow_access.
inline void forbid_access([[maybe_unused]] void* memory, [[maybe_unused]] size_t bytes) {
#if defined(CUDA_ON_HOST_ADDRESS)
  __asan_poison_memory_region(memory, bytes);
#endif
}

inline void allow_access([[maybe_unused]] void* memory, [[maybe_unused]] size_t bytes) {
#if defined(CUDA_ON_HOST_ADDRESS)
  __asan_unpoison_memory_region(memory, bytes);
#endif
}

#if defined(CUDA_ON_HOST_THREAD)
constexpr unsigned kOrdersNothing = 1;  // a flag of __tsan_switch_to_fiber
#endif

// What remains of a stack while another one runs.
struct Context {
  void* stack_pointer = nullptr;
  char* stack = nullptr;
  size_t stack_bytes = 0;
  void* sanitizer = nullptr;  // its fake stack (address) or its fiber (thread)

  bool holds(const void* address) const {
    return static_cast<size_t>(static_cast<const char*>(address) - stack) < stack_bytes;
  }
};

// Saves what a call preserves, on the stack it leaves.
__attribute__((naked, noinline)) inline void swap_stacks(void** /*save*/, void* /*load*/) {
  asm volatile(
      "pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
      "movq %rsp, (%rdi)\n movq %rsi, %rsp\n"
      "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n ret");
}

// Returns when something switches back to `from`; never, if `from` ends here.
inline void switch_stacks(Context& from, Context& to, [[maybe_unused]] bool from_ends = false) {
#if defined(CUDA_ON_HOST_ADDRESS)
  __sanitizer_start_switch_fiber(from_ends ? nullptr : &from.sanitizer, to.stack, to.stack_bytes);
#elif defined(CUDA_ON_HOST_THREAD)
  __tsan_switch_to_fiber(to.sanitizer, kOrdersNothing);
#endif
  swap_stacks(&from.stack_pointer, to.stack_pointer);
#if defined(CUDA_ON_HOST_ADDRESS)
  __sanitizer_finish_switch_fiber(from.sanitizer, nullptr, nullptr);
#endif
}

// First thing on a new stack: learns from the sanitizer which stack `from` was.
inline void finish_first_switch([[maybe_unused]] Context& from) {
#if defined(CUDA_ON_HOST_ADDRESS)
  const void* stack = nullptr;
  __sanitizer_finish_switch_fiber(nullptr, &stack, &from.stack_bytes);
  from.stack = static_cast<char*>(const_cast<void*>(stack));
#endif
}

// In the name of `context`, which does not run: for one that will not go on by itself.
inline void release_for([[maybe_unused]] Context& context, [[maybe_unused]] Edge& edge) {
#if defined(CUDA_ON_HOST_THREAD)
  void* self = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(context.sanitizer, kOrdersNothing);
  edge.release();
  __tsan_switch_to_fiber(self, kOrdersNothing);
#endif
}

class Fiber : public Context {
 public:
  Fiber() : page_(static_cast<size_t>(sysconf(_SC_PAGESIZE))) {
    void* memory = mmap(nullptr, page_ + kStackBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    mprotect(memory, page_, PROT_NONE);  // a stack that overflows meets this page
    stack = static_cast<char*>(memory) + page_;
    stack_bytes = kStackBytes;
    allow_access(stack, stack_bytes);
#if defined(CUDA_ON_HOST_THREAD)
    sanitizer = __tsan_create_fiber(0);
#endif
  }

  ~Fiber() {
#if defined(CUDA_ON_HOST_THREAD)
    __tsan_destroy_fiber(sanitizer);
#endif
    allow_access(stack, stack_bytes);  // an abandoned stack still has its frames marked
    munmap(stack - page_, page_ + kStackBytes);
  }

  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // The next switch to this stack calls `body`, which must not return.
  void begin_with(void (*body)()) {
    constexpr size_t kSavedRegisters = 6;
    auto** top = reinterpret_cast<void**>(stack + stack_bytes - 64);
    *--top = nullptr;  // the return address of `body`, for who prints a stack
    *--top = reinterpret_cast<void*>(body);
    stack_pointer = top - kSavedRegisters;
  }

 private:
  static constexpr size_t kStackBytes = 256 << 10;
  size_t page_;
};

}  // namespace cuda_on_host
