#include "cuda/conv/plan/pass_shape.h"

#include <algorithm>

#include "cuda/conv/plan/arithmetic.h"

namespace dsr::cuda {
namespace {

// A convolution along rows or along columns.
struct Axis {
  int64_t size, out;  // of the input and the output
  int64_t kernel, stride, before, dilation;

  // Whether the tap meets the image for any output; backends/live_taps.py has its twin.
  bool met(int64_t tap) const {
    const int64_t at = tap * dilation - before;  // the input's pixel of output 0
    const int64_t first = std::max<int64_t>(0, -floor_div(at, stride));
    return first <= std::min(out - 1, floor_div(size - 1 - at, stride));
  }
};

Axis rows_of(const ConvShape& s) {
  return {s.height, s.out_height, s.kernel_h, s.stride_h, s.pad_h, s.dilation_h};
}

Axis cols_of(const ConvShape& s) {
  return {s.width, s.out_width, s.kernel_w, s.stride_w, s.pad_w, s.dilation_w};
}

struct AxisTap {
  int64_t tap, distance;  // from the first tap's pixel
};

// The destination pixels of one dimension that the same taps reach.
struct AxisClass {
  int64_t count;
  int64_t dest;   // the first of them
  int64_t first;  // the source's pixel that it meets under the first tap
  std::vector<AxisTap> taps;
};

// All outputs of a forward pass.
AxisClass outputs(const Axis& axis) {
  AxisClass found{axis.out, 0, 0, {}};
  for (int64_t tap = 0; tap < axis.kernel; ++tap) {
    if (!axis.met(tap)) continue;
    const int64_t at = tap * axis.dilation - axis.before;
    if (found.taps.empty()) found.first = at;
    found.taps.push_back({tap, at - found.first});
  }
  return found;
}

// The inputs with the same (pixel + padding) mod stride.
AxisClass inputs(const Axis& axis, int64_t remainder) {
  // Where pixel + padding = remainder + stride * j, tap k meets the output's pixel
  // (remainder - k * dilation) / stride + j.
  const int64_t start = std::max<int64_t>(0, ceil_div(axis.before - remainder, axis.stride));
  const int64_t dest = remainder + axis.stride * start - axis.before;
  AxisClass found{ceil_div(axis.size - dest, axis.stride), dest, 0, {}};
  for (int64_t tap = 0; tap < axis.kernel; ++tap) {
    const int64_t reached = remainder - tap * axis.dilation;
    if (reached % axis.stride == 0 && axis.met(tap))
      found.taps.push_back({tap, reached / axis.stride});
  }
  int64_t lowest = found.taps.empty() ? -start : found.taps[0].distance;
  for (const AxisTap& tap : found.taps) lowest = std::min(lowest, tap.distance);
  for (AxisTap& tap : found.taps) tap.distance -= lowest;
  found.first = start + lowest;
  return found;
}

std::vector<AxisClass> by_remainder(const Axis& axis) {
  std::vector<int64_t> remainders;
  for (int64_t pixel = 0; pixel < std::min(axis.stride, axis.size); ++pixel)
    remainders.push_back((pixel + axis.before) % axis.stride);
  std::sort(remainders.begin(), remainders.end());
  std::vector<AxisClass> found;
  for (const int64_t remainder : remainders) found.push_back(inputs(axis, remainder));
  return found;
}

PassClass class_of(const AxisClass& v, const AxisClass& h, int64_t kernel_w) {
  PassClass found{v.count, h.count, v.dest, h.dest, v.first, h.first, {}};
  for (const AxisTap& down : v.taps)
    for (const AxisTap& across : h.taps)
      found.taps.push_back({down.tap * kernel_w + across.tap, down.distance, across.distance});
  return found;
}

}  // namespace

int64_t PassClass::reach_h() const {
  int64_t most = 0;
  for (const PassTap& tap : taps) most = std::max(most, tap.dh);
  return most;
}

int64_t PassClass::reach_w() const {
  int64_t most = 0;
  for (const PassTap& tap : taps) most = std::max(most, tap.dw);
  return most;
}

PassShape forward_shape(const ConvShape& shape) {
  return {.groups = shape.groups,
          .source_channels = shape.in_channels / shape.groups,
          .dest_channels = shape.out_channels / shape.groups,
          .height = shape.height,
          .width = shape.width,
          .taps = shape.taps(),
          .row_step = shape.stride_h,
          .col_step = shape.stride_w,
          .dest_step_h = 1,
          .dest_step_w = 1,
          .transposed = false,
          .classes = {class_of(outputs(rows_of(shape)), outputs(cols_of(shape)), shape.kernel_w)}};
}

PassShape grad_input_shape(const ConvShape& shape) {
  PassShape found{.groups = shape.groups,
                  .source_channels = shape.out_channels / shape.groups,
                  .dest_channels = shape.in_channels / shape.groups,
                  .height = shape.out_height,
                  .width = shape.out_width,
                  .taps = shape.taps(),
                  .row_step = 1,
                  .col_step = 1,
                  .dest_step_h = shape.stride_h,
                  .dest_step_w = shape.stride_w,
                  .transposed = true,
                  .classes = {}};
  const std::vector<AxisClass> across = by_remainder(cols_of(shape));
  for (const AxisClass& v : by_remainder(rows_of(shape)))
    for (const AxisClass& h : across) found.classes.push_back(class_of(v, h, shape.kernel_w));
  return found;
}

void see_as_columns(PassShape& shape, Strides4& source, Strides4& dest) {
  if (shape.classes.size() != 1 || shape.taps != 1 || shape.width == 1) return;
  if (shape.row_step != 1 || shape.col_step != 1) return;
  if (shape.dest_step_h != 1 || shape.dest_step_w != 1) return;
  PassClass& only = shape.classes[0];
  if (only.rows != shape.height || only.cols != shape.width) return;
  if (only.first_h != 0 || only.first_w != 0) return;
  if (source.h != shape.width * source.w || dest.h != shape.width * dest.w) return;
  const int64_t pixels = shape.height * shape.width;
  only = {pixels, 1, 0, 0, 0, 0, only.taps};
  shape.height = pixels;
  shape.width = 1;
  source.h = source.w;
  dest.h = dest.w;
}

}  // namespace dsr::cuda
