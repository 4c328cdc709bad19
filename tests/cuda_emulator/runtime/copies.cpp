// Copies that threads have begun and not yet waited for: one queue for each, all in one pool.
#include "../copies.h"

#include "state.h"

namespace dsr::emulator {

namespace {

constexpr int kMaxCopies = 1 << 16;  // of a block at once: all of its shared memory

struct Node {
  PendingCopy copy;
  int next;
};

Node pool[kMaxCopies];
int used, pending;
int first[kMaxThreads], last[kMaxThreads];  // -1: none

}  // namespace

void reset_copies() {
  used = pending = 0;
  for (int& index : first) index = -1;
}

void push_copy(PendingCopy copy) {
  if (used == kMaxCopies) fail("more than %d asynchronous copies are under way", kMaxCopies);
  const int rank = current->rank;
  pool[used] = {copy, -1};
  if (first[rank] < 0) {
    first[rank] = used;
  } else {
    pool[last[rank]].next = used;
  }
  last[rank] = used++;
  ++pending;
}

bool pop_copy(PendingCopy* copy) {
  const int rank = current->rank;
  if (first[rank] < 0) return false;
  *copy = pool[first[rank]].copy;
  first[rank] = pool[first[rank]].next;
  if (--pending == 0) used = 0;
  return true;
}

}  // namespace dsr::emulator
