// Packing a unit of the source: a step of its own, so that whatever is to happen to the input on
// the way in never touches the inner loops.
#pragma once

#include "cpu/gather_plan.h"
#include "cpu/isa/simd.h"

namespace dsr::cpu::DSR_ISA {

// A unit of work: `images` images from `image`, destination rows from `row` on.
struct Unit {
  int64_t image, images;
  int64_t row, rows;
};

DSR_INLINE Unit unit_at(const GatherPlan& plan, int64_t n, int64_t index) {
  const int64_t image = index / plan.bands * plan.images;
  const int64_t row = index % plan.bands * plan.band_rows;
  return {image, least(plan.images, n - image), row, plan.band_rows};
}

// One row of one channel: [margin] data [margin], `pitch` elements.
template <typename S>
DSR_INLINE void pack_row(const S* __restrict from, int64_t stride, int64_t lead, int64_t n,
                         int64_t pitch, S* __restrict to) {
  for (int64_t j = 0; j < lead; ++j) to[j] = 0;
  if (stride == 1) {
    copy(to + lead, from, n);
  } else if (stride == 2) {  // a constant stride, which the compiler may vectorize
    for (int64_t j = 0; j < n; ++j) to[lead + j] = from[j * 2];
  } else {
    for (int64_t j = 0; j < n; ++j) to[lead + j] = from[j * stride];
  }
  for (int64_t j = lead + n; j < pitch; ++j) to[j] = 0;
}

// The same row of `channels` channels that are adjacent in the source (channels_last, linear
// layers).
template <typename S>
DSR_INLINE void pack_row_of_channels(const S* from, int64_t stride, int64_t lead, int64_t n,
                                     int64_t pitch, int64_t channels, int64_t channel_stride,
                                     S* to) {
  for (int64_t c = 0; c < channels; ++c) {
    S* row = to + c * channel_stride;
    for (int64_t j = 0; j < lead; ++j) row[j] = 0;
    for (int64_t j = lead + n; j < pitch; ++j) row[j] = 0;
  }
  for (int64_t j = 0; j < n; ++j)
    for (int64_t c = 0; c < channels; ++c) to[c * channel_stride + lead + j] = from[j * stride + c];
}

// One phase of channels [channel, channel + count), from their first row on.
template <typename S>
static void pack_phase(const S* source, const Strides4& strides, const PackLayout& l,
                       const PackLayout::Phase& phase, const Unit& unit, int64_t count,
                       int64_t channel_stride, S* plane) {
  const int64_t stored_rows = unit.rows + l.halo_rows, step = l.step_w * strides.w;
  const int64_t lead = least(most(-l.first_col, 0), l.pitch), skip = most(l.first_col, 0);
  const int64_t n = most(0, least(phase.width - skip, l.pitch - lead));
  for (int64_t g = 0; g < unit.images; ++g) {
    const S* image = source + (unit.image + g) * strides.n + phase.row * strides.h +
                     (phase.col + skip * l.step_w) * strides.w;
    for (int64_t r = 0; r < stored_rows; ++r) {
      const int64_t row = unit.row + l.first_row + r;
      const bool inside = row >= 0 && row < phase.height;
      const S* from = image + (inside ? row * l.step_h * strides.h : 0);
      S* to = plane + (g * l.image_rows + r) * l.pitch;
      if (count > 1) {
        pack_row_of_channels(from, step, lead, inside ? n : 0, l.pitch, count, channel_stride, to);
      } else if (inside) {
        pack_row(from, step, lead, n, l.pitch, to);
      } else {
        zero(to, l.pitch);
      }
    }
  }
}

// Fills the packed buffer with one unit: its rows, and the zeros behind the last one that its taps
// and the lanes of the last vector reach (less than a row, and a vector).
template <typename S>
static void pack(const S* source, const Strides4& strides, const PackLayout& l, const Unit& unit,
                 S* packed) {
  const int64_t phases = static_cast<int64_t>(l.phases.size());
  const int64_t channel_stride = phases * l.plane;
  const int64_t end = ((unit.images - 1) * l.image_rows + unit.rows + l.halo_rows) * l.pitch;
  const int64_t tail = least(l.plane - end, l.pitch + kLanes<S>);
  // Adjacent channels are read a cache line at a time.
  const int64_t block = strides.c == 1 && (strides.w != 1 || l.phases[0].width == 1) ? 16 : 1;
  for (int64_t c = 0; c < l.channels; c += block) {
    const int64_t count = least(block, l.channels - c);
    for (int64_t f = 0; f < phases; ++f)
      pack_phase(source + c * strides.c, strides, l, l.phases[f], unit, count, channel_stride,
                 packed + c * channel_stride + f * l.plane);
    for (int64_t plane = c * phases; plane < (c + count) * phases; ++plane)
      zero(packed + plane * l.plane + end, tail);
  }
  zero(packed + l.channels * channel_stride, int64_t{kSlack});
}

}  // namespace dsr::cpu::DSR_ISA
