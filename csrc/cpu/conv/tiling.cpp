#include "cpu/conv/tiling.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/conv/layout.h"
#include "cpu/conv/matrix_plan.h"
#include "cpu/conv/plane_length.h"
#include "cpu/conv/workspace.h"
#include "cpu/dispatch.h"

namespace dsr::cpu {
namespace {

// Cycles, as measured (docs/performance.md). A vector operand comes from L1 or from L2; where it
// crosses a cache line it costs twice. A segment costs its accumulators' load and store and a loop.
constexpr double kL1Load = 0.6, kL2Load = 1.0, kL1Miss = 0.8, kCrossing = 1.9, kNonzero = 1.2;
constexpr double kAccumulator = 1.4, kSegment = 9, kTurn = 0.7, kFrame = 6;
// Where blocks share their operands, the multiply-add itself is what costs.
constexpr double kMultiplyAdd = 0.55;
// Shares of the caches: what a block may fill of L1, and a packed unit and its accumulators of L2.
constexpr double kL1Share = 0.86, kUnitShare = 0.45, kStripShare = 0.15;
constexpr double kGroupStripShare = 0.5;  // of L1, for the accumulators that a group passes
constexpr int64_t kMaxImages = 256;
constexpr int64_t kWidestBytes = 16 << 20;  // of one tile's packed source

struct Costs {
  const GatherPlan& plan;
  double steps;
  int64_t vector_bytes, lanes;  // lanes of a vector
  double l1, crossing;          // bytes; how much dearer a load is for its alignment

  // Bytes of one source channel under a tile of rows x cols vectors.
  double footprint(int64_t rows, int64_t cols) const {
    const PackLayout& l = plan.source;
    const double phases = static_cast<double>(l.phases.size());
    if (plan.lanes == Lanes::kRow)
      return phases * static_cast<double>((rows + l.halo_rows) * cols * vector_bytes);
    if (plan.lanes == Lanes::kBatch)
      return phases *
             static_cast<double>((rows + l.halo_rows) * (cols + l.halo_cols) * vector_bytes);
    const double scalars = static_cast<double>(cols * lanes + l.halo_rows * l.pitch + l.halo_cols);
    return phases * scalars * static_cast<double>(vector_bytes / lanes);
  }

  // Of one block.
  double segments() const {
    return static_cast<double>(plan.rows() *
                               std::max<int64_t>(1, static_cast<int64_t>(plan.tables.size())));
  }

