// What the files of the runtime share. Everything here lies in static memory or in pages of the
// runtime's own: the sanitizers watch what comes from malloc, and must not report the emulator.
#pragma once

#include <cstddef>
#include <cstdint>

#include "fiber.h"
#include "launch.h"
#include "runtime.h"
#include "sanitizer.h"

namespace dsr::emulator {

constexpr int kMaxThreads = 1024;  // of a block
constexpr int kMaxWarps = kMaxThreads / kWarpSize;
constexpr int kMaxMasks = 32;                // that are in use in one warp at once
constexpr int kMaxShared = 64;               // shared variables of a block
constexpr size_t kSharedBytes = 227 * 1024;  // of a block, as on compute capability 9.0

enum class State : uint8_t { kReady, kAtBarrier, kAtWarpPrimitive, kDone };

struct GpuThread : Thread {
  State state = State::kReady;
  Where waits_at{"", 0};
  unsigned waits_for = 0;  // the mask of the warp primitive
  Fiber fiber;
  Clock published;  // what came before its last fence
  Clock received;   // what others had published when it came with its last atomic
};

// Two of everything that a barrier uses, taken in turn: a thread that wakes late still finds its
// own generation's, while others already arrive at the next.
struct BlockBarrier {
  int arrived = 0;
  unsigned generation = 0;
  int true_predicates[2]{};
  Clock clocks[2];
};

// Where the lanes that a mask names meet.
struct WarpMeeting {
  unsigned mask = 0;
  unsigned arrived = 0;
  unsigned generation = 0;
  unsigned participants[2]{};
  Where where{"", 0};
  Clock clocks[2];
  unsigned char slots[2][kWarpSize][kSlotBytes];
};

struct Warp {
  unsigned exited = 0;  // lanes that left the kernel, and those beyond the block's end
  int masks = 0;
  WarpMeeting meetings[kMaxMasks];
};

struct SharedVariable {
  SharedKey key;
  void* memory;
};

struct Block {
  int threads = 0;
  int live = 0;
  uint3 index{};
  BlockBarrier barrier;
  int shared_count = 0;
  SharedVariable shared[kMaxShared];
};

enum class Order { kRandom, kAscending, kDescending };

struct Settings {
  uint64_t seed = 1;
  Order order = Order::kRandom;
  double preempt = 0;  // probability
};

struct Statistics {
  uint64_t switches = 0;
  uint64_t threads = 0;
  uint64_t blocks = 0;
  uint64_t launches = 0;
};

struct Runtime {
  bool idle = false;  // launches are counted, but nothing runs: to time what is around them
  GpuThread threads[kMaxThreads];
  Warp warps[kMaxWarps];
  Block block;
  int ready[kMaxThreads];  // ranks
  int ready_count = 0;
  Fiber scheduler;
  void (*body)(void*) = nullptr;
  void* argument = nullptr;
  char error[1024];               // empty: none
  Clock end_clock;                // of the launch
  void* atomics_fiber = nullptr;  // knows all that was published
  bool fenced = false;            // in this launch
  Settings settings;
  uint64_t random_state = 1;
  Statistics statistics;
};
extern Runtime runtime;

inline GpuThread& running() { return *static_cast<GpuThread*>(current); }
inline bool failed() { return runtime.error[0] != 0; }
uint64_t random_bits();

// Scheduling (scheduler.cpp).
void make_ready(GpuThread& thread);
void give_way();
void maybe_preempt();

// Barriers (barriers.cpp).
void reset_barriers();
void thread_left(const GpuThread& thread);  // those who wait may have waited for it only
void report_deadlock();

// Asynchronous copies (copies.cpp).
void reset_copies();
void check_copies(const GpuThread& thread);  // none may be left when a thread ends

// Memory of a launch, a block and its threads (memory.cpp).
void begin_memory();
void begin_block_memory(size_t dynamic_shared_bytes);
void end_memory();
void give_stack(GpuThread& thread);
void check_stack(const GpuThread& thread);

// Settings by name and by environment variable; both throw std::invalid_argument (settings.cpp).
void configure(uint64_t seed, const char* order, double preempt);
void configure_from_environment();

}  // namespace dsr::emulator
