// Stacks of the GPU threads and the shared memory of blocks.
//
// Plain and address builds use the same memory for every block, and forbid what is not allocated.
// The thread build gives every block and thread memory that no other had before: to ThreadSanitizer
// blocks run side by side, so an address used twice would look like a race between them.
#include <sys/mman.h>

#include <stdexcept>

#include "state.h"

namespace dsr::emulator {

namespace {

constexpr size_t kStackBytes = (kThreadSanitizer ? 32 : 128) * 1024;
constexpr size_t kStackStride = kStackBytes + 5 * 64;  // tops of stacks lie in different cache sets
constexpr size_t kAlignment = 128;  // of shared variables, and the gap between two of them
constexpr size_t kSharedArena = kSharedBytes + (kMaxShared + 2) * 2 * kAlignment;

size_t shared_used;  // of the running block, without gaps

char* map_pages(size_t bytes) {
  void* const pages = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return pages == MAP_FAILED ? nullptr : static_cast<char*>(pages);
}

size_t with_gap(size_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment + kAlignment;
}

#ifdef DSR_EMULATOR_THREAD

constexpr size_t kChunkBytes = size_t{32} << 20;
constexpr int kMaxChunks = 128;  // 65,536 stacks take 64
constexpr size_t kClockBytes = 8;

char* chunks[kMaxChunks];
int chunk_count;
size_t chunk_used;

// Memory that is handed out once in a launch.
char* fresh(size_t bytes) {
  chunk_used = (chunk_used + kAlignment - 1) / kAlignment * kAlignment;
  if (chunk_count == 0 || chunk_used + bytes > kChunkBytes) {
    char* pages = nullptr;
    if (chunk_count < kMaxChunks) {
      Unwatched scope;  // a new mapping would count as written by this thread
      pages = map_pages(kChunkBytes);
    }
    if (pages == nullptr) {
      fail("the thread build has no memory left for this launch: use a smaller shape");
    }
    chunks[chunk_count++] = pages;
    chunk_used = 0;
  }
  char* const memory = chunks[chunk_count - 1] + chunk_used;
  chunk_used += bytes;
  return memory;
}

char* shared_space(size_t bytes) { return fresh(with_gap(bytes)); }

#else

char* stacks;
alignas(kAlignment) char shared_arena[kSharedArena];
size_t arena_used;

char* shared_space(size_t bytes) {
  char* const memory = shared_arena + arena_used;
  arena_used += with_gap(bytes);
  permit(memory, bytes);
  return memory;
}

#endif

// Shared memory starts as NaN in every format.
void* allocate_shared(size_t bytes) {
  shared_used += bytes;
  if (shared_used > kSharedBytes) {
    fail("a block uses %zu bytes of shared memory; %zu are all there is", shared_used,
         kSharedBytes);
  }
  char* const memory = shared_space(bytes);
  for (size_t i = 0; i < bytes; ++i) memory[i] = static_cast<char>(0xff);
  return memory;
}

}  // namespace

#ifdef DSR_EMULATOR_THREAD
Clock new_clock() { return {fresh(kClockBytes)}; }
#endif

void begin_memory() {
#ifdef DSR_EMULATOR_THREAD
  chunk_count = 0;
#else
  if (stacks == nullptr) stacks = map_pages(kMaxThreads * kStackStride);
  if (stacks == nullptr) throw std::runtime_error("the emulator cannot map its threads' stacks");
#endif
}

void begin_block_memory(size_t dynamic_shared_bytes) {
  Block& block = runtime.block;
  shared_used = 0;
  block.shared_count = 0;
#ifndef DSR_EMULATOR_THREAD
  arena_used = kAlignment;
  forbid(shared_arena, sizeof(shared_arena));
#endif
  void* const dynamic = dynamic_shared_bytes == 0 ? nullptr : allocate_shared(dynamic_shared_bytes);
  for (int i = 0; i < block.threads; ++i) runtime.threads[i].dynamic_shared = dynamic;
}

void end_memory() {
#ifdef DSR_EMULATOR_THREAD
  while (chunk_count > 0) munmap(chunks[--chunk_count], kChunkBytes);
#endif
}

void give_stack(GpuThread& thread) {
  Fiber& fiber = thread.fiber;
  fiber.stack_bytes = kStackBytes;
#ifdef DSR_EMULATOR_THREAD
  fiber.stack = fresh(kStackStride);
#else
  fiber.stack = stacks + thread.rank * kStackStride;
  permit(fiber.stack, kStackBytes);  // a failed launch leaves frames behind
#endif
  *static_cast<uint64_t*>(fiber.stack) = 0;
}

void check_stack(const GpuThread& thread) {
  if (*static_cast<const uint64_t*>(thread.fiber.stack) != 0) {
    fail("a thread needs more than %zu bytes of stack", kStackBytes);
  }
}

bool allow_dynamic_shared(const void* function, size_t bytes) {
  if (bytes > kSharedBytes) return false;
  for (KernelRecord* record = KernelRecord::first; record != nullptr; record = record->next) {
    if (record->function == function) record->dynamic_shared_limit = bytes;
  }
  return true;
}

void* shared_memory(SharedKey key, size_t bytes) {
  Block& block = runtime.block;
  for (int i = 0; i < block.shared_count; ++i) {
    if (block.shared[i].key == key) return block.shared[i].memory;
  }
  if (block.shared_count == kMaxShared) fail("a block has more than %d variables", kMaxShared);
  void* const memory = allocate_shared(bytes);
  block.shared[block.shared_count++] = {key, memory};
  return memory;
}

}  // namespace dsr::emulator