  // Cycles for one vector FMA with a tile of `vectors` and the source cut into `blocks`.
  double per_fma(double vectors, double footprint, int64_t blocks) const {
    const double channels = std::ceil(static_cast<double>(plan.source.channels) / blocks);
    const double rows = segments();
    const double segment = steps / (rows * blocks);                // steps, on average
    const double together = static_cast<double>(plan.block_rows);  // multiply-adds of a load
    const double resident = std::min(1.0, l1 / (channels * footprint));
    const double missing = (1 - resident) * (1 - resident);
    const double load = crossing * (kL1Load + missing * kL1Miss);
    const double filled = plan.lanes == Lanes::kRow ? 1 : 1 - std::exp(-segment);  // not skipped
    const double turns = plan.lanes == Lanes::kRow ? 2 * (vectors * kTurn + kFrame) : 0;
    const double filling = channels * footprint / vector_bytes * kL2Load /
                           (rows * segment * vectors);  // of L1, once per tile and block
    const double sums = filled * vectors * kAccumulator / (segment * vectors);
    const double fixed = filled * (kSegment + turns) / (segment * vectors);
    return (plan.block_rows > 1 ? kMultiplyAdd : 0) + sums +
           (load + kNonzero / vectors + fixed + filling) / together;
  }
};

void consider(const Costs& costs, int64_t rows, int64_t cols, double vectors, GatherPlan* best) {
  const int64_t channels = costs.plan.source.channels;
  const double footprint = costs.footprint(rows, cols);
  const int64_t resident =
      std::clamp<int64_t>(static_cast<int64_t>(costs.l1 / footprint), 1, channels);
  int64_t previous = 0;
  for (int64_t wanted : {resident, resident * 3 / 2, resident * 2, resident * 4, channels}) {
    const int64_t blocks = ceil_div(channels, std::clamp<int64_t>(wanted, 1, channels));
    // Segments hold a non-zero each, at least: their bounds take memory too.
    if (blocks == previous ||
        (blocks > 1 && costs.segments() * static_cast<double>(blocks) > costs.steps))
      continue;
    previous = blocks;
    const double cost = costs.per_fma(vectors, footprint, blocks);
    if (cost >= best->cycles_per_fma) continue;
    best->cycles_per_fma = cost;
    best->tile.rows = rows;
    best->tile.cols = cols;
    best->block.channels = ceil_div(channels, blocks);
    best->block.count = ceil_div(channels, best->block.channels);
  }
}

// Sums of a tile in one channel, at most.
int64_t most_vectors(const GatherPlan& plan) {
  const Limits& limits = kernels().limits;
  if (plan.block_rows > 1) return limits.block_vectors;
  return plan.lanes == Lanes::kRow ? limits.row_tile_vectors : limits.tile_vectors;
}

void choose_tile(int64_t steps, int element_size, GatherPlan* plan) {
  const Limits& limits = kernels().limits;
  const int64_t lanes = limits.lanes(element_size), most = most_vectors(*plan);
  const DestinationClass& k = plan->destination.classes[0];
  const bool aligned = plan->lanes != Lanes::kPlane || plan->source.pitch == k.cols;
  const Costs costs{.plan = *plan,
                    .steps = static_cast<double>(std::max<int64_t>(1, steps)),
                    .vector_bytes = limits.vector_bytes,
                    .lanes = lanes,
                    .l1 = kL1Share * static_cast<double>(caches().l1),
                    .crossing = aligned ? 1.0 : kCrossing};
  plan->cycles_per_fma = std::numeric_limits<double>::infinity();
  if (plan->lanes == Lanes::kPlane) {
    // No wider than a unit's most images, nor than very many channels leave room for.
    const int64_t unit = ceil_div(kMaxImages * k.rows * k.cols, lanes);
    const int64_t channels =
        plan->source.channels * static_cast<int64_t>(plan->source.phases.size());
    const int64_t room = std::max<int64_t>(1, kWidestBytes / (channels * limits.vector_bytes));
    const bool single = plan->source.image_rows * plan->source.pitch == 1;
    for (int64_t cols = 1; cols <= std::min({most, unit, room}); ++cols) {
      // Single pixels (linear layers): units that a batch is likely to be a multiple of.
      if (single && (cols & (cols - 1)) != 0) continue;
      consider(costs, 1, cols, static_cast<double>(cols), plan);
    }
    return;
  }
  if (plan->lanes == Lanes::kRow) {
    for (int64_t cols : kRowVectors) {
      // Only narrow rows share a packed row: a wide one would make small batches wait for images.
      const int64_t slot = plan->row.slot_lanes;
      if (slot >= lanes ? cols * lanes != slot : cols * lanes < slot) continue;
      const int64_t of_vector = std::max<int64_t>(1, lanes / slot);  // narrow rows, one image's
      for (int64_t rows = 1; rows <= std::min<int64_t>(most / cols, k.rows); ++rows) {
        const bool whole = rows % of_vector == 0 || rows == k.rows;
        if (plan->block_rows > 1 && !whole && most / cols >= of_vector) continue;
        const double even = static_cast<double>(k.rows) / ceil_div(k.rows, rows);
        consider(costs, rows, cols, even * static_cast<double>(cols), plan);
      }
    }
    return;
  }
  const int64_t most_rows = plan->block_rows > 1 ? 1 : kMaxTileRows;
  for (int64_t rows = 1; rows <= std::min(most_rows, k.rows); ++rows) {
    for (int64_t cols = 1; cols <= std::min(most / rows, k.cols); ++cols) {
      if (cols > kMaxTileCols && rows > 1) break;
      const int64_t tiles = ceil_div(k.rows, rows) * ceil_div(k.cols, cols);
      consider(costs, rows, cols, static_cast<double>(k.rows * k.cols) / static_cast<double>(tiles),
               plan);
    }
  }
}

// kPlane: several small images, or a band of rows of a large one, to fit L2.
void choose_plane_unit(int element_size, GatherPlan* plan) {
  const PackLayout& l = plan->source;
  const int64_t rows = plan->destination.classes[0].rows;
  const int64_t tile = plan->tile.cols * kernels().limits.lanes(element_size);
  const int64_t budget = static_cast<int64_t>(kUnitShare / 2 * static_cast<double>(caches().l2)) /
                         element_size / (l.channels * static_cast<int64_t>(l.phases.size()));
  plan->unit.images = 1;
  plan->unit.band_rows = rows;
  if (l.image_rows * l.pitch <= std::max(budget, tile)) {
    // A matrix unit leaves so little to compute that units need not be long, but many, to be even.
    const int64_t most = plan->lanes == Lanes::kMatrix ? budget / 4 : budget;
    plan->unit.images =
        std::clamp<int64_t>(std::max(most, tile) / (l.image_rows * l.pitch), 1, kMaxImages);
    if (l.image_rows * l.pitch == 1 && plan->unit.images > tile)
      plan->unit.images -= plan->unit.images % tile;
  } else {
    const int64_t wanted = std::max(budget / l.pitch - l.halo_rows, ceil_div(tile, l.pitch));
    plan->unit.band_rows = ceil_div(rows, ceil_div(rows, std::clamp<int64_t>(wanted, 1, rows)));
  }
}

// kRow: the images that lie side by side, in whole tile rows.
void choose_row_unit(GatherPlan* plan) {
  PackLayout& l = plan->source;
  const int64_t lanes = kernels().limits.lanes(4), rows = plan->destination.classes[0].rows;
  plan->row.vectors = plan->tile.cols;
  l.pitch = plan->row.vectors * lanes;
  plan->unit.images = std::max<int64_t>(1, l.pitch / plan->row.slot_lanes);
  const int64_t row_bytes = l.channels * static_cast<int64_t>(l.phases.size()) * l.pitch * 4;
  const int64_t budget = static_cast<int64_t>(kUnitShare / 2 * static_cast<double>(caches().l2));
  const int64_t fitting = (budget / row_bytes - l.halo_rows) / plan->tile.rows;
  const int64_t tile_rows = ceil_div(rows, plan->tile.rows);
  const int64_t bands = ceil_div(tile_rows, std::max<int64_t>(1, fitting));
  plan->unit.band_rows = std::min(rows, ceil_div(tile_rows, bands) * plan->tile.rows);
  plan->strip.cols = plan->destination.classes[0].cols;
  plan->strip.channels = plan->destination.channels;
}

// kBatch: whole tile rows of one group of images.
void choose_batch_unit(GatherPlan* plan) {
  const PackLayout& l = plan->source;
  const DestinationClass& k = plan->destination.classes[0];
  const int64_t vector_bytes = kernels().limits.vector_bytes, l2 = caches().l2;
  const int64_t row_bytes =
      l.channels * static_cast<int64_t>(l.phases.size()) * l.pitch * vector_bytes;
  const int64_t fitting =
      static_cast<int64_t>(kUnitShare * static_cast<double>(l2)) / row_bytes - l.halo_rows;
  const int64_t tile_rows = ceil_div(k.rows, plan->tile.rows);
  const int64_t bands = ceil_div(tile_rows, std::max<int64_t>(1, fitting / plan->tile.rows));
  plan->unit.images = 1;
  plan->unit.band_rows = std::min(k.rows, ceil_div(tile_rows, bands) * plan->tile.rows);

  // The accumulators of a strip: all channels if they fit, else fewer columns, else fewer channels.
  const int64_t budget = static_cast<int64_t>(kStripShare * static_cast<double>(l2)) / vector_bytes;
  const int64_t rows = plan->tile.rows * plan->destination.step_h, cols = plan->destination.step_w;
  const int64_t channels = plan->destination.channels;
  const int64_t wanted = std::max(budget / (rows * cols * channels),
                                  std::max<int64_t>(plan->tile.cols, ceil_div(16, cols)));
  const int64_t strips = ceil_div(k.cols, std::min(wanted, k.cols));
  plan->strip.cols = ceil_div(ceil_div(k.cols, strips), plan->tile.cols) * plan->tile.cols;
  plan->strip.cols = std::min(plan->strip.cols, k.cols);
  const int64_t most = std::max<int64_t>(32, budget / (rows * cols * plan->strip.cols));
  plan->strip.channels = ceil_div(channels, ceil_div(channels, std::min(most, channels)));
}

// Destination channels whose accumulators of one tile fill their share of L1, in even strips.
int64_t group_strip(const GatherPlan& plan) {
  const double share = kGroupStripShare * static_cast<double>(caches().l1);
  const int64_t of_channel = plan.tile.rows * plan.tile.cols * kernels().limits.vector_bytes;
  const int64_t channels = plan.destination.channels;
  const int64_t most = std::max<int64_t>(16, static_cast<int64_t>(share) / of_channel);
  return ceil_div(channels, ceil_div(channels, most));
}

}  // namespace

void choose_tiling(int64_t steps, const Pass& pass, int element_size, GatherPlan* plan) {
  plan->batch.lane_images = plan->lanes == Lanes::kBatch ? kernels().limits.lanes(element_size) : 1;
  const bool grouped = pass.sign < 0 && plan->block_rows > 1;
  if (plan->lanes == Lanes::kMatrix) {
    choose_matrix_tile(steps, pass, plan);
    element_size = packed_size(*plan, element_size);
  } else {
    choose_tile(steps, element_size, plan);
  }
  if (grouped) {  // a group is loaded once for each tile and strip, so there are no blocks
    plan->block = {.channels = plan->source.channels, .count = 1};
  }
  const int64_t rows = plan->destination.classes[0].rows;
  plan->tile.rows = ceil_div(rows, ceil_div(rows, plan->tile.rows));
  if (plan->is_plane()) {
    plan->strip.cols = plan->destination.classes[0].cols;
    plan->strip.channels = std::min<int64_t>(128, plan->destination.channels);
    choose_plane_unit(element_size, plan);
  } else if (plan->lanes == Lanes::kRow) {
    choose_row_unit(plan);
  } else {
    choose_batch_unit(plan);
  }
  const int64_t whole = ceil_div(plan->strip.channels, plan->block_rows) * plan->block_rows;
  plan->strip.channels = grouped ? group_strip(*plan) : whole;
  if (plan->lanes == Lanes::kMatrix) plan->strip.channels = matrix_strip(steps, pass, *plan);
  plan->unit.bands = ceil_div(plan->destination.classes[0].rows, plan->unit.band_rows);
  choose_plane(pass, element_size, plan);
}

}  // namespace dsr::cpu
