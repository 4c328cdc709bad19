#include <algorithm>
#include <cmath>

#include "cuda/conv/plan/arithmetic.h"
#include "cuda/conv/plan/tilings.h"
#include "cuda/conv/plan/window_costs.h"

namespace dsr::cuda {
namespace {

constexpr int64_t kWarps = kComputeWarps + kFillWarps;
constexpr int64_t kTiles[] = {32, 64, 128, 256};                   // positions
constexpr int64_t kScratchBytes = kStepEntries * kWindowRows * 4;  // of a computing warp
// What things cost, beside window_costs.h. None of it was measured.
constexpr double kPair = 50;         // clocks of a warp for two positions, with nobody else at work
constexpr double kKeep = 20;         // wavefronts of a step whose sums change places and are added,
constexpr double kKeepSector = 1;    // of 32 bytes of values, from memory and back,
constexpr double kKeepAlone = 1500;  // and clocks of a turn of which nothing stays in registers

// What the functions below are about.
struct Problem {
  const PassShape& shape;
  double density;
  int64_t block_size;
  int element_size;
  const DeviceLimits& device;

  int64_t rows(int64_t window_block) const {
    return std::min(window_block * kWindowRows, shape.dest_channels);
  }
};

// Bytes of shared memory beside the source's slabs.
int64_t bytes_beside(const Problem& p, int64_t tile, int64_t window_block, int64_t compute_warps) {
  const int64_t grad = p.rows(window_block) * (tile | 1) * kVectorBytes;
  return kSlabs * (grad + tile * 4) + compute_warps * kScratchBytes;
}

// Loads of a warp's lanes, of all images of a pixel, that fill the source's slab,
int64_t source_vectors(const Layout& layout, int64_t channels) {
  return ceil_div(layout.pixels(), 32) * channels;
}

// and the gradient's.
double grad_vectors(const Problem& p, int64_t tile, int64_t window_block) {
  return tile / 32.0 * p.rows(window_block);
}

// Of the warps that fill, those that bring the gradient.
int64_t grad_warps_of(const Problem& p, const WindowGradWeightTiling& cut) {
  const int64_t source = source_vectors(cut.layout, cut.channel_block);
  const double grad = grad_vectors(p, cut.tile, cut.window_block);
  const int64_t fill_warps = kWarps - cut.compute_warps;
  const double share = std::nearbyint(fill_warps * grad / (grad + source));
  return std::min(std::max<int64_t>(1, static_cast<int64_t>(share)), fill_warps - 1);
}

// Clocks of the filling warps that take longest, for one tile.
double filled_clocks(const Problem& p, const WindowGradWeightTiling& cut) {
  const int64_t source_warps = kWarps - cut.compute_warps - cut.grad_warps;
  const double of_grad = grad_vectors(p, cut.tile, cut.window_block) / cut.grad_warps;
  const double of_source =
      static_cast<double>(source_vectors(cut.layout, cut.channel_block)) / source_warps;
  return vectors_clocks(std::max(of_grad, of_source), p.element_size);
}

// Wavefronts and lines of memory to fill both slabs for one tile.
double fill_lines(const Problem& p, const WindowGradWeightTiling& cut) {
  const double of_vector = static_cast<double>(kVectorBytes) / p.element_size;
  const double stores = p.element_size == 4 ? 4 * of_vector : 4;
  return fill_cost(cut.layout, cut.channel_block, p.element_size) +
         grad_vectors(p, cut.tile, cut.window_block) * (stores + 1.5 * of_vector);
}

// Clocks of a tile; `fill`: filled_clocks.
double tile_clocks(const Problem& p, const WindowGradWeightTiling& cut, double fill) {
  const int64_t taps = static_cast<int64_t>(p.shape.classes[0].taps.size());
  const int64_t windows = std::min(cut.window_block, windows_of(p.shape));
  const double entries = cut.channel_block * taps * entries_met(p.shape, p.density, p.block_size);
  const double steps = std::max(1.0, entries / kStepEntries + 0.5);  // of a window
  const double turns = windows * std::max(1.0, steps / kTurnSteps + 0.25);
  const double pairs = cut.tile / 2.0;
  const double loads =
      turns * pairs * (kMatrices + 0.25) + windows * steps * pairs * kMatrices * kSpreadConflicts;
  const double multiplied = windows * steps * pairs * 2 * kMultiplyAdd;
  const double pair = kPair + rounding_clocks(4 + 4 * kTurnSteps, p.element_size);
  const double warps = static_cast<double>(cut.compute_warps);
  double kept = 0, alone = ceil_div(turns, warps) * pairs * pair;
  if (turns > kHeldTurns * cut.compute_warps) {  // else sums stay in registers
    const double values = p.density * cut.channel_block * taps * p.rows(cut.window_block);
    kept = windows * steps * kKeep + values / std::min<int64_t>(p.block_size, 8) * kKeepSector;
    alone += ceil_div(turns, warps) * kKeepAlone;
  }
  return std::max({loads + kept + fill_lines(p, cut), multiplied, alone, fill}) + kStepClocks;
}

// The tiling in splits of several lengths.
void add_splits(const Problem& p, WindowGradWeightTiling tiling,
                std::vector<WindowGradWeightTiling>& found) {
  const PassShape& shape = p.shape;
  const int64_t blocks = ceil_div(shape.source_channels, tiling.channel_block);
  const int64_t parts = blocks * shape.groups * ceil_div(windows_of(shape), tiling.window_block);
  const double fill = filled_clocks(p, tiling), per_tile = tile_clocks(p, tiling, fill);
  const double taps = static_cast<double>(shape.classes[0].taps.size());
  const double values =
      p.density * taps * shape.source_channels * shape.dest_channels * shape.groups;
  for (const int64_t waves : {1, 2, 4}) {
    const int64_t most = p.device.multiprocessors * waves / parts;
    const int64_t splits = std::max<int64_t>(1, std::min(tiling.layout.tiles, most));
    tiling.tiles_per_split = ceil_div(tiling.layout.tiles, splits);
    const int64_t cut = splits_of(tiling.layout, tiling.tiles_per_split);
    const int64_t rounds = ceil_div(parts * cut, p.device.multiprocessors);
    const double clocks = (per_tile * tiling.tiles_per_split + fill) * rounds;
    tiling.clocks = clocks + cut * values * 4 / 1000;  // partial sums
    found.push_back(tiling);
  }
}

}  // namespace

std::vector<WindowGradWeightTiling> window_grad_weight_tilings(const PassShape& shape,
                                                               int64_t images, double density,
                                                               int64_t block_size, int element_size,
                                                               const DeviceLimits& device) {
  std::vector<WindowGradWeightTiling> found;
  if (!windows_possible(shape, element_size)) return found;
  const Problem p{shape, density, block_size, element_size, device};
  std::vector<int64_t> parts;
  for (const int64_t wanted : {1, 2, 4, 8}) parts.push_back(ceil_div(windows_of(shape), wanted));
  for (const int64_t tile : kTiles) {
    // Entries have banks of their own, whatever the pixels: only what is filled counts.
    const auto layouts = possible_layouts(shape, images, tile, element_size, 0.0);
    if (layouts.empty()) continue;
    const int64_t plane = layouts[0].plane * kVectorBytes;
    for (const int64_t window_block : distinct(parts)) {
      for (const int64_t compute_warps : kWindowComputeWarps) {
        const int64_t beside = bytes_beside(p, tile, window_block, compute_warps);
        const int64_t shared = device.shared_per_block - beside;
        for (const int64_t channels : channel_blocks(shape.source_channels, plane, shared)) {
          if (!worth_a_list(shape, channels, density, block_size)) continue;
          WindowGradWeightTiling cut{tile, compute_warps, 1, window_block, channels,
                                     1,    layouts[0],    0};
          cut.grad_warps = grad_warps_of(p, cut);
          add_splits(p, cut, found);
        }
      }
    }
  }
  return found;
}

}  // namespace dsr::cuda
