#include "cpu/conv/extents.h"

#include <algorithm>
#include <limits>
#include <string>

namespace dsr::cpu {

int64_t saturating_product(std::initializer_list<int64_t> factors) {
  int64_t product = 1;
  for (const int64_t factor : factors)
    if (__builtin_mul_overflow(product, factor, &product))
      return std::numeric_limits<int64_t>::max();
  return product;
}

Status check_extents(const ConvShape& s) {
  const auto [smallest, largest] = std::minmax(
      {s.in_channels, s.height, s.width, s.out_channels, s.out_height, s.out_width, s.kernel_h,
       s.kernel_w, s.stride_h, s.stride_w, s.dilation_h, s.dilation_w, s.groups});
  if (smallest < 1)
    return Status::error(
        "a convolution's sizes, stride, dilation and groups must be at least 1, got " +
        std::to_string(smallest));
  if (s.in_channels % s.groups != 0 || s.out_channels % s.groups != 0)
    return Status::error("groups = " + std::to_string(s.groups) + " must divide the " +
                         std::to_string(s.in_channels) + " input and " +
                         std::to_string(s.out_channels) + " output channels");
  const auto too_large = [](const char* what, int64_t got) {
    return Status::error(std::string(what) + " must be at most 2^31 - 1, got " +
                         std::to_string(got));
  };
  if (largest > kMaxExtent)
    return too_large("a convolution's sizes, stride, dilation and groups", largest);
  const auto [lowest_pad, highest_pad] = std::minmax(s.pad_h, s.pad_w);
  if (lowest_pad < -kMaxExtent) return too_large("a convolution's negative padding", lowest_pad);
  if (highest_pad > kMaxExtent) return too_large("a convolution's padding", highest_pad);
  const int64_t extent = std::max((s.kernel_h - 1) * s.dilation_h, (s.kernel_w - 1) * s.dilation_w);
  if (extent >= kMaxExtent) return too_large("the extent of a kernel", extent + 1);
  const int64_t row = saturating_product({s.in_channels / s.groups, s.kernel_h, s.kernel_w});
  if (row > kMaxExtent) return too_large("the weights of one output channel", row);
  return Status::ok();
}

Status check_volume(const GatherPlan& plan) {
  constexpr int64_t kMost = int64_t{1} << 48;  // elements
  const PackLayout& l = plan.source;
  const DestinationClass& largest = plan.destination.classes[0];
  const int64_t phases = static_cast<int64_t>(l.phases.size());
  const int64_t packed = saturating_product(
      {l.channels, phases, l.image_rows + l.halo_rows + 1, l.pitch + l.halo_cols + l.tail + 1});
  const int64_t written = saturating_product({plan.destination.channels, largest.rows, largest.cols,
                                              plan.destination.step_h, plan.destination.step_w});
  const int64_t read = saturating_product({l.channels, l.height, l.width});
  const int64_t larger = std::max({packed, written, read});
  if (larger <= kMost) return Status::ok();
  return Status::error("convolution too large: an image of it takes " + std::to_string(larger) +
                       " elements with its margins, the limit is 2^48");
}

Status check_offsets(const GatherPlan& plan, const BsrPattern& pattern) {
  const int64_t scalars = plan.source.elements() * plan.batch.lane_images;
  if (scalars > std::numeric_limits<int32_t>::max())
    return Status::error("convolution too large: its packed input has " + std::to_string(scalars) +
                         " elements, the limit is 2^31 - 1");
  if (pattern.crow_indices[0] != 0 ||
      pattern.crow_indices[pattern.rows / pattern.block_size] != pattern.blocks)
    return Status::error("crow_indices must start at 0 and end at " +
                         std::string(pattern.block_size == 1 ? "nnz" : "the number of blocks") +
                         " = " + std::to_string(pattern.blocks));
  return Status::ok();
}

Status check_pattern(const ConvShape& shape, const BsrPattern& pattern) {
  const int64_t size = pattern.block_size, rows = shape.out_channels / shape.groups;
  if (size < 1 || rows % size != 0)
    return Status::error("block_size: expected a divisor of the " + std::to_string(rows) +
                         " output channels of a group, got " + std::to_string(size));
  if (pattern.nnz() > std::numeric_limits<int32_t>::max())
    return Status::error("a weight may have 2^31 - 1 non-zeros, got " +
                         std::to_string(pattern.nnz()));
  return Status::ok();
}

}  // namespace dsr::cpu
