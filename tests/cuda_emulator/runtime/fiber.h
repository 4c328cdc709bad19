// A call stack of its own, that control can be switched to.
#pragma once

#include <cstddef>

#if !defined(__x86_64__)
#define DSR_EMULATOR_UCONTEXT
#endif
#ifdef DSR_EMULATOR_UCONTEXT
#include <ucontext.h>
#endif

namespace dsr::emulator {

struct Fiber {
  void* stack = nullptr;  // its lowest address
  size_t stack_bytes = 0;
  void* fake_stack = nullptr;  // AddressSanitizer's
  void* tsan_fiber = nullptr;  // ThreadSanitizer's
#ifdef DSR_EMULATOR_UCONTEXT
  ucontext_t context;
#else
  void* stack_pointer = nullptr;
#endif
};

// Makes the next switch to `fiber`, whose stack is set, call entry(), which must not return.
void prepare(Fiber& fiber, void (*entry)());

// Saves the running fiber in `from` and continues `to`. With `last`, `from` never runs again.
void switch_fiber(Fiber& from, Fiber& to, bool last);

// To be called first on a fiber's own stack; `from` is who switched to it.
void entered(Fiber& from);

}  // namespace dsr::emulator
