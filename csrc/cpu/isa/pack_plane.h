// Packing a unit whose lanes run along the plane: computed in S, and kept as P (S, or bfloat16 for
// matrix units).
#pragma once

#include "cpu/isa/shuffle.h"
#include "cpu/isa/source.h"
#include "cpu/isa/unit.h"

namespace dsr::cpu::DSR_ISA {

// Whether rows are copied as they are, a whole matrix unit's row at once.
template <typename From>
#if defined(__AVX512F__)
constexpr bool copies_pairs = std::is_same_v<From, const BFloat16*>;
#else
constexpr bool copies_pairs = false;
#endif

// n elements as bfloat16 and then zeros, less than kMatrixPixels in all: where rows are written in
// order, the next ones overwrite what is too much.
template <typename From>
DSR_INLINE void copy_head(BFloat16* to, From from, int64_t n) {
#if defined(__AVX512F__)
  if constexpr (copies_pairs<From>) {
    for (int64_t j = 0; j < n; j += kMatrixPixels) {
      const int64_t left = least(n - j, kMatrixPixels);
      const auto mask = static_cast<__mmask32>((uint64_t{1} << left) - 1);
      _mm512_storeu_si512(to + j, _mm512_maskz_loadu_epi16(mask, from + j));
    }
    return;
  }
#endif
  constexpr int V = kLanes<float>;
  int64_t j = 0;
  for (; j + V <= n; j += V) store_as<float>(to + j, load_as<float>(from + j));
  if (j < n) store_as<float>(to + j, load_first(from + j, n - j));
}

// Rows of n elements whose zeros in between, `gap` elements, follow each of them.
template <typename From>
DSR_INLINE void copy_rows(BFloat16* to, From from, int64_t row_step, int64_t rows, int64_t n,
                          int64_t gap) {
  constexpr int64_t kWritten = copies_pairs<From> ? kMatrixPixels : kLanes<float>;
  const int64_t covered = ceil_div(n, kWritten) * kWritten - n;
  for (int64_t r = 0; r < rows; ++r, to += n + gap, from += row_step) {
    copy_head(to, from, n);
    for (int64_t z = covered; z < gap; z += kMatrixPixels)
      std::memset(to + n + z, 0, kMatrixPixels * sizeof(BFloat16));
  }
}

// One row of one channel: [margin] data [margin], `pitch` elements.
template <typename S, typename P, typename From>
DSR_INLINE void pack_row(From from, int64_t stride, int64_t lead, int64_t n, int64_t pitch,
                         P* __restrict to) {
  const auto element = [&](int64_t i) { return element_of<S, P>(value_of<S>(from[i])); };
  for (int64_t j = 0; j < lead; ++j) to[j] = P{};
  if (stride == 1) {
    if constexpr (std::is_same_v<S, P>) {
      copy_in(to + lead, from, n);
    } else {
      copy_head(to + lead, from, n);
    }
  } else if (stride == 2) {  // a constant stride, which the compiler may vectorize
    for (int64_t j = 0; j < n; ++j) to[lead + j] = element(j * 2);
  } else {
    for (int64_t j = 0; j < n; ++j) to[lead + j] = element(j * stride);
  }
  for (int64_t j = lead + n; j < pitch; ++j) to[j] = P{};
}

// The same row of `channels` channels from `first` on, which are adjacent in the source
// (channels_last, linear layers): squares of vectors are transposed. `from` is at channel `first`.
template <typename S, typename P, typename From>
DSR_INLINE void pack_row_of_channels(From from, int64_t stride, int64_t lead, int64_t n,
                                     int64_t pitch, int64_t first, int64_t channels,
                                     int64_t channel_stride, P* to) {
  constexpr int V = kLanes<S>;
  for (int64_t c = 0; c < channels; ++c) {
    P* row = to + c * channel_stride;
    for (int64_t j = 0; j < lead; ++j) row[j] = P{};
    for (int64_t j = lead + n; j < pitch; ++j) row[j] = P{};
  }
  to += lead;
  for (int64_t j = 0; j < n; j += V) {
    for (int64_t c = 0; c < channels; c += V) {
      const int64_t pixels = least(V, n - j), count = least(V, channels - c);
      if (pixels == V && count == V) {
        const From pixels_from = of_channels(from + (j * stride + c), first + c);
        Vec<S> square[V];
        DSR_UNROLL for (int i = 0; i < V; ++i) square[i] = load_as<S>(pixels_from + i * stride);
        transpose<S>(square);
        DSR_UNROLL for (int i = 0; i < V; ++i)
            store_as<S>(to + (c + i) * channel_stride + j, square[i]);
      } else {
        for (int64_t k = 0; k < count; ++k) {
          const From channel = of_channel(from + (j * stride + c + k), first + c + k);
          for (int64_t i = 0; i < pixels; ++i)
            to[(c + k) * channel_stride + j + i] =
                element_of<S, P>(value_of<S>(channel[i * stride]));
        }
      }
    }
  }
}

// One phase of channels [first, first + count), from their first row on; `source` is at the first.
template <typename S, typename P, typename From>
static void pack_phase(From source, const Strides4& strides, const PackLayout& l,
                       const PackLayout::Phase& phase, const Unit& unit, int64_t first,
                       int64_t count, int64_t channel_stride, P* plane) {
  const int64_t stored_rows = unit.rows + l.halo_rows, step = l.step_w * strides.w;
  const int64_t lead = least(most(-l.first_col, 0), l.pitch), skip = most(l.first_col, 0);
  const int64_t n = most(0, least(phase.width - skip, l.pitch - lead));
  for (int64_t g = 0; g < unit.images; ++g) {
    const From image = source + ((unit.image + g) * strides.n + phase.row * strides.h +
                                 (phase.col + skip * l.step_w) * strides.w);
    if constexpr (!std::is_same_v<S, P>) {
      if (count == 1 && step == 1) {
        const int64_t top = unit.row + l.first_row;
        const int64_t above = least(most(-top, 0), stored_rows);
        const int64_t rows = most(0, least(stored_rows, phase.height - top) - above);
        P* to = plane + g * l.image_rows * l.pitch;
        zero(to, above * l.pitch + lead);
        copy_rows(to + above * l.pitch + lead,
                  of_channel(image + (top + above) * l.step_h * strides.h, first),
                  l.step_h * strides.h, rows, n, l.pitch - n);
        const int64_t filled = above + rows;
        zero(to + filled * l.pitch, (stored_rows - filled) * l.pitch);
        continue;
      }
    }
    for (int64_t r = 0; r < stored_rows; ++r) {
      const int64_t row = unit.row + l.first_row + r;
      const bool inside = row >= 0 && row < phase.height;
      const From from = image + (inside ? row * l.step_h * strides.h : 0);
      P* to = plane + (g * l.image_rows + r) * l.pitch;
      if (count > 1) {
        pack_row_of_channels<S>(from, step, lead, inside ? n : 0, l.pitch, first, count,
                                channel_stride, to);
      } else if (inside) {
        pack_row<S>(of_channel(from, first), step, lead, n, l.pitch, to);
      } else {
        zero(to, l.pitch);
      }
    }
  }
}

// Whether a unit's elements are its source pixels in order, without margins, one step apart
// (pointwise kernels, linear layers): then the unit is one row.
DSR_INLINE bool is_one_row(const Strides4& s, const PackLayout& l, const Unit& unit) {
  const PackLayout::Phase& phase = l.phases[0];
  return l.phases.size() == 1 && l.step_h == 1 && l.step_w == 1 && l.halo_rows == 0 &&
         l.halo_cols == 0 && l.first_row == 0 && l.first_col == 0 && l.pitch == phase.width &&
         (l.image_rows == phase.height || unit.images == 1) &&
         unit.row + unit.rows <= phase.height && (unit.rows == 1 || s.h == l.pitch * s.w) &&
         (unit.images == 1 || s.n == l.image_rows * l.pitch * s.w || l.image_rows * l.pitch == 1);
}

// Fills the packed buffer with one unit: its rows, and the zeros behind the last one that its taps
// and the lanes of the last vector, or a matrix unit's last pixels, reach (less than a row, and
// those).
template <typename S, typename P, typename From>
static void pack_plane(From source, const Strides4& strides, const PackLayout& l, const Unit& unit,
                       P* packed) {
  constexpr int64_t kLast = std::is_same_v<S, P> ? kLanes<S> : kMatrixPixels;
  const int64_t phases = static_cast<int64_t>(l.phases.size());
  const int64_t channel_stride = phases * l.plane;
  const int64_t end = ((unit.images - 1) * l.image_rows + unit.rows + l.halo_rows) * l.pitch;
  const int64_t tail = least(l.plane - end, l.pitch + kLast);
  const bool one_row = is_one_row(strides, l, unit);
  const int64_t row_step = l.image_rows * l.pitch == 1 ? strides.n : strides.w;
  // Adjacent channels are read a cache line at a time.
  constexpr int64_t kLine = kCacheLine / sizeof(float);
  const int64_t block = strides.c == 1 && (strides.w != 1 || l.phases[0].width == 1) ? kLine : 1;
  for (int64_t c = 0; c < l.channels; c += block) {
    const int64_t count = least(block, l.channels - c);
    if (one_row) {
      const From from = source + (unit.image * strides.n + unit.row * strides.h + c * strides.c);
      P* to = packed + c * channel_stride;
      if (count > 1) {
        pack_row_of_channels<S>(from, row_step, 0, end, end, c, count, channel_stride, to);
      } else {
        pack_row<S>(of_channel(from, c), row_step, 0, end, end, to);
      }
    } else {
      for (int64_t f = 0; f < phases; ++f)
        pack_phase<S>(source + c * strides.c, strides, l, l.phases[f], unit, c, count,
                      channel_stride, packed + c * channel_stride + f * l.plane);
    }
    for (int64_t plane = c * phases; plane < (c + count) * phases; ++plane)
      zero(packed + plane * l.plane + end, tail);
  }
  zero(packed + l.channels * channel_stride, int64_t{kSlack});
}

}  // namespace dsr::cpu::DSR_ISA
