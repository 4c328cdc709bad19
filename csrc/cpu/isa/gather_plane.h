// One unit of a gather whose lanes run along the plane.
#pragma once

#include "cpu/isa/pack_plane.h"
#include "cpu/isa/store_plane.h"
#include "cpu/isa/tile.h"

namespace dsr::cpu::DSR_ISA {

template <typename S, typename Source, typename Destination, typename Tiles>
class GatherPlane {
 public:
  GatherPlane(const GatherArgs<S>& args, const Tiles& tiles, char* workspace)
      : args_(args), plan_(*args.plan), tiles_(tiles), large_(passes_caches(args)) {
    packed_ =
        reinterpret_cast<S*>(cut_part(&workspace, packed_bytes(plan_, plan_.source, sizeof(S))));
    accumulators_ = reinterpret_cast<S*>(cut_part(&workspace, accumulator_bytes(plan_, sizeof(S))));
  }

  // Destination channels [first, last) of one unit.
  void run(const Unit& unit, const Ahead& next, int64_t first, int64_t last) {
    ahead_ = next;
    pack_plane(static_cast<const Source*>(args_.source), args_.source_strides, plan_.source, unit,
               packed_);
    for (int64_t k = 0; k < static_cast<int64_t>(plan_.classes.size()); ++k) {
      const DestinationClass& target = plan_.classes[k];
      const int64_t rows = least(unit.rows, target.rows - unit.row);
      if (rows <= 0 || target.cols <= 0) continue;
      const PackLayout& l = plan_.source;
      const int64_t elements =
          ((unit.images - 1) * l.image_rows + rows - 1) * l.pitch + target.cols;
      const int64_t vectors = (elements + kLanes<S> - 1) / kLanes<S>;
      const int64_t count = (vectors + plan_.tile_cols - 1) / plan_.tile_cols;
      for (int64_t i = 0; i < count; ++i) {
        const int64_t begin = part(vectors, i, count), end = part(vectors, i + 1, count);
        tile(unit, k, begin * kLanes<S>, static_cast<int>(end - begin), first, last);
      }
    }
  }

 private:
  void tile(const Unit& unit, int64_t k, int64_t first_element, int vectors, int64_t first,
            int64_t last) {
    Run runs[kMaxTileElements];
    const int64_t width = vectors * kLanes<S>;
    const int found = find_runs(plan_, plan_.classes[k], unit, args_.destination_strides,
                                first_element, width, runs);
    if (found == 0) return;
    const int64_t table = plan_.classes[k].table, blocks = table < 0 ? 1 : plan_.blocks;
    // One run of whole vectors goes straight from the registers to the destination.
    const bool direct = std::is_same_v<S, Destination> && found == 1 && runs[0].step == 1 &&
                        runs[0].length == width;
    const bool streams = direct && large_ && runs[0].to % kLanes<S> == 0;
    for (int64_t d = first; d < last; d += plan_.destination_block) {
      const int64_t channels = least(plan_.destination_block, last - d);
      const Strides4& s = args_.destination_strides;
      Destination* to = static_cast<Destination*>(args_.destination) + d * s.c;
      for (int64_t b = 0; b < blocks; ++b) {
        const bool out = direct && b + 1 == blocks;
        tiles_.at(1, vectors)({packed_ + first_element, 0, plan_.offsets.data(), args_.values,
                               args_.bias ? args_.bias + d : nullptr, plan_.segments(table, b, d),
                               channels, b == 0, accumulators_, width, 0, kLanes<S>,
                               out ? reinterpret_cast<S*>(to + runs[0].to) : accumulators_,
                               out ? s.c : width, out && streams, &ahead_});
      }
      if (!direct) store_plane(accumulators_, width, channels, runs, found, to, s.c);
    }
  }

  const GatherArgs<S>& args_;
  const GatherPlan& plan_;
  const Tiles& tiles_;
  const bool large_;
  Ahead ahead_;
  S* packed_;
  S* accumulators_;
};

}  // namespace dsr::cpu::DSR_ISA
