#include <algorithm>
#include <numeric>

#include "cuda/conv/plan/arithmetic.h"
#include "cuda/conv/plan/tilings.h"
#include "cuda/conv/plan/window_costs.h"

namespace dsr::cuda {
namespace {

// What things cost, beside window_costs.h. None of it was measured.
constexpr double kStepAlone = 120;  // clocks of a warp for a step, with nobody else at work,
constexpr double kUnitAlone = 16;   // and for each of its positions
constexpr double kSector = 0.5;     // clocks to store what is contiguous, at most 32 bytes

// Wavefronts of putting the weights of a step together, and loading them: in float32 the tile has
// twice as many bytes, which are cleared, stored and loaded.
double decode_cost(int element_size) { return element_size == 2 ? 24 : 36; }

// What the functions below are about.
struct Problem {
  const PassShape& shape;
  double met;  // entries_met
  int64_t block_size;
  int element_size;
  const DeviceLimits& device;
};

// Source channels of a slab that cut no block of a transposed pattern, if there is room.
int64_t whole_blocks(const Problem& p, int64_t channels) {
  const int64_t size = whole_rows_of(p.shape, p.block_size);
  if (!p.shape.transposed || channels == p.shape.source_channels || channels < size)
    return channels;
  return channels / size * size;
}

// How many of a lane's `units` positions one store takes, of rows that are contiguous.
int64_t run_of(const PassShape& shape, const PassClass& c, const Layout& layout, int64_t units) {
  const bool column = c.cols == 1;
  if ((column ? shape.dest_step_h : shape.dest_step_w) != 1) return 1;
  return std::gcd(column ? c.rows : std::gcd(c.cols, layout.tile_cols), units);
}

// Clocks of an item of work, all of its blocks of source channels together.
double item(const Problem& p, const PassClass& c, const Layout& layout,
            const GatherTiling& tiling) {
  const PassShape& shape = p.shape;
  const int64_t windows = std::min(tiling.row_warps, windows_of(shape));
  const int64_t warps = windows * (kComputeWarps / tiling.row_warps);
  const int64_t rows = std::min(windows * kWindowRows, shape.dest_channels);
  const int64_t outputs = rows * (kComputeWarps / tiling.row_warps) * tiling.units;
  const int64_t run = run_of(shape, c, layout, tiling.units * 2 / p.element_size);
  const double stores =
      static_cast<double>(outputs * kVectorBytes) / p.element_size * kSector / run;
  if (c.taps.empty()) return stores + kStepClocks;
  const int64_t blocks = ceil_div(shape.source_channels, tiling.channel_block);
  const int64_t pairs = shape.source_channels * static_cast<int64_t>(c.taps.size());
  const double steps = pairs * p.met / kStepEntries + blocks / 2.0;  // of a window
  const double conflicts =
      p.element_size == 2 ? kSpreadConflicts : kSpreadConflicts * layout.conflicts;
  const double loads =
      warps * steps * (tiling.units / 2.0 * kMatrices * conflicts + decode_cost(p.element_size));
  const double multiplied = warps * steps * tiling.units * kMultiplyAdd;
  const double unit_alone = kUnitAlone + rounding_clocks(2, p.element_size);
  const double alone = steps * (kStepAlone + unit_alone * tiling.units);
  const double filled = fill_clocks(layout, shape.source_channels, p.element_size);
  const double together = loads + fill_cost(layout, shape.source_channels, p.element_size);
  return std::max({together, multiplied, alone, filled}) + stores + blocks * kStepClocks;
}

double clocks_of(const Problem& p, const GatherTiling& tiling) {
  const int64_t row_blocks = ceil_div(windows_of(p.shape), tiling.row_warps) * p.shape.groups;
  const int64_t items = row_blocks * all_tiles(tiling.layouts);
  double work = 0;
  for (size_t i = 0; i < p.shape.classes.size(); ++i) {
    const Layout& layout = tiling.layouts[i];
    work += layout.tiles * item(p, p.shape.classes[i], layout, tiling);
  }
  const int64_t rounds = ceil_div(items, p.device.multiprocessors);
  const double first = fill_clocks(tiling.layouts[0], tiling.channel_block, p.element_size);
  return work * row_blocks / items * rounds + first;
}

}  // namespace

std::vector<GatherTiling> window_gather_tilings(const PassShape& shape, int64_t images,
                                                double density, int64_t block_size,
                                                int element_size, const DeviceLimits& device) {
  std::vector<GatherTiling> found;
  if (!windows_possible(shape, element_size)) return found;
  const double met = entries_met(shape, density, block_size);
  const Problem p{shape, met, block_size, element_size, device};
  const int64_t windows = windows_of(shape);
  // The warps' weights of a step.
  const int64_t tiles = kComputeWarps * kWindowRows * kStepEntries * element_size;
  for (const int64_t units : kWindowUnits) {
    if (element_size == 4 && units != kFloatWindowUnits) continue;
    for (const int64_t row_warps : kRowWarps) {
      if (row_warps > 1 && row_warps >= 2 * windows) continue;
      const int64_t tile = kComputeWarps / row_warps * units;
      // Entries have banks of their own, whatever the pixels: only what is filled counts. But words
      // of float32 are loaded at two positions at once.
      const double served = element_size == 2 ? 0.0 : met * std::min(row_warps, windows);
      GatherTiling tiling{kWindowRows, units, row_warps, 0, {}, 0};
      tiling.layouts = possible_layouts(shape, images, tile, element_size, served);
      if (tiling.layouts.empty()) continue;
      const int64_t plane = largest_plane(tiling.layouts) * kVectorBytes;
      const int64_t shared = device.shared_per_block - tiles;
      for (const int64_t most : channel_blocks(shape.source_channels, plane, shared)) {
        tiling.channel_block = whole_blocks(p, most);
        if (!worth_a_list(shape, tiling.channel_block, density, block_size)) continue;
        tiling.clocks = clocks_of(p, tiling);
        found.push_back(tiling);
      }
    }
  }
  return found;
}

}  // namespace dsr::cuda
