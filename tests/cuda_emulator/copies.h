// Copies from global to shared memory that go on while the thread does something else (cp.async).
#pragma once

#include <cstring>

#include "runtime.h"

namespace dsr::emulator {

struct PendingCopy {
  float* to;
  const float* from;
};

// The running thread's copies, in the order in which it began them (runtime/copies.cpp).
void push_copy(PendingCopy copy);
bool pop_copy(PendingCopy* copy);

// Until it is waited for, the destination holds NaN. The copying is done here, in code that the
// sanitizers watch.
inline void begin_copy(void* to, const void* from) {
  static_assert(sizeof(float) == 4);
  memset(to, 0xff, 4);
  push_copy({static_cast<float*>(to), static_cast<const float*>(from)});
}

inline void wait_for_copies() {
  for (PendingCopy copy; pop_copy(&copy);) *copy.to = *copy.from;
}

}  // namespace dsr::emulator
