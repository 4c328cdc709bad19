// Barriers, shuffles, votes and reductions under CUDA's names.
#pragma once

#include <cstring>

#include "runtime.h"

namespace dsr::emulator {

template <class T>
T slot_value(const Exchange& exchanged, int lane) {
  T value;
  std::memcpy(&value, exchanged.slots[lane], sizeof(T));
  return value;
}

template <class T>
T shuffle(unsigned mask, T value, int source, Where where) {
  static_assert(sizeof(T) <= kSlotBytes, "a shuffle moves at most 16 bytes");
  const Exchange exchanged = exchange(mask, &value, sizeof(T), where);
  if (!(exchanged.participants >> source & 1)) {
    fail("%s:%d: shuffle reads lane %d, which took no part (mask %08x, took part %08x)", where.file,
         where.line, source, mask, exchanged.participants);
  }
  return slot_value<T>(exchanged, source);
}

// Combines the values of all lanes that took part, in the order of the lanes.
template <class T, class Combine>
T reduce(unsigned mask, T value, Where where, Combine combine) {
  const Exchange exchanged = exchange(mask, &value, sizeof(T), where);
  bool first = true;
  T total{};
  for (int lane = 0; lane < kWarpSize; ++lane) {
    if (!(exchanged.participants >> lane & 1)) continue;
    const T next = slot_value<T>(exchanged, lane);
    total = first ? next : combine(total, next);
    first = false;
  }
  return total;
}

inline unsigned ballot(unsigned mask, bool predicate, Where where) {
  const unsigned mine = predicate ? 1u << current->lane() : 0u;
  return reduce(mask, mine, where, [](unsigned a, unsigned b) { return a | b; });
}

}  // namespace dsr::emulator

inline void __syncthreads(dsr::emulator::Where where = dsr::emulator::here()) {
  dsr::emulator::block_barrier(false, where);
}
inline int __syncthreads_count(int predicate, dsr::emulator::Where where = dsr::emulator::here()) {
  return dsr::emulator::block_barrier(predicate != 0, where);
}
inline int __syncthreads_or(int predicate, dsr::emulator::Where where = dsr::emulator::here()) {
  return dsr::emulator::block_barrier(predicate != 0, where) != 0;
}
inline int __syncthreads_and(int predicate, dsr::emulator::Where where = dsr::emulator::here()) {
  return dsr::emulator::block_barrier(predicate == 0, where) == 0;
}
inline void __syncwarp(unsigned mask = dsr::emulator::kFullMask,
                       dsr::emulator::Where where = dsr::emulator::here()) {
  dsr::emulator::exchange(mask, nullptr, 0, where);
}

// Width splits the warp into segments; a source outside of the own segment means the own value.
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32,
              dsr::emulator::Where where = dsr::emulator::here()) {
  const int segment = dsr::emulator::current->lane() & ~(width - 1);
  return dsr::emulator::shuffle(mask, value, segment | (source & (width - 1)), where);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32,
                  dsr::emulator::Where where = dsr::emulator::here()) {
  const int lane = dsr::emulator::current->lane();
  const int source = lane ^ bits;
  const bool beyond = (source & ~(width - 1)) > (lane & ~(width - 1));
  return dsr::emulator::shuffle(mask, value, beyond ? lane : source, where);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   dsr::emulator::Where where = dsr::emulator::here()) {
  const int lane = dsr::emulator::current->lane();
  const bool inside = (lane & (width - 1)) + delta < static_cast<unsigned>(width);
  return dsr::emulator::shuffle(mask, value, inside ? lane + static_cast<int>(delta) : lane, where);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 dsr::emulator::Where where = dsr::emulator::here()) {
  const int lane = dsr::emulator::current->lane();
  const bool inside = delta <= static_cast<unsigned>(lane & (width - 1));
  return dsr::emulator::shuffle(mask, value, inside ? lane - static_cast<int>(delta) : lane, where);
}

inline unsigned __ballot_sync(unsigned mask, int predicate,
                              dsr::emulator::Where where = dsr::emulator::here()) {
  return dsr::emulator::ballot(mask, predicate != 0, where);
}
inline int __any_sync(unsigned mask, int predicate,
                      dsr::emulator::Where where = dsr::emulator::here()) {
  return dsr::emulator::ballot(mask, predicate != 0, where) != 0;
}
inline int __all_sync(unsigned mask, int predicate,
                      dsr::emulator::Where where = dsr::emulator::here()) {
  return dsr::emulator::ballot(mask, predicate == 0, where) == 0;
}

// Only for int and unsigned, as on the GPU.
#define DSR_WARP_REDUCTION(name, T, expression)                                               \
  inline T name(unsigned mask, T value, dsr::emulator::Where where = dsr::emulator::here()) { \
    return dsr::emulator::reduce(mask, value, where,                                          \
                                 [](T a, T b) { return static_cast<T>(expression); });        \
  }
DSR_WARP_REDUCTION(__reduce_add_sync, unsigned, a + b)
DSR_WARP_REDUCTION(__reduce_add_sync, int, static_cast<unsigned>(a) + static_cast<unsigned>(b))
DSR_WARP_REDUCTION(__reduce_min_sync, unsigned, b < a ? b : a)
DSR_WARP_REDUCTION(__reduce_min_sync, int, b < a ? b : a)
DSR_WARP_REDUCTION(__reduce_max_sync, unsigned, a < b ? b : a)
DSR_WARP_REDUCTION(__reduce_max_sync, int, a < b ? b : a)
DSR_WARP_REDUCTION(__reduce_and_sync, unsigned, a& b)
DSR_WARP_REDUCTION(__reduce_or_sync, unsigned, a | b)
DSR_WARP_REDUCTION(__reduce_xor_sync, unsigned, a ^ b)
#undef DSR_WARP_REDUCTION
