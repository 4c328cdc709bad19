#include "bindings/cuda/plan.h"

namespace dsr::bindings {
namespace {

py::tuple numbers_of(const std::vector<int64_t>& numbers) { return py::tuple(py::cast(numbers)); }

}  // namespace

LayoutTuple tuple_of(const cuda::Layout& l) {
  return {l.tile_cols, l.chunks, l.image_rows, l.slab_cols, l.phase_cols,
          l.pitch,     l.plane,  l.positions,  l.tiles,     l.conflicts};
}

ClassTuple tuple_of(const cuda::PassClass& c) {
  std::vector<Triple> taps;
  for (const auto& [tap, dh, dw] : c.taps) taps.push_back({tap, dh, dw});
  return {c.rows, c.cols, c.dest_h, c.dest_w, c.first_h, c.first_w, taps};
}

ShapeTuple tuple_of(const cuda::PassShape& s) {
  return {s.groups,     s.source_channels,   s.dest_channels, s.height,      s.width,
          s.taps,       s.row_step,          s.col_step,      s.dest_step_h, s.dest_step_w,
          s.transposed, tuples_of(s.classes)};
}

GatherTilingTuple tuple_of(const cuda::GatherTiling& t) {
  return {t.rows, t.units, t.row_warps, t.channel_block, tuples_of(t.layouts), t.clocks};
}

GradWeightTilingTuple tuple_of(const cuda::GradWeightTiling& t) {
  return {t.units, t.channel_block, t.row_block, t.tiles_per_split, tuple_of(t.layout), t.clocks};
}

WindowGradWeightTilingTuple tuple_of(const cuda::WindowGradWeightTiling& t) {
  return {t.tile,          t.compute_warps,   t.grad_warps,       t.window_block,
          t.channel_block, t.tiles_per_split, tuple_of(t.layout), t.clocks};
}

KeyTuple tuple_of(const cuda::ListKey& k) {
  return {k.transposed,
          k.rows,
          k.groups,
          k.source_channels,
          k.dest_channels,
          k.classes,
          k.channel_block,
          numbers_of(k.tap_class),
          numbers_of(k.first),
          numbers_of(k.second)};
}

std::vector<cuda::Layout> layouts_of(const std::vector<LayoutTuple>& tuples) {
  std::vector<cuda::Layout> found;
  for (const LayoutTuple& tuple : tuples) found.push_back(from_tuple<cuda::Layout>(tuple));
  return found;
}

cuda::PassClass class_of(const ClassTuple& tuple) {
  const auto& [rows, cols, dest_h, dest_w, first_h, first_w, tuples] = tuple;
  std::vector<cuda::PassTap> taps;
  for (const auto& [tap, dh, dw] : tuples) taps.push_back({tap, dh, dw});
  return {rows, cols, dest_h, dest_w, first_h, first_w, taps};
}

cuda::PassShape shape_of(const ShapeTuple& tuple) {
  const auto& [groups, source, dest, height, width, taps, row_step, col_step, dest_step_h,
               dest_step_w, transposed, tuples] = tuple;
  std::vector<cuda::PassClass> classes;
  for (const ClassTuple& one : tuples) classes.push_back(class_of(one));
  return {groups,   source,   dest,        height,      width,      taps,
          row_step, col_step, dest_step_h, dest_step_w, transposed, classes};
}

cuda::GatherTiling tiling_of(const GatherTilingTuple& tuple) {
  const auto& [rows, units, row_warps, channel_block, layouts, clocks] = tuple;
  return {rows, units, row_warps, channel_block, layouts_of(layouts), clocks};
}

cuda::GradWeightTiling tiling_of(const GradWeightTilingTuple& tuple) {
  const auto& [units, channel_block, row_block, tiles_per_split, layout, clocks] = tuple;
  return {units, channel_block, row_block, tiles_per_split, from_tuple<cuda::Layout>(layout),
          clocks};
}

cuda::WindowGradWeightTiling tiling_of(const WindowGradWeightTilingTuple& tuple) {
  const auto& [tile, compute, grad, window_block, channel_block, tiles, layout, clocks] = tuple;
  return {
      tile,  compute, grad, window_block, channel_block, tiles, from_tuple<cuda::Layout>(layout),
      clocks};
}

ConvShape conv_shape(const Triple& in_size, const Triple& out_size, const Pair& kernel,
                     const Pair& stride, const Pair& padding, const Pair& dilation,
                     int64_t groups) {
  return {.in_channels = in_size[0],
          .height = in_size[1],
          .width = in_size[2],
          .out_channels = out_size[0],
          .out_height = out_size[1],
          .out_width = out_size[2],
          .kernel_h = kernel[0],
          .kernel_w = kernel[1],
          .stride_h = stride[0],
          .stride_w = stride[1],
          .pad_h = padding[0],
          .pad_w = padding[1],
          .dilation_h = dilation[0],
          .dilation_w = dilation[1],
          .groups = groups};
}

cuda::Direction direction_named(const std::string& direction) {
  if (direction == "forward") return cuda::Direction::kForward;
  if (direction == "grad_input") return cuda::Direction::kGradInput;
  if (direction == "grad_weight") return cuda::Direction::kGradWeight;
  throw std::invalid_argument(
      "direction: expected 'forward', 'grad_input' or 'grad_weight', got '" + direction + "'");
}

}  // namespace dsr::bindings
