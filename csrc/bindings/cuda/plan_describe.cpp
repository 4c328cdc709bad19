// What a plan launches, in words and numbers.
#include "bindings/cuda/plan.h"

namespace dsr::bindings {
namespace {

using namespace py::literals;

py::tuple strides_of(const Strides4& s) { return py::make_tuple(s.n, s.c, s.h, s.w); }

py::dict of(const cuda::Slab& s) {
  return py::dict(
      "rows"_a = s.rows, "cols"_a = s.cols, "tile_cols"_a = s.tile_cols, "chunks"_a = s.chunks,
      "height"_a = s.height, "width"_a = s.width, "first_h"_a = s.first_h, "first_w"_a = s.first_w,
      "row_step"_a = s.row_step, "col_step"_a = s.col_step, "reach_rows"_a = s.reach_rows,
      "image_rows"_a = s.image_rows, "slab_cols"_a = s.slab_cols, "phase_cols"_a = s.phase_cols,
      "pitch"_a = s.pitch, "plane"_a = s.plane, "images"_a = s.images, "positions"_a = s.positions);
}

py::dict of(const cuda::Gather& g) {
  py::list classes;
  for (int i = 0; i < g.class_count; ++i) {
    const cuda::GatherClass& c = g.classes[i];
    classes.append(py::dict("slab"_a = of(c.slab), "dest_h"_a = c.dest_h, "dest_w"_a = c.dest_w,
                            "blocks"_a = c.blocks, "first_segment"_a = c.first_segment,
                            "first_tile"_a = c.first_tile));
  }
  return py::dict("classes"_a = classes, "tiles"_a = g.tiles, "groups"_a = g.groups,
                  "dest_channels"_a = g.dest_channels, "source_channels"_a = g.source_channels,
                  "channel_block"_a = g.channel_block, "row_warps"_a = g.row_warps,
                  "rows"_a = g.rows, "units"_a = g.units, "dest_step_h"_a = g.dest_step_h,
                  "dest_step_w"_a = g.dest_step_w, "lanes_on_channels"_a = g.lanes_on_channels != 0,
                  "slab_bytes"_a = g.slab_bytes, "blocks_limit"_a = g.blocks_limit,
                  "transposed"_a = g.transposed != 0,
                  "source_strides"_a = strides_of(g.source_strides),
                  "dest_strides"_a = strides_of(g.dest_strides));
}

py::dict of(const cuda::GradWeight& g) {
  return py::dict("slab"_a = of(g.slab), "groups"_a = g.groups, "dest_channels"_a = g.dest_channels,
                  "source_channels"_a = g.source_channels, "channel_block"_a = g.channel_block,
                  "blocks"_a = g.blocks, "row_block"_a = g.row_block, "tiles"_a = g.tiles,
                  "splits"_a = g.splits, "tiles_per_split"_a = g.tiles_per_split,
                  "lanes_on_channels"_a = g.lanes_on_channels != 0, "slab_bytes"_a = g.slab_bytes,
                  "units"_a = g.units, "source_strides"_a = strides_of(g.source_strides),
                  "grad_strides"_a = strides_of(g.grad_strides));
}

py::dict of(const cuda::WindowGradWeight& g) {
  return py::dict(
      "slab"_a = of(g.slab), "groups"_a = g.groups, "dest_channels"_a = g.dest_channels,
      "source_channels"_a = g.source_channels, "channel_block"_a = g.channel_block,
      "blocks"_a = g.blocks, "window_block"_a = g.window_block, "compute_warps"_a = g.compute_warps,
      "grad_warps"_a = g.grad_warps, "tile"_a = g.tile, "tiles"_a = g.tiles, "splits"_a = g.splits,
      "tiles_per_split"_a = g.tiles_per_split,
      "source_lanes_on_channels"_a = g.source_lanes_on_channels != 0,
      "grad_lanes_on_channels"_a = g.grad_lanes_on_channels != 0, "slab_bytes"_a = g.slab_bytes,
      "grad_plane"_a = g.grad_plane, "source_strides"_a = strides_of(g.source_strides),
      "grad_strides"_a = strides_of(g.grad_strides), "shared_bytes"_a = g.shared_bytes());
}

py::dict of(const cuda::Direct& d) {
  return py::dict(
      "images"_a = d.images, "height"_a = d.height, "width"_a = d.width, "rows"_a = d.rows,
      "cols"_a = d.cols, "dest_h"_a = d.dest_h, "dest_w"_a = d.dest_w,
      "dest_step_h"_a = d.dest_step_h, "dest_step_w"_a = d.dest_step_w, "row_step"_a = d.row_step,
      "col_step"_a = d.col_step, "groups"_a = d.groups, "dest_channels"_a = d.dest_channels,
      "source_channels"_a = d.source_channels, "first_segment"_a = d.first_segment,
      "source_strides"_a = strides_of(d.source_strides),
      "dest_strides"_a = strides_of(d.dest_strides));
}

}  // namespace

py::dict describe(const cuda::ConvPlan& plan) {
  py::list launches;
  for (const cuda::Direct& launch : plan.directs) launches.append(of(launch));
  for (const cuda::Gather& launch : plan.gathers) launches.append(of(launch));
  const bool is_grad_weight = plan.direction == cuda::Direction::kGradWeight;
  if (is_grad_weight && plan.kind == cuda::Kind::kSlab) launches.append(of(plan.grad_weight));
  if (is_grad_weight && plan.kind == cuda::Kind::kWindow)
    launches.append(of(plan.window_grad_weight));
  return py::dict("clocks"_a = plan.clocks, "splits"_a = plan.splits(), "launches"_a = launches);
}

}  // namespace dsr::bindings
