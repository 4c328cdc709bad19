// Forward and grad-input with lanes along the plane: the work of one unit.
#pragma once

#include "cpu/isa/block_tile.h"
#include "cpu/isa/pack.h"
#include "cpu/isa/store_plane.h"

namespace dsr::cpu::DSR_ISA {

// The work of one unit, lanes along the plane.
template <typename Sink>
class GatherPlane {
  using S = typename Sink::Scalar;
  using Destination = typename Sink::Destination;

 public:
  GatherPlane(const GatherArgs<S>& args, char* workspace)
      : args_(args),
        plan_(*args.plan),
        large_(passes_caches(args)),
        sink_(args, cut_part(&workspace, unit_sums_bytes(plan_, sizeof(S)))) {
    packed_ =
        reinterpret_cast<S*>(cut_part(&workspace, packed_bytes(plan_, plan_.source, sizeof(S))));
    accumulators_ = reinterpret_cast<S*>(cut_part(&workspace, accumulator_bytes(plan_, sizeof(S))));
  }

  // Destination channels [first, last) of one unit.
  void run(const Unit& unit, const Ahead& next, int64_t first, int64_t last) {
    ahead_ = next;
    pack(args_.source, plan_, plan_.source, unit, nullptr, packed_);
    for (int64_t k = 0; k < static_cast<int64_t>(plan_.destination.classes.size()); ++k) {
      const DestinationClass& target = plan_.destination.classes[k];
      const int64_t rows = least(unit.rows, target.rows - unit.row);
      if (rows <= 0 || target.cols <= 0) continue;
      const PackLayout& l = plan_.source;
      const int64_t elements =
          ((unit.images - 1) * l.image_rows + rows - 1) * l.pitch + target.cols;
      const int64_t vectors = ceil_div(elements, kLanes<S>);
      const int64_t count = ceil_div(vectors, plan_.tile.cols);
      for (int64_t i = 0; i < count; ++i) {
        const int64_t begin = boundary(vectors, i, count), end = boundary(vectors, i + 1, count);
        tile(unit, k, begin * kLanes<S>, static_cast<int>(end - begin), first, last);
      }
    }
    sink_.end_unit(unit.index, first, last);
  }

 private:
  void tile(const Unit& unit, int64_t k, int64_t first_element, int vectors, int64_t first,
            int64_t last) {
    Run runs[kMaxTileElements];
    const int64_t width = vectors * kLanes<S>;
    const int found = find_runs(plan_, plan_.destination.classes[k], unit,
                                args_.destination_strides, first_element, width, runs);
    if (found == 0) return;
    const int64_t table = plan_.destination.classes[k].table,
                  blocks = table < 0 ? 1 : plan_.block.count;
    const bool grouped = plan_.has_groups() && table >= 0;
    // One run of whole vectors goes straight from the registers to the destination.
    const bool direct = Sink::kPlain && std::is_same_v<S, Destination> && found == 1 &&
                        runs[0].step == 1 && runs[0].length == width && !grouped;
    const bool streams = direct && large_ && runs[0].to % kLanes<S> == 0;
    for (int64_t d = first; d < last; d += plan_.strip.channels) {
      const int64_t channels = least(plan_.strip.channels, last - d);
      const Strides4& s = args_.destination_strides;
      Destination* to = static_cast<Destination*>(args_.destination) + d * s.c;
      if (grouped) accumulate_strip(table, first_element, vectors, d, channels);
      for (int64_t b = 0; b < blocks && !grouped; ++b) {
        const bool out = direct && b + 1 == blocks;
        const auto accumulate_tile = gather_tile<S>(plan_, 1, vectors);
        accumulate_tile({.packed = packed_ + first_element,
                         .packed_row = 0,
                         .offsets = plan_.offsets.data(),
                         .values = args_.values,
                         .bias = args_.bias ? args_.bias + d : nullptr,
                         .bounds = plan_.segments(table, b, d),
                         .channels = channels,
                         .first = b == 0,
                         .accumulators = accumulators_,
                         .channel_step = width,
                         .row_step = 0,
                         .col_step = kLanes<S>,
                         .results = out ? reinterpret_cast<S*>(to + runs[0].to) : accumulators_,
                         .result_channel = out ? s.c : width,
                         .streams = out && streams,
                         .ahead = &ahead_});
      }
      if (!direct) store_plane(accumulators_, width, d, channels, runs, found, to, s.c, sink_);
    }
  }

  // The groups of one tile and strip.
  void accumulate_strip(int64_t table, int64_t first_element, int vectors, int64_t d,
                        int64_t channels) {
    const int32_t* range = plan_.groups_of(table, d);
    const auto accumulate_groups = group_tile<S>(vectors);
    accumulate_groups({.packed = packed_ + first_element,
                       .packed_channel = plan_.source.channel_stride(),
                       .first = plan_.groups.data() + range[0],
                       .last = plan_.groups.data() + range[1],
                       .targets = plan_.offsets.data(),
                       .values = args_.values,
                       .accumulators = accumulators_,
                       .channels = channels,
                       .channel_step = vectors * kLanes<S>,
                       .col_step = kLanes<S>,
                       .ahead = &ahead_});
  }

  const GatherArgs<S>& args_;
  const GatherPlan& plan_;
  const bool large_;
  Sink sink_;
  Ahead ahead_;
  S* packed_;
  S* accumulators_;
};

}  // namespace dsr::cpu::DSR_ISA
