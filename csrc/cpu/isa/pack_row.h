// Packing where lanes run along rows: every row of an image takes whole vectors, or a
// power-of-two share of one, zero beyond the image.
#pragma once

#include "cpu/isa/shuffle.h"
#include "cpu/isa/source.h"
#include "cpu/isa/unit.h"

namespace dsr::cpu::DSR_ISA {

template <int First, int... J>
DSR_INLINE Vec<float> every_second(Vec<float> a, Vec<float> b, std::integer_sequence<int, J...>) {
  return __builtin_shufflevector(a, b, (First + 2 * J)...);
}
using RowLanes = std::make_integer_sequence<int, kLanes<float>>;

// n source pixels, `step` (1 or 2) elements apart, to a slot of `lanes` lanes. Whole vectors are
// written: zeros behind a narrow slot, where what comes next is yet to be written.
template <typename From>
DSR_INLINE void fill_slot(From from, int64_t step, int64_t n, int64_t lanes, float* to) {
  constexpr int V = kLanes<float>;
  for (int64_t j = 0; j < lanes; j += V) {
    const int64_t count = most(0, least(V, n - j));
    Vec<float> row{};
    if (step == 1) {
      row = load_first(from + j, count);
    } else if (count > 0) {
      const int64_t reach = 2 * count - 1;  // elements that may be read
      const Vec<float> low = load_first(from + 2 * j, least(V, reach));
      const Vec<float> high = reach > V ? load_first(from + 2 * j + V, reach - V) : Vec<float>{};
      row = every_second<0>(low, high, RowLanes{});
    }
    store(to + j, row);
  }
}

// Packed rows [0, rows): the slots of the unit's images, one after the other.
template <typename From>
static void fill_rows(From from, int64_t row_stride, const Strides4& s, int64_t step, int64_t n,
                      const GatherPlan& plan, const Unit& unit, int64_t pitch, int64_t rows,
                      float* to) {
  const int64_t slots = plan.unit.images, lanes = plan.row.slot_lanes;
  for (int64_t r = 0; r < rows; ++r, from += row_stride, to += pitch) {
    for (int64_t g = 0; g < slots; ++g) {
      float* slot = to + g * lanes;
      if (s.w == 1 && g < unit.images) {
        fill_slot(from + g * s.n, step, n, lanes, slot);
        continue;
      }
      for (int64_t j = 0; j < lanes; ++j) {
        const bool there = g < unit.images && j < n;
        slot[j] = there ? value_of<float>(from[g * s.n + j * step * s.w]) : 0.0f;
      }
    }
  }
}

// Rows [0, rows) of images that fill their slots, V / L rows of V / L images at a time. Returns how
// many rows that was.
template <int L, typename From>
static int64_t fill_groups(From from, int64_t image_stride, int64_t vectors, int64_t pitch,
                           int64_t rows, float* to) {
  constexpr int V = kLanes<float>, K = V / L;
  int64_t r = 0;
  for (; r + K <= rows; r += K) {
    for (int64_t v = 0; v < vectors; ++v) {
      Vec<float> square[K];
      DSR_UNROLL for (int i = 0; i < K; ++i) square[i] =
          load_as<float>(from + ((v * K + i) * image_stride + r * L));
      transpose_groups<L, V / 2, float>(square);
      DSR_UNROLL for (int i = 0; i < K; ++i) store(to + (r + i) * pitch + v * V, square[i]);
    }
  }
  return r;
}

// One column phase of step 2, of images twice as wide as their slots: a packed vector takes every
// second element of two source vectors, of one image or (slots of half a vector) of two.
template <int First, typename From>
static void fill_halves(From from, int64_t row_stride, int64_t image_stride, const GatherPlan& plan,
                        int64_t pitch, int64_t rows, float* to) {
  constexpr int V = kLanes<float>;
  const bool two_images = plan.row.slot_lanes < V;
  const int64_t slot_vectors = two_images ? 1 : plan.row.slot_lanes / V;
  const int64_t apart = two_images ? image_stride : V;
  for (int64_t r = 0; r < rows; ++r, from += row_stride, to += pitch) {
    for (int64_t v = 0; v < plan.row.vectors; ++v) {
      const int64_t image = two_images ? 2 * v : v / slot_vectors;
      const From at = from + (image * image_stride + v % slot_vectors * 2 * V);
      store(to + v * V,
            every_second<First>(load_as<float>(at), load_as<float>(at + apart), RowLanes{}));
    }
  }
}

template <typename From>
static void pack_rows(From source, const Strides4& s, const GatherPlan& plan, const PackLayout& l,
                      const Unit& unit, float* packed) {
  const int64_t stored_rows = unit.rows + l.halo_rows,
                phases = static_cast<int64_t>(l.phases.size());
  constexpr int V = kLanes<float>;
  const bool plain = phases == 1 && l.step_h == 1 && l.step_w == 1 && s.w == 1 && s.h == l.width;
  const bool grouped = plain && plan.row.slot_lanes == l.width && unit.images == plan.unit.images;
  const bool halved = l.step_w == 2 && s.w == 1 && l.width == 2 * plan.row.slot_lanes &&
                      2 * plan.row.slot_lanes >= V && unit.images == plan.unit.images;
  const bool whole = plain && plan.unit.images == 1 && l.pitch == l.width;
  for (int64_t c = 0; c < l.channels; ++c) {
    for (int64_t f = 0; f < phases; ++f) {
      const PackLayout::Phase& phase = l.phases[f];
      const From image =
          of_channel(source + (unit.image * s.n + c * s.c + phase.row * s.h + phase.col * s.w), c);
      float* plane = packed + (c * phases + f) * l.plane;
      const int64_t top = l.first_row + unit.row;
      const int64_t from = least(stored_rows, most(0, -top));
      const int64_t to = most(from, least(stored_rows, phase.height - top));
      zero(plane, from * l.pitch);
      const From source_rows = image + (top + from) * l.step_h * s.h;
      float* packed_rows = plane + from * l.pitch;
      if (whole) {
        copy_in(packed_rows, source_rows, (to - from) * l.pitch);
      } else {
        int64_t done = 0;
        if (grouped && plan.row.slot_lanes == V / 2)
          done = fill_groups<V / 2>(source_rows, s.n, plan.row.vectors, l.pitch, to - from,
                                    packed_rows);
        if (grouped && plan.row.slot_lanes == V / 4)
          done = fill_groups<V / 4>(source_rows, s.n, plan.row.vectors, l.pitch, to - from,
                                    packed_rows);
        if (halved) {
          const auto fill = phase.col == 0 ? fill_halves<0, From> : fill_halves<1, From>;
          fill(source_rows - phase.col, l.step_h * s.h, s.n, plan, l.pitch, to - from, packed_rows);
          done = to - from;
        }
        fill_rows(source_rows + done * l.step_h * s.h, l.step_h * s.h, s, l.step_w, phase.width,
                  plan, unit, l.pitch, to - from - done, packed_rows + done * l.pitch);
      }
      zero(plane + to * l.pitch, (stored_rows - to) * l.pitch);
    }
  }
}

}  // namespace dsr::cpu::DSR_ISA
