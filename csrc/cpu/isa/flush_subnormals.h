// The floating-point mode that workers compute in.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace dsr::cpu::DSR_ISA {

// Subnormal operands cost a hundred cycles each; a worker flushes them and restores the caller's
// mode.
class FlushSubnormals {
 public:
#if defined(__x86_64__)
  __attribute__((always_inline)) FlushSubnormals() : saved_(_mm_getcsr()) {
    _mm_setcsr(saved_ | 0x8040);
  }
  __attribute__((always_inline)) ~FlushSubnormals() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#else
  FlushSubnormals() {}
#endif
};

}  // namespace dsr::cpu::DSR_ISA
