#include "cuda/conv/plan/launches.h"

#include <algorithm>

#include "cuda/conv/plan/window_costs.h"

namespace dsr::cuda {
namespace {

// Fields that several of the structs have, under the same names.
template <class Launch>
void set_channels(Launch& launch, const PassShape& shape, int64_t channel_block, Narrow& narrow) {
  launch.groups = narrow(shape.groups);
  launch.dest_channels = narrow(shape.dest_channels);
  launch.source_channels = narrow(shape.source_channels);
  launch.channel_block = narrow(channel_block);
}

Slab slab_of(const StridedPass& pass, const PassClass& c, const Layout& layout, Narrow& narrow) {
  Slab slab{};
  slab.rows = narrow(c.rows), slab.cols = narrow(c.cols);
  slab.tile_cols = narrow(layout.tile_cols), slab.chunks = narrow(layout.chunks);
  slab.height = narrow(pass.shape.height), slab.width = narrow(pass.shape.width);
  slab.first_h = narrow(c.first_h), slab.first_w = narrow(c.first_w);
  slab.row_step = narrow(pass.shape.row_step), slab.col_step = narrow(pass.shape.col_step);
  slab.reach_rows = narrow(c.reach_h()), slab.image_rows = narrow(layout.image_rows);
  slab.slab_cols = narrow(layout.slab_cols), slab.phase_cols = narrow(layout.phase_cols);
  slab.pitch = narrow(layout.pitch), slab.plane = narrow(layout.plane);
  slab.images = narrow(pass.images), slab.positions = narrow(layout.positions);
  if (narrow.fits) slab.prepare();
  return slab;
}

// Whether lanes that load side by side should be channels: no row or column is contiguous.
bool channels_contiguous(int64_t height, int64_t width, const Strides4& strides) {
  const bool along_cols = width > 1 && strides.w == 1;
  const bool along_rows = width == 1 && height > 1 && strides.h == 1;
  return strides.c == 1 && !along_cols && !along_rows;
}

bool channels_contiguous(const StridedPass& pass) {
  return channels_contiguous(pass.shape.height, pass.shape.width, pass.source);
}

int64_t slab_bytes(int64_t channel_block, int64_t plane) {
  return channel_block * plane * kVectorBytes;
}

// What all launches of a pass have in common.
Gather without_classes(const StridedPass& pass, const GatherTiling& tiling,
                       const DeviceLimits& device, Narrow& narrow) {
  const PassShape& shape = pass.shape;
  Gather launch{};
  set_channels(launch, shape, tiling.channel_block, narrow);
  launch.row_warps = narrow(tiling.row_warps);
  launch.rows = narrow(tiling.rows), launch.units = narrow(tiling.units);
  launch.transposed = shape.transposed;
  launch.dest_step_h = narrow(shape.dest_step_h), launch.dest_step_w = narrow(shape.dest_step_w);
  launch.lanes_on_channels = channels_contiguous(pass);
  launch.slab_bytes = narrow(slab_bytes(tiling.channel_block, largest_plane(tiling.layouts)));
  launch.blocks_limit = narrow(device.multiprocessors);
  launch.source_strides = pass.source, launch.dest_strides = pass.dest;
  return launch;
}

}  // namespace

std::vector<Gather> gather_launches(const StridedPass& pass, const GatherTiling& tiling,
                                    const ListKey& key, bool windows, const DeviceLimits& device,
                                    Narrow& narrow) {
  const PassShape& shape = pass.shape;
  // Of a class.
  const int64_t segments =
      key.blocks() * shape.groups * (windows ? windows_of(shape) : shape.dest_channels);
  const Gather common = without_classes(pass, tiling, device, narrow);
  std::vector<Gather> launches;
  for (size_t first = 0; first < shape.classes.size(); first += kMaxClasses) {
    Gather launch = common;
    const size_t count = std::min<size_t>(kMaxClasses, shape.classes.size() - first);
    int64_t tiles = 0;
    for (size_t i = 0; i < count; ++i) {
      const PassClass& c = shape.classes[first + i];
      const Layout& layout = tiling.layouts[first + i];
      launch.classes[i] = {.slab = slab_of(pass, c, layout, narrow),
                           .dest_h = narrow(c.dest_h),
                           .dest_w = narrow(c.dest_w),
                           .blocks = c.taps.empty() ? 0 : narrow(key.blocks()),
                           .first_segment = narrow(static_cast<int64_t>(first + i) * segments),
                           .first_tile = narrow(tiles),
                           .run = 0};
      tiles += layout.tiles;
    }
    launch.class_count = static_cast<int32_t>(count);
    launch.tiles = narrow(tiles);
    launches.push_back(launch);
  }
  return launches;
}

GradWeight grad_weight_launch(const StridedPass& pass, const GradWeightTiling& tiling,
                              const ListKey& key, Narrow& narrow) {
  const Layout& layout = tiling.layout;
  GradWeight launch{};
  set_channels(launch, pass.shape, tiling.channel_block, narrow);
  launch.slab = slab_of(pass, pass.shape.classes[0], layout, narrow);
  launch.blocks = narrow(key.blocks()), launch.tiles = narrow(layout.tiles);
  launch.tiles_per_split = narrow(tiling.tiles_per_split);
  launch.splits = narrow(splits_of(layout, tiling.tiles_per_split));
  launch.units = narrow(tiling.units), launch.row_block = narrow(tiling.row_block);
  launch.lanes_on_channels = channels_contiguous(pass);
  launch.slab_bytes = narrow(slab_bytes(tiling.channel_block, layout.plane));
  launch.source_strides = pass.source, launch.grad_strides = pass.dest;
  return launch;
}

WindowGradWeight window_grad_weight_launch(const StridedPass& pass,
                                           const WindowGradWeightTiling& tiling, const ListKey& key,
                                           Narrow& narrow) {
  const Layout& layout = tiling.layout;
  const PassClass& only = pass.shape.classes[0];
  WindowGradWeight launch{};
  set_channels(launch, pass.shape, tiling.channel_block, narrow);
  launch.slab = slab_of(pass, only, layout, narrow);
  launch.blocks = narrow(key.blocks()), launch.tiles = narrow(layout.tiles);
  launch.tile = narrow(tiling.tile), launch.window_block = narrow(tiling.window_block);
  launch.compute_warps = narrow(tiling.compute_warps);
  launch.grad_warps = narrow(tiling.grad_warps);
  launch.tiles_per_split = narrow(tiling.tiles_per_split);
  launch.splits = narrow(splits_of(layout, tiling.tiles_per_split));
  launch.source_lanes_on_channels = channels_contiguous(pass);
  launch.grad_lanes_on_channels = channels_contiguous(only.rows, only.cols, pass.dest);
  launch.slab_bytes = narrow(slab_bytes(tiling.channel_block, layout.plane));
  launch.grad_plane = narrow(tiling.tile | 1);
  launch.source_strides = pass.source, launch.grad_strides = pass.dest;
  return launch;
}

std::vector<Direct> direct_launches(const StridedPass& pass, Narrow& narrow) {
  const PassShape& shape = pass.shape;
  std::vector<Direct> launches;
  for (const PassClass& c : shape.classes) {
    const int64_t first = static_cast<int64_t>(launches.size()) * shape.groups;
    launches.push_back({.images = narrow(pass.images),
                        .height = narrow(shape.height),
                        .width = narrow(shape.width),
                        .rows = narrow(c.rows),
                        .cols = narrow(c.cols),
                        .dest_h = narrow(c.dest_h),
                        .dest_w = narrow(c.dest_w),
                        .dest_step_h = narrow(shape.dest_step_h),
                        .dest_step_w = narrow(shape.dest_step_w),
                        .row_step = narrow(shape.row_step),
                        .col_step = narrow(shape.col_step),
                        .groups = narrow(shape.groups),
                        .dest_channels = narrow(shape.dest_channels),
                        .source_channels = narrow(shape.source_channels),
                        .first_segment = first * shape.dest_channels,
                        .source_strides = pass.source,
                        .dest_strides = pass.dest});
  }
  return launches;
}

}  // namespace dsr::cuda
