// Storing where lanes run along rows: the reverse of pack_row.h. All elements are one channel's.
#pragma once

#include "cpu/isa/pack_row.h"
#include "cpu/isa/sink.h"

namespace dsr::cpu::DSR_ISA {

template <int First, int... J>
DSR_INLINE Vec<float> interleaved(Vec<float> a, Vec<float> b, std::integer_sequence<int, J...>) {
  return __builtin_shufflevector(a, b, ((First + J) / 2 + (J % 2 ? kLanes<float> : 0))...);
}

// The reverse of fill_groups, for the destination.
template <int L, typename E, typename Lanes>
DSR_INLINE int64_t drain_groups(const float* from, int64_t vectors, int64_t rows,
                                int64_t image_stride, bool streams, E* to, Lanes& lanes) {
  constexpr int V = kLanes<float>, K = V / L;
  int64_t r = 0;
  for (; r + K <= rows; r += K) {
    for (int64_t v = 0; v < vectors; ++v) {
      Vec<float> square[K];
      DSR_UNROLL for (int i = 0; i < K; ++i) square[i] = load(from + ((r + i) * vectors + v) * V);
      transpose_groups<L, V / 2, float>(square);
      DSR_UNROLL for (int i = 0; i < K; ++i)
          lanes.put(to + (v * K + i) * image_stride + r * L, square[i], streams);
    }
  }
  return r;
}

// Two column classes of rows twice as wide as their slots, interleaved: the reverse of fill_halves.
template <typename E, typename Lanes>
DSR_INLINE void drain_halves(const float* even, const float* odd, const GatherPlan& plan,
                             int64_t rows, int64_t row_stride, int64_t image_stride, bool streams,
                             E* to, Lanes& lanes) {
  constexpr int V = kLanes<float>;
  const bool two_images = plan.row.slot_lanes < V;
  const int64_t slot_vectors = two_images ? 1 : plan.row.slot_lanes / V;
  const int64_t apart = two_images ? image_stride : V;
  for (int64_t r = 0; r < rows; ++r, to += row_stride) {
    for (int64_t v = 0; v < plan.row.vectors; ++v, even += V, odd += V) {
      const Vec<float> a = load(even), b = load(odd);
      const int64_t image = two_images ? 2 * v : v / slot_vectors;
      E* at = to + image * image_stride + v % slot_vectors * 2 * V;
      lanes.put(at, interleaved<0>(a, b, RowLanes{}), streams);
      lanes.put(at + apart, interleaved<V>(a, b, RowLanes{}), streams);
    }
  }
}

// The first n elements, if a vector has so many.
template <typename E, typename Lanes>
DSR_INLINE void put_up_to(Lanes& lanes, E* to, Vec<float> v, int64_t n) {
  n >= kLanes<float> ? lanes.put(to, v) : lanes.put_head(to, v, n);
}

// n destination pixels of a slot. Two column classes are interleaved (`odd` is null for one).
template <typename E, typename Lanes>
DSR_INLINE void drain_slot(const float* even, const float* odd, int64_t n, E* to, Lanes& lanes) {
  constexpr int V = kLanes<float>;
  if (!odd) {
    for (int64_t j = 0; j < n; j += V) put_up_to(lanes, to + j, load(even + j), n - j);
    return;
  }
  for (int64_t j = 0; j < n; j += 2 * V) {
    const Vec<float> a = load(even + j / 2), b = load(odd + j / 2);
    put_up_to(lanes, to + j, interleaved<0>(a, b, RowLanes{}), n - j);
    if (n - j > V) put_up_to(lanes, to + j + V, interleaved<V>(a, b, RowLanes{}), n - j - V);
  }
}

}  // namespace dsr::cpu::DSR_ISA
