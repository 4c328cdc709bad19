// Launches: blocks one after the other, the threads of a block as fibers.
#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "state.h"

namespace dsr::emulator {

Thread* current = nullptr;
KernelRecord* KernelRecord::first = nullptr;
Runtime runtime;

namespace {

constexpr size_t kMaxThreadsOfThreadBuild = 65536;

[[noreturn]] void leave_for_ever(GpuThread& thread) {
  thread.state = State::kDone;
  switch_fiber(thread.fiber, runtime.scheduler, /*last=*/true);
  std::abort();  // never comes back
}

void thread_main() {
  entered(runtime.scheduler);
  runtime.body(runtime.argument);
  GpuThread& thread = running();
  check_stack(thread);
  check_copies(thread);
  runtime.end_clock.release();
  thread.state = State::kDone;
  thread_left(thread);
  leave_for_ever(thread);
}

void resume(GpuThread& thread) {
  current = &thread;
  ++runtime.statistics.switches;
  switch_fiber(runtime.scheduler, thread.fiber, /*last=*/false);
  current = nullptr;
}

uint64_t random_below(uint32_t bound) { return (random_bits() >> 32) * bound >> 32; }

GpuThread& take_ready() {
  int* const begin = runtime.ready;
  int* const end = begin + runtime.ready_count;
  int* chosen = begin;
  switch (runtime.settings.order) {
    case Order::kRandom:
      chosen += random_below(static_cast<uint32_t>(runtime.ready_count));
      break;
    case Order::kAscending:
      chosen = std::min_element(begin, end);
      break;
    case Order::kDescending:
      chosen = std::max_element(begin, end);
      break;
  }
  const int rank = *chosen;
  *chosen = *(end - 1);
  --runtime.ready_count;
  return runtime.threads[rank];
}

// ThreadSanitizer forgets what a thread did soon after it is destroyed, and reports no race with
// it: so they are kept until the launch ends or there are too many.
struct Retired {
  static constexpr size_t kKept = kThreadSanitizer ? 2048 : 1;
  void* fibers[kKept];
  size_t first = 0;
  size_t count = 0;

