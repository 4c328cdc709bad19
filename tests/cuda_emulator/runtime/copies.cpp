// Copies that threads have begun and not yet waited for: one queue for each, all in one pool.
#include "../copies.h"

#include "state.h"

namespace dsr::emulator {

namespace {

constexpr int kMaxCopies = 1 << 16;  // of a block at once: all of its shared memory

struct Node {
  PendingCopy copy;
  int next;  // -1: none
};

Node pool[kMaxCopies];
int used, unused;                           // nodes taken from the pool, the first one given back
int first[kMaxThreads], last[kMaxThreads];  // of each thread; -1: none

int take_node() {
  if (unused >= 0) {
    const int node = unused;
    unused = pool[node].next;
    return node;
  }
  if (used == kMaxCopies) fail("more than %d asynchronous copies are under way", kMaxCopies);
  return used++;
}

}  // namespace

void reset_copies() {
  used = 0;
  unused = -1;
  for (int& index : first) index = -1;
}

void push_copy(PendingCopy copy) {
  const int rank = current->rank;
  const int node = take_node();
  pool[node] = {copy, -1};
  if (first[rank] < 0) {
    first[rank] = node;
  } else {
    pool[last[rank]].next = node;
  }
  last[rank] = node;
}

bool pop_copy(PendingCopy* copy) {
  int& node = first[current->rank];
  if (node < 0) return false;
  *copy = pool[node].copy;
  const int next = pool[node].next;
  pool[node].next = unused;
  unused = node;
  node = next;
  return true;
}

void check_copies(const GpuThread& thread) {
  int copies = 0;
  for (int node = first[thread.rank]; node >= 0; node = pool[node].next) ++copies;
  if (copies > 0) fail("the thread left the kernel before waiting for %d of its copies", copies);
}

}  // namespace dsr::emulator
