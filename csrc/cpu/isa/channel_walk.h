// The walk of an elementwise kernel over a grid: chunk by chunk, vector by vector.
//
// Lanes run along pixels, with one channel's numbers in all of them; or, channels last, along
// channels. What is to be done is an Op:
//
//     Number               what it is computed in
//     kSums                how many sums a channel has (0: none)
//     Numbers              what it needs of the channels in a vector's lanes
//     Numbers one(at, c)               of a channel; its first element in the chunk is at `at`
//     Numbers several<kFull>(at, c, n) of n neighbouring channels; n is all lanes where kFull
//     step<kFull>(numbers, at, n, Vec<Number>* sums)   n elements from `at` on
//     finish(chunk, c, at, count, sums)   the sums of a channel over its `count` elements in a
//     chunk
#pragma once

#include "cpu/conv/kernels.h"
#include "cpu/isa/channel_lanes.h"
#include "cpu/isa/flush_subnormals.h"

namespace dsr::cpu::DSR_ISA {

// Vectors of sums that are kept at once: channels, or vectors of channels.
constexpr int kSlots = 64;
// Elements that are worth an item of work of their own.
constexpr int64_t kItemElements = 1 << 16;

struct Part {
  int64_t image, images, pixel, pixels;
  int64_t count() const { return images * pixels; }
};

DSR_INLINE Part part_at(const Grid& g, int64_t chunk) {
  if (g.pieces > 1) {
    const int64_t pixel = chunk % g.pieces * g.chunk_pixels;
    return {chunk / g.pieces, 1, pixel, least(g.chunk_pixels, g.pixels - pixel)};
  }
  const int64_t image = chunk * g.chunk_images;
  return {image, least(g.chunk_images, g.images - image), 0, g.pixels};
}

template <class Op>
using SumsOf = Vec<typename Op::Number>[Op::kSums > 0 ? Op::kSums : 1];

// The sum of each channel in a slot's lanes, handed over in double.
template <class Op>
DSR_INLINE void finish_lane(const Op& op, const SumsOf<Op>& sums, int lane, int64_t chunk,
                            int64_t c, int64_t at, int64_t count) {
  double of_channel[Op::kSums];
  for (int k = 0; k < Op::kSums; ++k) of_channel[k] = sums[k][lane];
  op.finish(chunk, c, at, count, of_channel);
}
template <class Op>
DSR_INLINE void finish_all_lanes(const Op& op, const SumsOf<Op>& sums, int64_t chunk, int64_t c,
                                 int64_t at, int64_t count) {
  double of_channel[Op::kSums];
  for (int k = 0; k < Op::kSums; ++k) {
    of_channel[k] = 0;
    for (int j = 0; j < kLanes<typename Op::Number>; ++j) of_channel[k] += sums[k][j];
  }
  op.finish(chunk, c, at, count, of_channel);
}

// A row of n neighbouring pixels of one channel. Two sets of sums are in flight.
template <class Op>
DSR_INLINE void walk_row(const Op& op, const typename Op::Numbers& numbers, int64_t at, int64_t n,
                         SumsOf<Op>& sums) {
  constexpr int V = kLanes<typename Op::Number>;
  SumsOf<Op> even, odd = {};
  for (int k = 0; k < Op::kSums; ++k) even[k] = sums[k];
  for (; n >= 2 * V; n -= 2 * V, at += 2 * V) {
    op.template step<true>(numbers, at, V, even);
    op.template step<true>(numbers, at + V, V, odd);
  }
  if (n >= V) {
    op.template step<true>(numbers, at, V, even);
    n -= V;
    at += V;
  }
  if (n > 0) op.template step<false>(numbers, at, n, odd);
  for (int k = 0; k < Op::kSums; ++k) sums[k] = even[k] + odd[k];
}

// `channels` channels from `first` on, of one chunk.
template <class Op>
static void walk_planes(const Grid& g, const Op& op, int64_t chunk, int64_t first,
                        int64_t channels) {
  const Part part = part_at(g, chunk);
  const auto row = [&](int64_t i, int64_t c) {
    return ((part.image + i) * g.channels + first + c) * g.pixels + part.pixel;
  };
  SumsOf<Op> sums[kSlots];
  if (Op::kSums > 0) std::memset(sums, 0, channels * sizeof(sums[0]));
  for (int64_t i = 0; i < part.images; ++i)
    for (int64_t c = 0; c < channels; ++c)
      walk_row(op, op.one(row(0, c), first + c), row(i, c), part.pixels, sums[c]);
  if constexpr (Op::kSums > 0) {
    for (int64_t c = 0; c < channels; ++c)
      finish_all_lanes(op, sums[c], chunk, first + c, row(0, c), part.count());
  }
}

// kRows pixels of one slot, `pitch` elements apart.
template <class Op, bool kFull, int kRows>
DSR_INLINE void walk_slot(const Op& op, int64_t chunk_at, int64_t at, int64_t pitch, int64_t c,
                          int64_t n, SumsOf<Op>& sums) {
  const auto numbers = op.template several<kFull>(chunk_at + c, c, n);
  DSR_UNROLL for (int r = 0; r < kRows; ++r)
      op.template step<kFull>(numbers, at + c + r * pitch, n, sums);
}
template <class Op, int kRows>
DSR_INLINE void walk_slots(const Op& op, int64_t chunk_at, int64_t at, int64_t pitch, int64_t first,
                           int64_t channels, SumsOf<Op>* sums) {
  constexpr int V = kLanes<typename Op::Number>;
  int64_t done = 0;
  for (; done + V <= channels; done += V)
    walk_slot<Op, true, kRows>(op, chunk_at, at, pitch, first + done, V, *sums++);
  if (done < channels)
    walk_slot<Op, false, kRows>(op, chunk_at, at, pitch, first + done, channels - done, *sums);
}

// The same as walk_planes, channels last.
template <class Op>
static void walk_last(const Grid& g, const Op& op, int64_t chunk, int64_t first, int64_t channels) {
  constexpr int V = kLanes<typename Op::Number>, kRows = 4;
  const Part part = part_at(g, chunk);
  const int64_t begin = part.pixel, end = part.pixel + part.pixels;
  SumsOf<Op> sums[kSlots];
  if (Op::kSums > 0) std::memset(sums, 0, ceil_div(channels, V) * sizeof(sums[0]));
  const int64_t pitch = g.channels, chunk_at = begin * pitch;
  int64_t p = begin;
  for (; p + kRows <= end; p += kRows)
    walk_slots<Op, kRows>(op, chunk_at, p * pitch, pitch, first, channels, sums);
  for (; p < end; ++p) walk_slots<Op, 1>(op, chunk_at, p * pitch, pitch, first, channels, sums);
  if constexpr (Op::kSums > 0) {
    for (int64_t c = 0; c < channels; ++c)
      finish_lane(op, sums[c / V], static_cast<int>(c % V), chunk, first + c, chunk_at + first + c,
                  part.count());
  }
}

// Every chunk of every block of channels, shared out to threads.
template <class Op>
static void walk(const Grid& g, const Op& op, int threads) {
  const int64_t in_chunk = g.pieces > 1 ? g.chunk_pixels : g.chunk_images * g.pixels;
  const int64_t most_channels = g.channels_last
                                    ? kSlots * kLanes<typename Op::Number>
                                    : least(kSlots, most(1, kItemElements / most(1, in_chunk)));
  const int64_t blocks = ceil_div(g.channels, most_channels), items = g.chunks * blocks;
#pragma omp parallel num_threads(threads) if (threads > 1 && items > 1)
  {
    const FlushSubnormals flush;
#pragma omp for schedule(static)
    for (int64_t item = 0; item < items; ++item) {
      const int64_t chunk = item / blocks, first = item % blocks * most_channels;
      const int64_t channels = least(most_channels, g.channels - first);
      if (g.channels_last) {
        walk_last(g, op, chunk, first, channels);
      } else {
        walk_planes(g, op, chunk, first, channels);
      }
    }
    fence();
  }
}

// Whether an output is so large that no cache holds it until it is read, and lies so that every
// whole vector of it can go past the caches.
template <typename S, typename E>
static bool passes_caches(const Grid& g, const void* out) {
  constexpr int64_t kLargeBytes = 32 << 20;
  const int64_t row = g.channels_last ? g.channels : g.pixels;
  const int64_t bytes = g.images * g.channels * g.pixels * int64_t{sizeof(E)};
  return std::is_same_v<S, E> && bytes >= kLargeBytes && row % kLanes<S> == 0 &&
         reinterpret_cast<uintptr_t>(out) % kVectorBytes == 0;
}

// Calls run with a typed null pointer to what an element is stored as, beside numbers of S.
template <typename S, class Run>
static void with_element(Element element, Run run) {
  if constexpr (std::is_same_v<S, double>) {
    run(static_cast<double*>(nullptr));
  } else if (element == Element::kBFloat16) {
    run(static_cast<BFloat16*>(nullptr));
  } else {
    run(static_cast<float*>(nullptr));
  }
}

}  // namespace dsr::cpu::DSR_ISA