  void push(void* fiber) {
    if (count == kKept) destroy_first();
    fibers[(first + count++) % kKept] = fiber;
  }
  void destroy_first() {
    thread_destroy(fibers[first]);
    first = (first + 1) % kKept;
    --count;
  }
  void destroy_all() {
    while (count > 0) destroy_first();
  }
};
Retired retired;

void end_thread(GpuThread& thread) {
  if (thread.fiber.tsan_fiber == nullptr) return;
  if (failed()) {  // what it has done so far counts as done before all that follows the launch
    thread_switch(thread.fiber.tsan_fiber);
    runtime.end_clock.release();
    thread_switch(runtime.scheduler.tsan_fiber);
  }
  retired.push(thread.fiber.tsan_fiber);
}

void start_threads(const Configuration& configuration) {
  const dim3 shape = configuration.block;
  for (int i = 0; i < runtime.block.threads; ++i) {
    GpuThread& thread = runtime.threads[i];
    const unsigned rank = static_cast<unsigned>(i);
    thread.rank = i;
    thread.thread_index = {rank % shape.x, rank / shape.x % shape.y, rank / shape.x / shape.y};
    thread.block_index = runtime.block.index;
    thread.block = shape;
    thread.grid = configuration.grid;
    give_stack(thread);
    thread.published = new_clock();
    thread.received = new_clock();
    thread.fiber.tsan_fiber = thread_create();
    prepare(thread.fiber, thread_main);
    make_ready(thread);
  }
}

void run_block(const Configuration& configuration, uint64_t number) {
  const dim3 grid = configuration.grid;
  Block& block = runtime.block;
  block.index = {static_cast<unsigned>(number % grid.x),
                 static_cast<unsigned>(number / grid.x % grid.y),
                 static_cast<unsigned>(number / grid.x / grid.y)};
  block.live = block.threads;
  runtime.ready_count = 0;
  for (int i = 0; i < block.threads; ++i) runtime.threads[i].fiber.tsan_fiber = nullptr;
  try {
    begin_block_memory(configuration.dynamic_shared_bytes);
    reset_barriers();
    reset_copies();
    start_threads(configuration);
    while (runtime.ready_count > 0 && !failed()) resume(take_ready());
    if (!failed() && block.live > 0) report_deadlock();
  } catch (const std::runtime_error&) {
    // Ran out of memory or into a deadlock: runtime.error tells.
  }
  for (int i = 0; i < block.threads; ++i) end_thread(runtime.threads[i]);
  ++runtime.statistics.blocks;
  runtime.statistics.threads += static_cast<uint64_t>(block.threads);
}

uint64_t volume(dim3 shape) { return uint64_t{shape.x} * shape.y * shape.z; }

std::string text(dim3 shape) {
  return "(" + std::to_string(shape.x) + ", " + std::to_string(shape.y) + ", " +
         std::to_string(shape.z) + ")";
}

// Why the GPU would refuse the launch; empty where it would not.
std::string refusal(const KernelRecord& kernel, const Configuration& configuration) {
  const dim3 grid = configuration.grid;
  const dim3 block = configuration.block;
  if (volume(block) < 1 || volume(block) > kMaxThreads || block.z > 64) {
    return "a block has 1 to 1024 threads, at most 64 along z; got " + text(block);
  }
  if (volume(grid) < 1 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) {
    return "a grid has 1 to (2147483647, 65535, 65535) blocks; got " + text(grid);
  }
  if (configuration.dynamic_shared_bytes > kernel.dynamic_shared_limit) {
    return std::to_string(configuration.dynamic_shared_bytes) +
           " bytes of dynamic shared memory, where cudaFuncSetAttribute allowed " +
           std::to_string(kernel.dynamic_shared_limit);
  }
  if (kThreadSanitizer && volume(block) * volume(grid) > kMaxThreadsOfThreadBuild) {
    return "the thread build runs at most 65536 GPU threads a launch; got grid " + text(grid) +
           ", block " + text(block);
  }
  return "";
}

std::vector<uint64_t> order_of_blocks(uint64_t blocks) {
  std::vector<uint64_t> order(blocks);
  std::iota(order.begin(), order.end(), uint64_t{0});
  if (runtime.settings.order == Order::kDescending) std::reverse(order.begin(), order.end());
  if (runtime.settings.order == Order::kRandom) {
    for (uint64_t i = blocks; i > 1; --i) std::swap(order[i - 1], order[random_bits() % i]);
  }
  return order;
}

}  // namespace

uint64_t random_bits() {  // splitmix64
  uint64_t z = runtime.random_state += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

void make_ready(GpuThread& thread) {
  thread.state = State::kReady;
  runtime.ready[runtime.ready_count++] = thread.rank;
}

void give_way() { switch_fiber(running().fiber, runtime.scheduler, /*last=*/false); }

void maybe_preempt() {
  const double probability = runtime.settings.preempt;
  if (probability <= 0 || (random_bits() >> 11) * 0x1p-53 >= probability) return;
  make_ready(running());
  give_way();
}

void fail(const char* format, ...) {
  if (!failed()) {
    const size_t size = sizeof(runtime.error);
    va_list arguments;
    va_start(arguments, format);
    const size_t length = static_cast<size_t>(vsnprintf(runtime.error, size, format, arguments));
    va_end(arguments);
    if (current != nullptr && length < size) {
      const uint3 block = current->block_index;
      const uint3 thread = current->thread_index;
      snprintf(runtime.error + length, size - length, " [block (%u, %u, %u), thread (%u, %u, %u)]",
               block.x, block.y, block.z, thread.x, thread.y, thread.z);
    }
  }
  if (current != nullptr) leave_for_ever(running());
  throw std::runtime_error(runtime.error);
}

void run(KernelRecord& kernel, const Configuration& configuration, void (*body)(void*),
         void* argument, Where where) {
  if (runtime.idle) {
    ++kernel.launches;
    return;
  }
  static std::mutex one_launch_at_a_time;
  const std::lock_guard<std::mutex> lock(one_launch_at_a_time);
  const Unwatched scope;
  const std::string place = std::string(where.file) + ":" + std::to_string(where.line) + ": ";
  const std::string refused = refusal(kernel, configuration);
  if (!refused.empty()) throw std::runtime_error(place + refused);
  runtime.error[0] = 0;
  runtime.body = body;
  runtime.argument = argument;
  runtime.block.threads = static_cast<int>(volume(configuration.block));
  runtime.scheduler.tsan_fiber = thread_current();
  begin_memory();
  runtime.end_clock = new_clock();
  runtime.atomics_fiber = thread_create();
  runtime.fenced = false;
  for (const uint64_t block : order_of_blocks(volume(configuration.grid))) {
    run_block(configuration, block);
    if (failed()) break;
  }
  runtime.end_clock.acquire();
  retired.destroy_all();
  thread_destroy(runtime.atomics_fiber);
  end_memory();
  ++kernel.launches;
  ++runtime.statistics.launches;
  if (failed()) throw std::runtime_error(place + "kernel failed: " + runtime.error);
}

}  // namespace dsr::emulator
