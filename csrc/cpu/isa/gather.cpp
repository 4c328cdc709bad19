// Forward and grad-input ("gather": every destination pixel collects what it needs from the packed
// source). Units are shared out to threads; each thread packs its own, computes it tile by tile and
// stores it.
#include "cpu/isa/ahead.h"
#include "cpu/isa/entry.h"
#include "cpu/isa/gather_row.h"
#include "cpu/isa/gather_tile.h"
#include "cpu/isa/pack_batch.h"
#include "cpu/isa/pack_plane.h"
#include "cpu/isa/store_batch.h"
#include "cpu/isa/store_plane.h"

namespace dsr::cpu::DSR_ISA {
namespace {

// The inner loop for every size of a tile: accumulate_tile in gather_tile.h.
template <typename S>
constexpr auto kTiles =
    TileTable<TileFunction<S>,
              kLimits.tile_vectors>::template of<GatherTiles<S>::template Kernel>();

// The work of one unit, lanes along the batch.
template <typename S, typename Source, typename Destination>
class GatherBatch {
 public:
  GatherBatch(const GatherArgs<S>& args, char* workspace) : args_(args), plan_(*args.plan) {
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
                         .channels = channels,
                         .rows = height,
                         .cols = width,
                         .row_step = width * kLanes<S>,
                         .images = unit.images},
                args_.destination_strides, to);
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
    const auto accumulate_tile = kTiles<S>.at(rows, cols.end - cols.begin);
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
  Ahead ahead_;
  S* packed_;
  S* accumulators_;
  char* map_memory_;
};

// The work of one unit, lanes along the plane.
template <typename S, typename Source, typename Destination>
class GatherPlane {
 public:
  GatherPlane(const GatherArgs<S>& args, char* workspace)
      : args_(args), plan_(*args.plan), large_(passes_caches(args)) {
    packed_ =
        reinterpret_cast<S*>(cut_part(&workspace, packed_bytes(plan_, plan_.source, sizeof(S))));
    accumulators_ = reinterpret_cast<S*>(cut_part(&workspace, accumulator_bytes(plan_, sizeof(S))));
  }

  // Destination channels [first, last) of one unit.
  void run(const Unit& unit, const Ahead& next, int64_t first, int64_t last) {
    ahead_ = next;
    pack_plane(static_cast<const Source*>(args_.source), args_.source_strides, plan_.source, unit,
               packed_);
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
    // One run of whole vectors goes straight from the registers to the destination.
    const bool direct = std::is_same_v<S, Destination> && found == 1 && runs[0].step == 1 &&
                        runs[0].length == width;
    const bool streams = direct && large_ && runs[0].to % kLanes<S> == 0;
    for (int64_t d = first; d < last; d += plan_.strip.channels) {
      const int64_t channels = least(plan_.strip.channels, last - d);
      const Strides4& s = args_.destination_strides;
      Destination* to = static_cast<Destination*>(args_.destination) + d * s.c;
      for (int64_t b = 0; b < blocks; ++b) {
        const bool out = direct && b + 1 == blocks;
        const auto accumulate_tile = kTiles<S>.at(1, vectors);
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
      if (!direct) store_plane(accumulators_, width, channels, runs, found, to, s.c);
    }
  }

  const GatherArgs<S>& args_;
  const GatherPlan& plan_;
  const bool large_;
  Ahead ahead_;
  S* packed_;
  S* accumulators_;
};

// Where there are few units for the threads, the destination channels are shared out too, each
// thread packing for itself.
int64_t channel_parts(int64_t units, int threads, int64_t channels) {
  const bool even = units % threads == 0 ? units >= threads : units >= 8 * threads;
  return even ? 1 : least(threads, channels);
}

template <typename Worker, typename Source, typename S>
void run_units(const GatherArgs<S>& args) {
  const GatherPlan& plan = *args.plan;
  const int64_t share = gather_bytes(plan, sizeof(S));
  const int64_t units = plan.units(args.n), channels = plan.destination.channels;
  const int64_t parts = channel_parts(units, args.threads, channels);
  const int64_t steps = tiles_of_a_unit(plan, kLanes<S>) * plan.block.count *
                        static_cast<int64_t>(plan.destination.classes.size()) * channels;
#pragma omp parallel num_threads(args.threads)
  {
    const FlushSubnormals flush;
    Worker worker(args, args.workspace + thread_index() * share);
    // Static, so that a thread's next item is the one that follows.
#pragma omp for schedule(static)
    for (int64_t item = 0; item < units * parts; ++item) {
      Ahead next;
      if (parts == 1 && item + 1 < units)
        next = Ahead(static_cast<const Source*>(args.source), args.source_strides, plan.source,
                     unit_at(plan, args.n, item + 1), steps);
      worker.run(unit_at(plan, args.n, item / parts), next, boundary(channels, item % parts, parts),
                 boundary(channels, item % parts + 1, parts));
    }
    fence();
  }
}

template <typename S, typename Source, typename Destination>
void run_lanes(const GatherArgs<S>& args) {
  if constexpr (std::is_same_v<S, float>) {
    if (args.plan->lanes == Lanes::kRow)
      return run_units<GatherRow<Source, Destination>, Source>(args);
  }
  if (args.plan->lanes == Lanes::kBatch) {
    run_units<GatherBatch<S, Source, Destination>, Source>(args);
  } else {
    run_units<GatherPlane<S, Source, Destination>, Source>(args);
  }
}

}  // namespace

template <>
void gather<float>(const GatherArgs<float>& args) {
  const bool low_in = args.source_element == Element::kBFloat16;
  const bool low_out = args.destination_element == Element::kBFloat16;
  if (low_in && low_out) return run_lanes<float, BFloat16, BFloat16>(args);
  if (low_in) return run_lanes<float, BFloat16, float>(args);
  if (low_out) return run_lanes<float, float, BFloat16>(args);
  run_lanes<float, float, float>(args);
}

template <>
void gather<double>(const GatherArgs<double>& args) {
  run_lanes<double, double, double>(args);
}

}  // namespace dsr::cpu::DSR_ISA
