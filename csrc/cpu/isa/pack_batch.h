// Packing a unit whose lanes run along the batch: squares of (images x pixels) or (images x
// channels) are transposed, so that an element of the packed source is one pixel of V images.
#pragma once

#include "cpu/isa/shuffle.h"
#include "cpu/isa/source.h"
#include "cpu/isa/unit.h"

namespace dsr::cpu::DSR_ISA {

// The rows of the source that a unit needs, where each of their pixels goes in a packed channel,
// and which elements of a packed channel no pixel fills.
struct PixelMap {
  int64_t first_row, rows;  // of the source
  int32_t* target;          // [rows * width], in elements; l.plane - 1 where no tap reads it
  int32_t* zeros;           // [zero_count], in elements
  int64_t zero_count;
};

static PixelMap map_pixels(const PackLayout& l, const Unit& unit, char* memory) {
  PixelMap map{l.height, 0, reinterpret_cast<int32_t*>(memory), nullptr, 0};
  const int64_t stored_rows = unit.rows + l.halo_rows, elements = l.channel_stride();
  int64_t last_row = -1;
  for (const PackLayout::Phase& phase : l.phases) {
    const int64_t from = most(0, l.first_row + unit.row);
    const int64_t to = least(phase.height, l.first_row + unit.row + stored_rows) - 1;
    if (from > to) continue;
    map.first_row = least(map.first_row, phase.row + l.step_h * from);
    last_row = most(last_row, phase.row + l.step_h * to);
  }
  map.rows = most(0, last_row - map.first_row + 1);
  const int64_t pixels = map.rows * l.width;
  map.zeros = map.target + pixels;
  for (int64_t j = 0; j < pixels; ++j) map.target[j] = static_cast<int32_t>(l.plane - 1);
  for (int64_t e = 0; e < elements; ++e) map.zeros[e] = static_cast<int32_t>(e);
  for (size_t f = 0; f < l.phases.size(); ++f) {
    const PackLayout::Phase& phase = l.phases[f];
    for (int64_t r = 0; r < stored_rows; ++r) {
      const int64_t row = l.first_row + unit.row + r;
      if (row < 0 || row >= phase.height) continue;
      int32_t* pixel = map.target + (phase.row + l.step_h * row - map.first_row) * l.width;
      for (int64_t q = 0; q < l.pitch; ++q) {
        const int64_t col = l.first_col + q;
        if (col < 0 || col >= phase.width) continue;
        const int64_t element = static_cast<int64_t>(f) * l.plane + r * l.pitch + q;
        pixel[phase.col + l.step_w * col] = static_cast<int32_t>(element);
        map.zeros[element] = -1;
      }
    }
  }
  for (int64_t e = 0; e < elements; ++e)
    if (map.zeros[e] >= 0) map.zeros[map.zero_count++] = map.zeros[e];
  return map;
}

// Up to V scalars of up to V images as vectors, zero where there is no more.
template <typename S, typename From>
DSR_INLINE void load_square(From from, int64_t image_stride, int64_t images, int64_t count,
                            Vec<S>* square) {
  constexpr int V = kLanes<S>;
  if (images == V && count == V) {
    DSR_UNROLL for (int i = 0; i < V; ++i) square[i] = load_as<S>(from + i * image_stride);
    return;
  }
  for (int i = 0; i < V; ++i) {
    square[i] = Vec<S>{};
    if (i >= images) continue;
    if (count == V) {
      square[i] = load_as<S>(from + i * image_stride);
    } else {
      for (int64_t e = 0; e < count; ++e) square[i][e] = value_of<S>(from[i * image_stride + e]);
    }
  }
}

// Pixels adjacent in memory: V of one channel at a time. `stretch` pixels lie together.
template <typename S, typename From>
static void pack_pixels(From source, const Strides4& s, const PackLayout& l, const Unit& unit,
                        const PixelMap& map, S* packed) {
  constexpr int V = kLanes<S>;
  const bool joined = s.h == l.width;
  const int64_t rows = joined ? 1 : map.rows, stretch = joined ? map.rows * l.width : l.width;
  for (int64_t c = 0; c < l.channels; ++c) {
    S* plane = packed + c * l.channel_stride() * V;
    const int64_t ahead = c + 1 < l.channels ? s.c : 0;
    for (int64_t r = 0; r < rows; ++r) {
      const From from = of_channel(source + (c * s.c + r * s.h), c);
      const int32_t* target = map.target + r * l.width;
      for (int64_t j = 0; j < stretch; j += V) {
        const int64_t count = least(V, stretch - j);
        Vec<S> square[V];
        load_square<S>(from + j, s.n, unit.images, count, square);
        for (int64_t i = 0; i < unit.images; ++i)
          __builtin_prefetch(address_of(from) + j + i * s.n + ahead, 0, 2);
        transpose<S>(square);
        if (count == V) {
          DSR_UNROLL for (int e = 0; e < V; ++e) store(plane + target[j + e] * V, square[e]);
        } else {
          for (int64_t e = 0; e < count; ++e) store(plane + target[j + e] * V, square[e]);
        }
      }
    }
  }
}

// The same where the scalars are fewer than V channels from `first` on.
template <typename S, typename From>
DSR_INLINE void load_last_channels(From from, int64_t first, int64_t image_stride, int64_t images,
                                   int64_t count, Vec<S>* square) {
  for (int i = 0; i < kLanes<S>; ++i) square[i] = Vec<S>{};
  for (int64_t e = 0; e < count; ++e) {
    const From channel = of_channel(from + e, first + e);
    for (int64_t i = 0; i < images; ++i) square[i][e] = value_of<S>(channel[i * image_stride]);
  }
}

// Channels adjacent in memory: V of one pixel at a time.
template <typename S, typename From>
static void pack_channels(From source, const Strides4& s, const PackLayout& l, const Unit& unit,
                          const PixelMap& map, S* packed) {
  constexpr int V = kLanes<S>;
  const int64_t stride = l.channel_stride() * V;
  for (int64_t r = 0; r < map.rows; ++r) {
    for (int64_t w = 0; w < l.width; ++w) {
      const int64_t target = map.target[r * l.width + w];
      if (target == l.plane - 1) continue;
      const From from = source + (r * s.h + w * s.w);
      for (int64_t c = 0; c < l.channels; c += V) {
        const int64_t count = least(V, l.channels - c);
        Vec<S> square[V];
        if (count == V) {
          load_square<S>(of_channels(from + c, c), s.n, unit.images, count, square);
        } else {
          load_last_channels<S>(from + c, c, s.n, unit.images, count, square);
        }
        transpose<S>(square);
        for (int64_t e = 0; e < count; ++e)
          store(packed + (c + e) * stride + target * V, square[e]);
      }
    }
  }
}

// Any strides: one scalar at a time.
template <typename S, typename From>
static void pack_scalars(From source, const Strides4& s, const PackLayout& l, const Unit& unit,
                         const PixelMap& map, S* packed) {
  constexpr int V = kLanes<S>;
  for (int64_t c = 0; c < l.channels; ++c) {
    S* plane = packed + c * l.channel_stride() * V;
    for (int64_t r = 0; r < map.rows; ++r) {
      for (int64_t w = 0; w < l.width; ++w) {
        S* to = plane + map.target[r * l.width + w] * V;
        const From from = of_channel(source + (c * s.c + r * s.h + w * s.w), c);
        for (int64_t i = 0; i < V; ++i) to[i] = i < unit.images ? value_of<S>(from[i * s.n]) : S{0};
      }
    }
  }
}

// Fills the packed buffer with one unit; `map_memory` holds pixel_map_bytes().
template <typename S, typename From>
static void pack_batch(From source, const Strides4& strides, const PackLayout& l, const Unit& unit,
                       char* map_memory, S* packed) {
  const PixelMap map = map_pixels(l, unit, map_memory);
  constexpr int V = kLanes<S>;
  for (int64_t c = 0; c < l.channels; ++c)
    for (int64_t z = 0; z < map.zero_count; ++z)
      store(packed + (c * l.channel_stride() + map.zeros[z]) * V, Vec<S>{});
  source += unit.image * strides.n + map.first_row * strides.h;
  if (strides.c == 1 && l.channels >= V / 2) {
    pack_channels(source, strides, l, unit, map, packed);
  } else if (strides.w == 1) {
    pack_pixels(source, strides, l, unit, map, packed);
  } else {
    pack_scalars(source, strides, l, unit, map, packed);
  }
}

}  // namespace dsr::cpu::DSR_ISA
