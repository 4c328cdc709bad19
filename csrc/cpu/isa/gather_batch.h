// Forward and grad-input with lanes along the batch: the work of one unit.
#pragma once

#include "cpu/isa/block_tile.h"
#include "cpu/isa/pack.h"
#include "cpu/isa/store_batch.h"

namespace dsr::cpu::DSR_ISA {

// The work of one unit, lanes along the batch.
template <typename Sink>
class GatherBatch {
  using S = typename Sink::Scalar;
  using Destination = typename Sink::Destination;

 public:
  GatherBatch(const GatherArgs<S>& args, char* workspace)
      : args_(args),
        plan_(*args.plan),
        sink_(args, cut_part(&workspace, unit_sums_bytes(plan_, sizeof(S)))) {
    packed_ =
        reinterpret_cast<S*>(cut_part(&workspace, packed_bytes(plan_, plan_.source, sizeof(S))));
    accumulators_ = reinterpret_cast<S*>(cut_part(&workspace, accumulator_bytes(plan_, sizeof(S))));
    map_memory_ = cut_part(&workspace, pixel_map_bytes(plan_, plan_.source));
  }

  // Destination channels [first, last) of one unit: strips of a tile's rows, each stored as soon as
  // it is done.
  void run(const Unit& unit, const Ahead& next, int64_t first, int64_t last) {
    ahead_ = next;
    pack(args_.source, plan_, plan_.source, unit, map_memory_, packed_);
    const int64_t cols = plan_.destination.classes[0].cols;
    const int64_t down = ceil_div(unit.rows, plan_.tile.rows);
    const int64_t across = ceil_div(cols, plan_.strip.cols);
    for (int64_t i = 0; i < down; ++i) {
      const int64_t row = boundary(unit.rows, i, down),
                    rows = boundary(unit.rows, i + 1, down) - row;
      for (int64_t j = 0; j < across; ++j) {
        const Range range{boundary(cols, j, across), boundary(cols, j + 1, across)};
        for (int64_t d = first; d < last; d += plan_.strip.channels)
          strip(unit, row, rows, range, d, least(plan_.strip.channels, last - d));
      }
    }
    sink_.end_unit(unit.index, first, last);
  }

 private:
  struct Range {
    int64_t begin, end;
  };

  // `row` counts from the unit's first.
  void strip(const Unit& unit, int64_t row, int64_t rows, Range cols, int64_t d, int64_t channels) {
    const int64_t top = (unit.row + row) * plan_.destination.step_h,
                  left = cols.begin * plan_.destination.step_w;
    const int64_t height = least(plan_.destination.height - top, rows * plan_.destination.step_h);
    const int64_t width =
        least(plan_.destination.width - left, (cols.end - cols.begin) * plan_.destination.step_w);
    const int64_t count = ceil_div(cols.end - cols.begin, plan_.tile.cols);
    for (int64_t t = 0; t < count; ++t) {
      const int64_t begin = cols.begin + boundary(cols.end - cols.begin, t, count);
      const int64_t end = cols.begin + boundary(cols.end - cols.begin, t + 1, count);
      for (int64_t b = 0; b < plan_.block.count; ++b)
        for (const DestinationClass& k : plan_.destination.classes)
          tile(k, unit, row, rows, {begin, end}, cols.begin, width, b, d, channels);
    }
    Destination* to = static_cast<Destination*>(args_.destination) +
                      unit.image * args_.destination_strides.n + d * args_.destination_strides.c +
                      top * args_.destination_strides.h + left * args_.destination_strides.w;
    store_batch(Strip<S>{.accumulators = accumulators_,
                         .channel_step = strip_elements(plan_) * kLanes<S>,
                         .first_channel = d,
                         .channels = channels,
                         .rows = height,
                         .cols = width,
                         .row_step = width * kLanes<S>,
                         .images = unit.images},
                args_.destination_strides, to, sink_);
  }

  // One tile of one class and block, for all channels of the strip.
  void tile(const DestinationClass& k, const Unit& unit, int64_t row, int64_t rows, Range cols,
            int64_t strip_begin, int64_t strip_width, int64_t b, int64_t d, int64_t channels) {
    rows = least(rows, k.rows - unit.row - row);
    cols.end = least(cols.end, k.cols);
    if (rows <= 0 || cols.end <= cols.begin || (k.table < 0 && b > 0)) return;
    const int64_t pixel = (row * plan_.source.pitch + cols.begin) * kLanes<S>;
    const int64_t at =
        k.row0 * strip_width + (cols.begin - strip_begin) * plan_.destination.step_w + k.col0;
    if (plan_.has_groups() && k.table >= 0) {
      const int32_t* range = plan_.groups_of(k.table, d);
      const auto accumulate_groups = group_tile<S>(cols.end - cols.begin);
      return accumulate_groups({.packed = packed_ + pixel,
                                .packed_channel = plan_.source.channel_stride() * kLanes<S>,
                                .first = plan_.groups.data() + range[0],
                                .last = plan_.groups.data() + range[1],
                                .targets = plan_.offsets.data(),
                                .values = args_.values,
                                .accumulators = accumulators_ + at * kLanes<S>,
                                .channels = channels,
                                .channel_step = strip_elements(plan_) * kLanes<S>,
                                .col_step = plan_.destination.step_w * kLanes<S>,
                                .ahead = &ahead_});
    }
    const auto accumulate_tile = gather_tile<S>(plan_, rows, cols.end - cols.begin);
    accumulate_tile({.packed = packed_ + pixel,
                     .packed_row = plan_.source.pitch * kLanes<S>,
                     .offsets = plan_.offsets.data(),
                     .values = args_.values,
                     .bias = args_.bias ? args_.bias + d : nullptr,
                     .bounds = plan_.segments(k.table, b, d),
                     .channels = channels,
                     .first = b == 0,
                     .accumulators = accumulators_ + at * kLanes<S>,
                     .channel_step = strip_elements(plan_) * kLanes<S>,
                     .row_step = plan_.destination.step_h * strip_width * kLanes<S>,
                     .col_step = plan_.destination.step_w * kLanes<S>,
                     .results = accumulators_ + at * kLanes<S>,
                     .result_channel = strip_elements(plan_) * kLanes<S>,
                     .streams = false,
                     .ahead = &ahead_});
  }

  const GatherArgs<S>& args_;
  const GatherPlan& plan_;
  Sink sink_;
  Ahead ahead_;
  S* packed_;
  S* accumulators_;
  char* map_memory_;
};

}  // namespace dsr::cpu::DSR_ISA
