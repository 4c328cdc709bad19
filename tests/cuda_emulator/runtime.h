// What kernel code sees of the emulator's runtime: where a thread stands, barriers, shared memory.
// The runtime (runtime/*.cpp) runs a launch on the calling CPU thread: one block at a time, and one
// fiber for each thread of the block, which gives way at barriers and warp primitives only.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace dsr::emulator {

constexpr int kWarpSize = 32;
constexpr unsigned kFullMask = 0xffffffffu;

// A place in the source, by default the caller's.
struct Where {
  const char* file;
  int line;
};
constexpr Where here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  return {file, line};
}

// What the built-in variables of the running thread say.
struct Thread {
  uint3 thread_index{};
  uint3 block_index{};
  dim3 block;
  dim3 grid;
  int rank = 0;  // within the block
  void* dynamic_shared = nullptr;

  int warp() const { return rank / kWarpSize; }
  int lane() const { return rank % kWarpSize; }
};
extern Thread* current;  // null outside of a launch

// Ends the launch, which then throws std::runtime_error with this text and the thread's place.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// The block barrier; how many threads came with a true predicate.
int block_barrier(bool predicate, Where where);

// Each lane named in `mask` hands over a value; all meet, and then see what the others brought.
constexpr int kSlotBytes = 16;
struct Exchange {
  const unsigned char (*slots)[kSlotBytes];  // [32]
  unsigned participants;                     // lanes of the mask that had not left the kernel
};
Exchange exchange(unsigned mask, const void* value, int bytes, Where where);

// Atomics order nothing by themselves. What came before a thread's fence, and then its atomic, is
// seen by a thread that comes with an atomic, and then its own fence, later.
void before_atomic();
void fence();

// The block's variable that `key` stands for: filled with 0xff, which is NaN, when the block
// starts.
using SharedKey = void (*)();
void* shared_memory(SharedKey key, size_t bytes);

template <class Site>
void shared_key() {
  static volatile int distinct;
  distinct = distinct + 1;  // or the linker could merge the functions of two sites
}

// `Site` is the type of a lambda, so every declaration has its own.
template <class T, class Site>
T& shared_variable(Site) {
  return *static_cast<T*>(shared_memory(&shared_key<Site>, sizeof(T)));
}

}  // namespace dsr::emulator
