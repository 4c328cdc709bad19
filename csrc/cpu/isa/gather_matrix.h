// Forward and grad-input on matrix units (Lanes::kMatrix): the work of one unit. Pixels lie as in
// Lanes::kPlane, in bfloat16.
#pragma once

#include "cpu/isa/matrix_tile.h"
#include "cpu/isa/pack.h"
#include "cpu/isa/store_plane.h"

namespace dsr::cpu::DSR_ISA {

template <typename Sink, typename MatrixUnit>
class GatherMatrix {
  using Destination = typename Sink::Destination;

 public:
  GatherMatrix(const GatherArgs<float>& args, char* workspace)
      : args_(args),
        plan_(*args.plan),
        sink_(args, cut_part(&workspace, unit_sums_bytes(plan_, sizeof(float)))) {
    packed_ = part<BFloat16>(&workspace, packed_bytes(plan_, plan_.source, sizeof(float)));
    accumulators_ = part<float>(&workspace, accumulator_bytes(plan_, sizeof(float)));
    pairs_ = part<BFloat16>(&workspace, pairs_bytes(plan_));
    tiles_ = part<BFloat16>(&workspace, window_bytes(plan_));
    if (plan_.has_groups()) clear_odd_channels();
  }

  // Destination channels [first, last) of one unit.
  void run(const Unit& unit, const Ahead& next, int64_t first, int64_t last) {
    ahead_ = next;
    pack_plane_in_bfloat16(args_.source, plan_.source, unit, packed_);
    if (plan_.has_groups()) pair_channels();
    for (const DestinationClass& target : plan_.destination.classes) {
      const int64_t rows = least(unit.rows, target.rows - unit.row);
      if (rows <= 0 || target.cols <= 0) continue;
      const PackLayout& l = plan_.source;
      const int64_t elements =
          ((unit.images - 1) * l.image_rows + rows - 1) * l.pitch + target.cols;
      const int64_t pieces = ceil_div(elements, kPixels);
      if (plan_.has_groups() && target.table >= 0) {
        for (int64_t d = first; d < last; d += plan_.strip.channels)
          window(unit, target, pieces, d, least(plan_.strip.channels, last - d));
      } else {
        tiles(unit, target, pieces, first, last);
      }
    }
    sink_.end_unit(unit.index, first, last);
  }

 private:
  template <typename T>
  static T* part(char** workspace, int64_t bytes) {
    return reinterpret_cast<T*>(cut_part(workspace, bytes));
  }

  // Forward, and pixels that no tap reaches.
  void tiles(const Unit& unit, const DestinationClass& target, int64_t pieces, int64_t first,
             int64_t last) {
    const int64_t at_once = plan_.tile.cols * kTileRows / kPixels, count = ceil_div(pieces, at_once);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t begin = boundary(pieces, i, count), end = boundary(pieces, i + 1, count);
      const int64_t width = (end - begin) * kPixels;
      Run runs[kMaxTileElements];
      const int found = find_runs(plan_, target, unit, args_.destination_strides, begin * kPixels,
                                  width, runs);
      for (int64_t d = first; found > 0 && d < last; d += plan_.strip.channels) {
        const int64_t channels = least(plan_.strip.channels, last - d);
        if (target.table < 0) {
          zero(accumulators_, channels * width);
        } else {
          for (int64_t b = 0; b < plan_.block.count; ++b)
            tile(target.table, begin * kPixels, end - begin, b, d, channels);
        }
        store(width, d, channels, runs, found);
      }
    }
  }

  void tile(int64_t table, int64_t first_element, int64_t pieces, int64_t b, int64_t d,
            int64_t channels) {
    const int32_t* bounds = plan_.segments(table, b, d);
    const auto accumulate_tile =
        pieces == 1 ? accumulate_matrix_tile<1, MatrixUnit> : accumulate_matrix_tile<2, MatrixUnit>;
    accumulate_tile(
        matrix_unit_,
        {.packed = packed_ + first_element,
         .offsets = plan_.offsets.data(),
         .weights = static_cast<const BFloat16*>(args_.tile_values),
         .bounds = bounds,
         .first_weight = plan_.first_tiles.data() + (bounds - plan_.bounds.data()),
         .bias = args_.bias ? args_.bias + d : nullptr,
         .channels = channels,
         .first = b == 0,
         .accumulators = accumulators_,
         .channel_step = pieces * kPixels,
         .ahead = &ahead_});
  }

  // Grad-input of one strip of destination channels, a window.
  void window(const Unit& unit, const DestinationClass& target, int64_t pieces, int64_t d,
              int64_t channels) {
    const int32_t* range = plan_.groups_of(target.table, d);
    const GatherPlan::Group* groups = plan_.groups.data();
    const BFloat16* values = static_cast<const BFloat16*>(args_.tile_values);
    for (int32_t g = range[0]; g < range[1]; ++g) {
      const int32_t begin = groups[g].begin;
      spread_group(plan_.offsets.data() + begin, values + int64_t{begin} * kTileRows,
                   groups[g + 1].begin - begin, tiles_ + (g - range[0]) * 2 * kTileHalves);
    }
    for (int64_t i = 0; i < pieces; ++i) {
      Run runs[kMaxTileElements];
      const int found = find_runs(plan_, target, unit, args_.destination_strides, i * kPixels,
                                  kPixels, runs);
      if (found == 0) continue;
      accumulate_window(matrix_unit_,
                        {.packed = pairs_ + i * kPixels * 2,
                         .pair_bytes = plan_.source.plane * 2 * int64_t{sizeof(BFloat16)},
                         .first = groups + range[0],
                         .last = groups + range[1],
                         .tiles = tiles_,
                         .accumulators = accumulators_,
                         .both = channels > kTileRows,
                         .ahead = &ahead_});
      store(kPixels, d, channels, runs, found);
    }
  }

  void store(int64_t width, int64_t d, int64_t channels, const Run* runs, int found) {
    const Strides4& s = args_.destination_strides;
    Destination* to = static_cast<Destination*>(args_.destination) + d * s.c;
    store_plane(accumulators_, width, d, channels, runs, found, to, s.c, sink_);
  }

  // Channels 2 c and 2 c + 1 side by side, pixel by pixel.
  void pair_channels() {
    const int64_t plane = plan_.source.plane, channels = plan_.source.channels;
    for (int64_t c = 0; c < channels; c += 2) {
      const BFloat16* even = packed_ + c * plane;
      const BFloat16* odd = even + plane;  // the last of an odd number is followed by zeros
      BFloat16* to = pairs_ + c * plane;
      for (int64_t m = 0; m < plane; m += kPixels) {
        const Pairs a = load_pairs(even + m), b = load_pairs(odd + m);
        const Pairs at_even = even_pairs(a, b), at_odd = odd_pairs(a, b);
        store_pairs(to + 2 * m, first_half(at_even, at_odd));
        store_pairs(to + 2 * m + kPixels, second_half(at_even, at_odd));
      }
    }
  }

  // A group spans 32 channels: those beyond the last are zero.
  void clear_odd_channels() {
    const int64_t plane = plan_.source.plane, channels = plan_.source.channels;
    const int64_t all = ceil_div(channels, kTileDepth) * kTileDepth;
    zero(pairs_ + channels * plane, (all - channels) * plane + kSlack);
  }

  const GatherArgs<float>& args_;
  const GatherPlan& plan_;
  Sink sink_;
  Ahead ahead_;
  MatrixUnit matrix_unit_;
  BFloat16* packed_;
  float* accumulators_;
  BFloat16* pairs_;
  BFloat16* tiles_;
};

}  // namespace dsr::cpu::DSR_ISA
