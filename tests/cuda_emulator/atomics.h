// Atomics and fences. They are relaxed, as on the GPU: only a fence orders the memory around them.
#pragma once

#include <cstring>
#include <type_traits>

#include "runtime.h"

namespace dsr::emulator {

// Replaces *address by change(*address); what was there before.
template <class T, class Change>
T read_modify_write(T* address, Change change) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "atomics work on 4 or 8 bytes");
  using Bits = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
  before_atomic();
  Bits* const bits = reinterpret_cast<Bits*>(address);
  Bits before = __atomic_load_n(bits, __ATOMIC_RELAXED);
  for (;;) {
    T value;
    std::memcpy(&value, &before, sizeof(T));
    const T changed = change(value);
    Bits after;
    std::memcpy(&after, &changed, sizeof(T));
    if (__atomic_compare_exchange_n(bits, &before, after, false, __ATOMIC_RELAXED,
                                    __ATOMIC_RELAXED)) {
      return value;
    }
  }
}

template <class T>
using Same = std::common_type_t<T>;  // takes part in no deduction

// Wraps around, as the GPU does.
template <class T>
T wrapping_add(T a, T b) {
  if constexpr (std::is_integral_v<T>) {
    using Unsigned = std::make_unsigned_t<T>;
    return static_cast<T>(static_cast<Unsigned>(a) + static_cast<Unsigned>(b));
  } else {
    return a + b;
  }
}

}  // namespace dsr::emulator

#define DSR_ATOMIC(name, expression)                                                            \
  template <class T>                                                                            \
  T name(T* address, dsr::emulator::Same<T> value) {                                            \
    return dsr::emulator::read_modify_write(address,                                            \
                                            [=](T old) { return static_cast<T>(expression); }); \
  }
DSR_ATOMIC(atomicAdd, dsr::emulator::wrapping_add(old, value))
DSR_ATOMIC(atomicSub, old - value)
DSR_ATOMIC(atomicMin, value < old ? value : old)
DSR_ATOMIC(atomicMax, old < value ? value : old)
DSR_ATOMIC(atomicAnd, old& value)
DSR_ATOMIC(atomicOr, old | value)
DSR_ATOMIC(atomicXor, old ^ value)
DSR_ATOMIC(atomicExch, ((void)old, value))
#undef DSR_ATOMIC

template <class T>
T atomicCAS(T* address, dsr::emulator::Same<T> compare, dsr::emulator::Same<T> value) {
  return dsr::emulator::read_modify_write(address,
                                          [=](T old) { return old == compare ? value : old; });
}

inline void __threadfence() { dsr::emulator::fence(); }
inline void __threadfence_block() { dsr::emulator::fence(); }
