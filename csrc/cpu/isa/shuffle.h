// Moving lanes between vectors: transpositions, and sums of the lanes of many vectors at once.
#pragma once

#include <utility>

#include "cpu/isa/simd.h"

namespace dsr::cpu::DSR_ISA {

// One stage of a butterfly over the rows of a square of vectors: lanes whose index has the bit D
// set trade places with the lanes D below them in the partner row.
template <int D, int V>
struct Exchange {
  // Lane e of `low` is a[e] or b[e - D], lane e of `high` is a[e + D] or b[e].
  template <typename T, int... E>
  static inline __attribute__((always_inline)) T low(T a, T b, std::integer_sequence<int, E...>) {
    return __builtin_shufflevector(a, b, (E & D ? V + E - D : E)...);
  }
  template <typename T, int... E>
  static inline __attribute__((always_inline)) T high(T a, T b, std::integer_sequence<int, E...>) {
    return __builtin_shufflevector(a, b, (E & D ? V + E : E + D)...);
  }
};

template <int D, typename S>
DSR_INLINE void transpose_stages(Vec<S>* rows) {
  constexpr int V = kLanes<S>;
  using Lanes = std::make_integer_sequence<int, V>;
  DSR_UNROLL for (int i = 0; i < V; ++i) {
    if (i & D) continue;
    const Vec<S> a = rows[i], b = rows[i + D];
    rows[i] = Exchange<D, V>::low(a, b, Lanes{});
    rows[i + D] = Exchange<D, V>::high(a, b, Lanes{});
  }
  if constexpr (D > 1) transpose_stages<D / 2, S>(rows);
}

// rows[i] lane j <-> rows[j] lane i, of a square of vectors.
template <typename S>
DSR_INLINE void transpose(Vec<S>* rows) {
  transpose_stages<kLanes<S> / 2, S>(rows);
}

// The same for squares of groups of L lanes: V / L rows.
template <int L, int D, typename S>
DSR_INLINE void transpose_groups(Vec<S>* rows) {
  constexpr int V = kLanes<S>, rows_apart = D / L;
  using Lanes = std::make_integer_sequence<int, V>;
  DSR_UNROLL for (int i = 0; i < V / L; ++i) {
    if (i & rows_apart) continue;
    const Vec<S> a = rows[i], b = rows[i + rows_apart];
    rows[i] = Exchange<D, V>::low(a, b, Lanes{});
    rows[i + rows_apart] = Exchange<D, V>::high(a, b, Lanes{});
  }
  if constexpr (D > L) transpose_groups<L, D / 2, S>(rows);
}

// Lane k of the result is the sum of the lanes of rows[k]: a transposition that adds as it goes.
template <typename S, int D = kLanes<S> / 2>
DSR_INLINE Vec<S> sum_rows(Vec<S>* rows) {
  constexpr int V = kLanes<S>;
  using Lanes = std::make_integer_sequence<int, V>;
  DSR_UNROLL for (int i = 0; i < D; ++i) rows[i] =
      Exchange<D, V>::low(rows[i], rows[i + D], Lanes{}) +
      Exchange<D, V>::high(rows[i], rows[i + D], Lanes{});
  if constexpr (D > 1) {
    return sum_rows<S, D / 2>(rows);
  } else {
    return rows[0];
  }
}

}  // namespace dsr::cpu::DSR_ISA
