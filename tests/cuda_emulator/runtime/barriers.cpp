// The block barrier, the meetings of a warp's lanes, and fences.
#include "state.h"

namespace dsr::emulator {

namespace {

// Not strcmp: a sanitizer would watch it.
bool same_place(const Where& a, const Where& b) {
  if (a.line != b.line) return false;
  const char* left = a.file;
  const char* right = b.file;
  while (*left != 0 && *left == *right) {
    ++left;
    ++right;
  }
  return *left == *right;
}

void open_barrier_when_complete() {
  Block& block = runtime.block;
  BlockBarrier& barrier = block.barrier;
  if (barrier.arrived == 0 || barrier.arrived != block.live) return;
  const Where* place = nullptr;
  for (int i = 0; i < block.threads; ++i) {
    const GpuThread& thread = runtime.threads[i];
    if (thread.state != State::kAtBarrier) continue;
    if (place == nullptr) {
      place = &thread.waits_at;
    } else if (!same_place(*place, thread.waits_at)) {
      fail("threads of a block wait at different barriers, %s:%d and %s:%d", place->file,
           place->line, thread.waits_at.file, thread.waits_at.line);
    }
  }
  if (block.live != block.threads) {
    fail("%s:%d: %d threads of the block left the kernel before this barrier", place->file,
         place->line, block.threads - block.live);
  }
  barrier.arrived = 0;
  ++barrier.generation;
  barrier.true_predicates[barrier.generation & 1] = 0;
  for (int i = 0; i < block.threads; ++i) make_ready(runtime.threads[i]);
}

void release_complete_meetings(int warp_index) {
  Warp& warp = runtime.warps[warp_index];
  for (int i = 0; i < warp.masks; ++i) {
    WarpMeeting& meeting = warp.meetings[i];
    if (meeting.arrived == 0) continue;
    if ((meeting.arrived | warp.exited) != (meeting.mask | warp.exited)) continue;
    const unsigned lanes = meeting.arrived;
    meeting.participants[meeting.generation & 1] = lanes;
    meeting.arrived = 0;
    ++meeting.generation;
    for (int lane = 0; lane < kWarpSize; ++lane) {
      if (lanes >> lane & 1) make_ready(runtime.threads[warp_index * kWarpSize + lane]);
    }
  }
}

WarpMeeting& meeting_of(Warp& warp, unsigned mask) {
  for (int i = 0; i < warp.masks; ++i) {
    if (warp.meetings[i].mask == mask) return warp.meetings[i];
  }
  if (warp.masks == kMaxMasks) fail("a warp uses more than %d different masks", kMaxMasks);
  WarpMeeting& meeting = warp.meetings[warp.masks++];
  meeting.mask = mask;
  meeting.arrived = 0;
  meeting.generation = 0;
  for (Clock& clock : meeting.clocks) clock = new_clock();
  return meeting;
}

}  // namespace

void reset_barriers() {
  Block& block = runtime.block;
  block.barrier = {};
  for (Clock& clock : block.barrier.clocks) clock = new_clock();
  for (int w = 0; w * kWarpSize < block.threads; ++w) {
    const int lanes = block.threads - w * kWarpSize;
    runtime.warps[w].masks = 0;
    runtime.warps[w].exited = lanes >= kWarpSize ? 0u : ~((1u << lanes) - 1);
  }
}

void thread_left(const GpuThread& thread) {
  --runtime.block.live;
  runtime.warps[thread.warp()].exited |= 1u << thread.lane();
  release_complete_meetings(thread.warp());
  open_barrier_when_complete();
}

void report_deadlock() {
  const Block& block = runtime.block;
  for (int i = 0; i < block.threads; ++i) {
    const GpuThread& thread = runtime.threads[i];
    if (thread.state == State::kDone) continue;
    const bool at_barrier = thread.state == State::kAtBarrier;
    fail("deadlock: %d of %d threads wait for ever; thread %d at %s:%d (%s, mask %08x)", block.live,
         block.threads, i, thread.waits_at.file, thread.waits_at.line,
         at_barrier ? "block barrier" : "warp primitive", at_barrier ? 0 : thread.waits_for);
  }
}

int block_barrier(bool predicate, Where where) {
  BlockBarrier& barrier = runtime.block.barrier;
  GpuThread& thread = running();
  const unsigned turn = barrier.generation & 1;
  barrier.true_predicates[turn] += predicate;
  barrier.clocks[turn].release();
  thread.waits_at = where;
  thread.state = State::kAtBarrier;
  ++barrier.arrived;
  open_barrier_when_complete();
  give_way();
  barrier.clocks[turn].acquire();
  return barrier.true_predicates[turn];
}

Exchange exchange(unsigned mask, const void* value, int bytes, Where where) {
  GpuThread& thread = running();
  const int lane = thread.lane();
  if (!(mask >> lane & 1)) {
    fail("%s:%d: lane %d calls a warp primitive whose mask %08x does not name it", where.file,
         where.line, lane, mask);
  }
  WarpMeeting& meeting = meeting_of(runtime.warps[thread.warp()], mask);
  if (meeting.arrived == 0) {
    meeting.where = where;
  } else if (!same_place(meeting.where, where)) {
    fail("lanes of warp %d meet at different warp primitives, %s:%d and %s:%d", thread.warp(),
         meeting.where.file, meeting.where.line, where.file, where.line);
  }
  const unsigned turn = meeting.generation & 1;
  const unsigned char* const from = static_cast<const unsigned char*>(value);
  for (int i = 0; i < bytes; ++i) meeting.slots[turn][lane][i] = from[i];
  meeting.arrived |= 1u << lane;
  meeting.clocks[turn].release();
  thread.waits_at = where;
  thread.waits_for = mask;
  thread.state = State::kAtWarpPrimitive;
  release_complete_meetings(thread.warp());
  give_way();
  meeting.clocks[turn].acquire();
  return {meeting.slots[turn], meeting.participants[turn]};
}

// To ThreadSanitizer the atomics are a thread of their own, which learns what was published and
// passes it on. Before the launch's first fence there is nothing to learn.
void before_atomic() {
  maybe_preempt();
  if (!kThreadSanitizer || !runtime.fenced) return;
  GpuThread& thread = running();
  thread_switch(runtime.atomics_fiber);
  thread.published.acquire();
  thread.received.release();
  thread_switch(thread.fiber.tsan_fiber);
}

void fence() {
  GpuThread& thread = running();
  runtime.fenced = true;
  thread.received.acquire();
  thread.published.release();
  maybe_preempt();
}

}  // namespace dsr::emulator
