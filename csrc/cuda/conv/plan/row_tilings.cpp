// Tilings of the kernels that take destination channels row by row.
#include <algorithm>

#include "cuda/conv/plan/arithmetic.h"
#include "cuda/conv/plan/tilings.h"

namespace dsr::cuda {
namespace {

// What things cost, as measured.
constexpr double kSegment = 30;  // clocks of a warp to begin a row of a block, beside other work
constexpr double kRow = 700;     // clocks of a warp to begin an output channel of a grad-weight

// What it costs, as measured, that two slabs leave the lists no room in the cache.
double crowding(int64_t slab) { return kSlabs * slab > 180'000 ? 1.08 : 1.0; }

// Clocks of an item of work, all of its blocks of source channels together.
double gather_item(const PassShape& shape, const PassClass& c, const Layout& layout,
                   const GatherTiling& tiling, double density, int element_size) {
  const int64_t served = std::min(tiling.rows * tiling.row_warps, shape.dest_channels);
  const int64_t lanes = kComputeWarps / tiling.row_warps * tiling.units;  // vectors of positions
  const double stores = static_cast<double>(served * lanes * kVectorBytes) / element_size;
  if (c.taps.empty()) return stores + kStepClocks;
  const int64_t taps = static_cast<int64_t>(c.taps.size());
  const double nonzeros = served * shape.source_channels * taps * density;
  const double listed = static_cast<double>(kComputeWarps) / tiling.row_warps;
  double loads = nonzeros * (lanes * 4 * layout.conflicts + listed);
  loads *= tiling.units == 1 ? 1.15 : 1.0;  // as measured: fewer loads in flight
  const int64_t blocks = ceil_div(shape.source_channels, tiling.channel_block);
  loads += blocks * tiling.rows * kComputeWarps * kSegment / 4;
  const double filled = fill_clocks(layout, shape.source_channels, element_size);
  const double together = loads + fill_cost(layout, shape.source_channels, element_size);
  return std::max(together, filled) + stores + blocks * kStepClocks;
}

void add_gathers(const PassShape& shape, int64_t images, double density, int element_size,
                 const DeviceLimits& device, GatherTiling tiling,
                 std::vector<GatherTiling>& found) {
  const int64_t beside = tiling.rows * tiling.row_warps;
  const int64_t tile = kComputeWarps / tiling.row_warps * tiling.units * 32;
  const int64_t served = std::min(beside, shape.dest_channels);
  tiling.layouts = possible_layouts(shape, images, tile, element_size, served * density);
  if (tiling.layouts.empty()) return;
  const int64_t row_blocks = ceil_div(shape.dest_channels, beside) * shape.groups;
  const int64_t items = row_blocks * all_tiles(tiling.layouts);
  const int64_t rounds = ceil_div(items, device.multiprocessors);
  const int64_t plane = largest_plane(tiling.layouts) * kVectorBytes;
  for (const int64_t channels :
       channel_blocks(shape.source_channels, plane, device.shared_per_block)) {
    tiling.channel_block = channels;
    double work = 0;
    for (size_t i = 0; i < shape.classes.size(); ++i) {
      const Layout& layout = tiling.layouts[i];
      work += layout.tiles *
              gather_item(shape, shape.classes[i], layout, tiling, density, element_size);
    }
    const double first = fill_clocks(tiling.layouts[0], channels, element_size);
    const double clocks = work * row_blocks / items * rounds + first;
    tiling.clocks = clocks * crowding(channels * plane);
    found.push_back(tiling);
  }
}

template <int kElementBytes>
std::vector<GatherTiling> gathers_of(const PassShape& shape, int64_t images, double density,
                                     const DeviceLimits& device) {
  std::vector<GatherTiling> found;
  for (const auto& [rows, units] : Variants<kElementBytes>::gather) {
    for (const int row_warps : kRowWarps) {
      if (row_warps > 1 && row_warps * rows >= 2 * shape.dest_channels) continue;
      const GatherTiling tiling{rows, units, row_warps, 0, {}, 0};
      add_gathers(shape, images, density, kElementBytes, device, tiling, found);
    }
  }
  return found;
}

// The tiling in splits of several lengths; `per_tile` and `first` are clocks of a tile, and of the
// first one's filling.
void add_splits(const PassShape& shape, double nonzeros, const DeviceLimits& device,
                GradWeightTiling tiling, double per_tile, double first,
                std::vector<GradWeightTiling>& found) {
  const int64_t blocks = ceil_div(shape.source_channels, tiling.channel_block) * shape.groups;
  const int64_t parts = blocks * ceil_div(shape.dest_channels, tiling.row_block);
  for (const int64_t waves : {1, 2, 4}) {
    const int64_t most = device.multiprocessors * waves / parts;
    const int64_t splits = std::max<int64_t>(1, std::min(tiling.layout.tiles, most));
    tiling.tiles_per_split = ceil_div(tiling.layout.tiles, splits);
    const int64_t cut = splits_of(tiling.layout, tiling.tiles_per_split);
    const int64_t rounds = ceil_div(parts * cut, device.multiprocessors);
    double clocks = (per_tile * tiling.tiles_per_split + first / 2) * rounds;
    clocks += cut * blocks * tiling.channel_block * nonzeros * 4 / 1000;  // partial sums
    clocks *= crowding(tiling.channel_block * tiling.layout.plane * kVectorBytes);
    tiling.clocks = clocks;
    found.push_back(tiling);
  }
}

void add_grad_weights(const PassShape& shape, int64_t units, int64_t channels, const Layout& layout,
                      double density, int element_size, const DeviceLimits& device,
                      std::vector<GradWeightTiling>& found) {
  const double taps = static_cast<double>(shape.classes[0].taps.size());
  const double nonzeros = density * shape.dest_channels * taps;  // per source channel
  const double fill = fill_cost(layout, channels, element_size);
  const double first = fill_clocks(layout, channels, element_size);
  for (const int64_t wanted : {1, 2, 4, 8}) {  // parts of the channels, where positions are few
    const int64_t rows = ceil_div(shape.dest_channels, wanted);
    const double loads = static_cast<double>(rows) / shape.dest_channels * channels * nonzeros;
    double per_tile = loads * (units * 4 * layout.conflicts + 2.5) + fill;
    per_tile += rows * (units * kVectorBytes / element_size + kSegment / 2);
    const double begun = static_cast<double>(rows) / kComputeWarps * kRow;
    per_tile = std::max({per_tile, first, begun}) + kStepClocks;
    const GradWeightTiling tiling{units, channels, rows, 1, layout, 0};
    add_splits(shape, nonzeros, device, tiling, per_tile, first, found);
  }
}

template <int kElementBytes>
std::vector<GradWeightTiling> grad_weights_of(const PassShape& shape, int64_t images,
                                              double density, const DeviceLimits& device) {
  std::vector<GradWeightTiling> found;
  for (const int64_t units : Variants<kElementBytes>::grad_weight_units) {
    const double served = density * shape.dest_channels;
    const auto layouts = possible_layouts(shape, images, units * 32, kElementBytes, served);
    if (layouts.empty()) continue;
    const int64_t plane = layouts[0].plane * kVectorBytes;
    for (const int64_t channels :
         channel_blocks(shape.source_channels, plane, device.shared_per_block))
      add_grad_weights(shape, units, channels, layouts[0], density, kElementBytes, device, found);
  }
  return found;
}

}  // namespace

int64_t splits_of(const Layout& layout, int64_t tiles_per_split) {
  return ceil_div(layout.tiles, tiles_per_split);
}

std::vector<GatherTiling> gather_tilings(const PassShape& shape, int64_t images, double density,
                                         int element_size, const DeviceLimits& device) {
  return element_size == 4 ? gathers_of<4>(shape, images, density, device)
                           : gathers_of<2>(shape, images, density, device);
}

std::vector<GradWeightTiling> grad_weight_tilings(const PassShape& shape, int64_t images,
                                                  double density, int element_size,
                                                  const DeviceLimits& device) {
  return element_size == 4 ? grad_weights_of<4>(shape, images, density, device)
                           : grad_weights_of<2>(shape, images, density, device);
}

}  // namespace dsr::cuda
