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
  } else if (stride == 2) {  // a constant the compiler turns into shuffles
    for (int64_t j = 0; j < n; ++j) to[lead + j] = from[j * 2];
  } else {
    for (int64_t j = 0; j < n; ++j) to[lead + j] = from[j * stride];
  }
  for (int64_t j = lead + n; j < pitch; ++j) to[j] = 0;
}

// The same row of every channel, where channels are adjacent in the source (channels_last).
template <typename S>
DSR_INLINE void pack_row_channels_last(const S* from, int64_t stride, int64_t lead, int64_t n,
                                       int64_t pitch, int64_t channels, int64_t channel_stride,
                                       S* to) {
  constexpr int64_t kBlock =
      16;  // channels at a time: a line of the source, few enough lines of the target
  for (int64_t c0 = 0; c0 < channels; c0 += kBlock) {
    const int64_t c1 = least(c0 + kBlock, channels);
    for (int64_t c = c0; c < c1; ++c) {
      S* row = to + c * channel_stride;
      for (int64_t j = 0; j < lead; ++j) row[j] = 0;
      for (int64_t j = lead + n; j < pitch; ++j) row[j] = 0;
    }
    for (int64_t j = 0; j < n; ++j)
      for (int64_t c = c0; c < c1; ++c) to[c * channel_stride + lead + j] = from[j * stride + c];
  }
}

template <typename S>
static void pack(const S* source, const Strides4& strides, const PackLayout& l, const Unit& unit,
                 S* packed) {
  const int64_t phases = static_cast<int64_t>(l.phases.size()), channel_stride = phases * l.plane;
  const int64_t stored_rows = unit.rows + l.halo_rows;
  const int64_t end = ((unit.images - 1) * l.image_rows + stored_rows) * l.pitch;
  const bool channels_last = strides.c == 1 && strides.w != 1 && l.channels > 1;
  for (int64_t c = 0; c < (channels_last ? 1 : l.channels); ++c) {
    for (int64_t f = 0; f < phases; ++f) {
      const PackLayout::Phase& phase = l.phases[f];
      const int64_t lead = least(most(-l.first_col, 0), l.pitch), skip = most(l.first_col, 0);
      const int64_t n = most(0, least(phase.width - skip, l.pitch - lead));
      S* plane = packed + c * channel_stride + f * l.plane;
      for (int64_t g = 0; g < unit.images; ++g) {
        const S* image = source + (unit.image + g) * strides.n + c * strides.c +
                         phase.row * strides.h + (phase.col + skip * l.step_w) * strides.w;
        for (int64_t r = 0; r < stored_rows; ++r) {
          const int64_t row = unit.row + l.first_row + r;
          const bool inside = row >= 0 && row < phase.height;
          const S* from = image + (inside ? row * l.step_h * strides.h : 0);
          S* to = plane + (g * l.image_rows + r) * l.pitch;
          if (channels_last) {
            pack_row_channels_last(from, l.step_w * strides.w, lead, inside ? n : 0, l.pitch,
                                   l.channels, channel_stride, to);
          } else if (inside) {
            pack_row(from, l.step_w * strides.w, lead, n, l.pitch, to);
          } else {
            zero(to, l.pitch);
          }
        }
      }
    }
  }
  for (int64_t plane = 0; plane < l.channels * phases; ++plane)
    zero(packed + plane * l.plane + end, l.plane - end);
  zero(packed + l.channels * channel_stride, int64_t{kSlack});
}

}  // namespace dsr::cpu::DSR_ISA
