// One unit of a gather whose lanes run along the batch.
#pragma once

#include "cpu/isa/pack_batch.h"
#include "cpu/isa/store_batch.h"
#include "cpu/isa/tile.h"

namespace dsr::cpu::DSR_ISA {

template <typename S, typename Source, typename Destination, typename Tiles>
class GatherBatch {
 public:
  GatherBatch(const GatherArgs<S>& args, const Tiles& tiles, char* workspace)
      : args_(args), plan_(*args.plan), tiles_(tiles) {
    packed_ =
        reinterpret_cast<S*>(cut_part(&workspace, packed_bytes(plan_, plan_.source, sizeof(S))));
    accumulators_ = reinterpret_cast<S*>(cut_part(&workspace, accumulator_bytes(plan_, sizeof(S))));
    map_memory_ = cut_part(&workspace, pixel_map_bytes(plan_, plan_.source));
  }

  // Destination channels [first, last) of one unit: strips of a tile's rows, each stored as soon as
  // it is done.
  void run(const Unit& unit, const Ahead& next, int64_t first, int64_t last) {
    ahead_ = next;
    pack_batch(static_cast<const Source*>(args_.source), args_.source_strides, plan_.source, unit,
               map_memory_, packed_);
    const int64_t cols = plan_.classes[0].cols;
    const int64_t down = (unit.rows + plan_.tile_rows - 1) / plan_.tile_rows;
    const int64_t across = (cols + plan_.strip_cols - 1) / plan_.strip_cols;
    for (int64_t i = 0; i < down; ++i) {
      const int64_t row = part(unit.rows, i, down), rows = part(unit.rows, i + 1, down) - row;
      for (int64_t j = 0; j < across; ++j) {
        const Range range{part(cols, j, across), part(cols, j + 1, across)};
        for (int64_t d = first; d < last; d += plan_.destination_block)
          strip(unit, row, rows, range, d, least(plan_.destination_block, last - d));
      }
    }
  }

 private:
  struct Range {
    int64_t begin, end;
  };

  // `row` counts from the unit's first.
  void strip(const Unit& unit, int64_t row, int64_t rows, Range cols, int64_t d, int64_t channels) {
    const int64_t top = (unit.row + row) * plan_.step_h, left = cols.begin * plan_.step_w;
    const int64_t height = least(plan_.destination_height - top, rows * plan_.step_h);
    const int64_t width =
        least(plan_.destination_width - left, (cols.end - cols.begin) * plan_.step_w);
    const int64_t count = (cols.end - cols.begin + plan_.tile_cols - 1) / plan_.tile_cols;
    for (int64_t t = 0; t < count; ++t) {
      const int64_t begin = cols.begin + part(cols.end - cols.begin, t, count);
      const int64_t end = cols.begin + part(cols.end - cols.begin, t + 1, count);
      for (int64_t b = 0; b < plan_.blocks; ++b)
        for (const DestinationClass& k : plan_.classes)
          tile(k, unit, row, rows, {begin, end}, cols.begin, width, b, d, channels);
    }
    Destination* to = static_cast<Destination*>(args_.destination) +
                      unit.image * args_.destination_strides.n + d * args_.destination_strides.c +
                      top * args_.destination_strides.h + left * args_.destination_strides.w;
    store_batch(Strip<S>{accumulators_, strip_elements(plan_) * V, channels, height, width,
                         width * V, unit.images},
                args_.destination_strides, to);
  }

  // One tile of one class and block, for all channels of the strip.
  void tile(const DestinationClass& k, const Unit& unit, int64_t row, int64_t rows, Range cols,
            int64_t strip_begin, int64_t strip_width, int64_t b, int64_t d, int64_t channels) {
    rows = least(rows, k.rows - unit.row - row);
    cols.end = least(cols.end, k.cols);
    if (rows <= 0 || cols.end <= cols.begin || (k.table < 0 && b > 0)) return;
    const int64_t pixel = (row * plan_.source.pitch + cols.begin) * V;
    const int64_t at = k.row0 * strip_width + (cols.begin - strip_begin) * plan_.step_w + k.col0;
    tiles_.at(rows, cols.end - cols.begin)(
        {packed_ + pixel, plan_.source.pitch * V, plan_.offsets.data(), args_.values,
         args_.bias ? args_.bias + d : nullptr, plan_.segments(k.table, b, d), channels, b == 0,
         accumulators_ + at * V, strip_elements(plan_) * V, plan_.step_h * strip_width * V,
         plan_.step_w * V, accumulators_ + at * V, strip_elements(plan_) * V, false, &ahead_});
  }

  static constexpr int V = kLanes<S>;
  const GatherArgs<S>& args_;
  const GatherPlan& plan_;
  const Tiles& tiles_;
  Ahead ahead_;
  S* packed_;
  S* accumulators_;
  char* map_memory_;
};

}  // namespace dsr::cpu::DSR_ISA
