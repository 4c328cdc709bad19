// Storing a strip whose lanes run along the batch: squares are transposed back on the way out.
#pragma once

#include "cpu/isa/shuffle.h"
#include "cpu/isa/sink.h"
#include "cpu/isa/unit.h"

namespace dsr::cpu::DSR_ISA {

// Accumulators [channels][rows][cols][V] of a rectangle of the destination.
template <typename S>
struct Strip {
  const S* accumulators;
  int64_t channel_step;  // scalars from one channel to the next
  int64_t first_channel, channels, rows, cols;
  int64_t row_step;  // scalars from one row to the next
  int64_t images;
};

// V pixels of up to V images, or `count` < V of them.
template <typename S, typename E, typename Lanes>
DSR_INLINE void store_square(const Vec<S>* square, int64_t count, int64_t images, E* to,
                             int64_t image_stride, Lanes& lanes) {
  constexpr int V = kLanes<S>;
  if (images == V && count == V) {
    DSR_UNROLL for (int i = 0; i < V; ++i) lanes.put(to + i * image_stride, square[i]);
    return;
  }
  for (int64_t i = 0; i < images; ++i) {
    if (count == V) {
      lanes.put(to + i * image_stride, square[i]);
    } else {
      lanes.put_head(to + i * image_stride, square[i], count);
    }
  }
}

// Pixels adjacent in memory. `destination` is the rectangle's first pixel of the first image.
template <typename S, typename E, typename Sink>
static void store_pixels(const Strip<S>& strip, const Strides4& s, E* destination, Sink& sink) {
  constexpr int V = kLanes<S>;
  const bool joined = s.h == strip.cols && strip.row_step == strip.cols * V;
  const int64_t rows = joined ? 1 : strip.rows;
  const int64_t stretch = joined ? strip.rows * strip.cols : strip.cols;
  for (int64_t o = 0; o < strip.channels; ++o) {
    const int64_t ahead = o + 1 < strip.channels ? s.c : 0;
    auto lanes = sink.of_channel(strip.first_channel + o);
    for (int64_t r = 0; r < rows; ++r) {
      const S* from = strip.accumulators + o * strip.channel_step + r * strip.row_step;
      E* to = destination + o * s.c + r * s.h;
      for (int64_t j = 0; j < stretch; j += V) {
        const int64_t count = least(V, stretch - j);
        Vec<S> square[V];
        for (int64_t i = 0; i < strip.images; ++i)
          __builtin_prefetch(to + j + i * s.n + ahead, 1, 3);
        DSR_UNROLL for (int e = 0; e < V; ++e) square[e] =
            e < count ? load(from + (j + e) * V) : Vec<S>{};
        transpose<S>(square);
        store_square<S>(square, count, strip.images, to + j, s.n, lanes);
      }
    }
    lanes.done();
  }
}

// Channels adjacent in memory.
template <typename S, typename E, typename Sink>
static void store_channels(const Strip<S>& strip, const Strides4& s, E* destination, Sink& sink) {
  constexpr int V = kLanes<S>;
  for (int64_t r = 0; r < strip.rows; ++r) {
    for (int64_t w = 0; w < strip.cols; ++w) {
      const S* from = strip.accumulators + r * strip.row_step + w * V;
      E* to = destination + r * s.h + w * s.w;
      for (int64_t o = 0; o < strip.channels; o += V) {
        const int64_t count = least(V, strip.channels - o);
        Vec<S> square[V];
        DSR_UNROLL for (int e = 0; e < V; ++e) square[e] =
            e < count ? load(from + (o + e) * strip.channel_step) : Vec<S>{};
        transpose<S>(square);
        auto lanes = sink.of_channels(strip.first_channel + o, count);
        store_square<S>(square, count, strip.images, to + o, s.n, lanes);
        lanes.done();
      }
    }
  }
}

template <typename S, typename E, typename Sink>
static void store_batch(const Strip<S>& strip, const Strides4& s, E* destination, Sink& sink) {
  constexpr int V = kLanes<S>;
  if (s.c == 1 && strip.channels >= V / 2) return store_channels(strip, s, destination, sink);
  if (s.w == 1) return store_pixels(strip, s, destination, sink);
  for (int64_t o = 0; o < strip.channels; ++o) {
    auto lanes = sink.of_channel(strip.first_channel + o);
    for (int64_t r = 0; r < strip.rows; ++r)
      for (int64_t w = 0; w < strip.cols; ++w)
        for (int64_t i = 0; i < strip.images; ++i)
          lanes.put_one(
              destination + i * s.n + o * s.c + r * s.h + w * s.w,
              strip.accumulators[o * strip.channel_step + r * strip.row_step + w * V + i]);
    lanes.done();
  }
}

}  // namespace dsr::cpu::DSR_ISA
