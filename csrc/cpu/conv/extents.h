// How large a convolution may be, so that no sum or product of its sizes overflows.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "common/conv_shape.h"
#include "common/status.h"
#include "cpu/conv/gather_plan.h"

namespace dsr::cpu {

// The largest size along any axis. Sums of a few of them, and products of two, fit 64 bits.
inline constexpr int64_t kMaxExtent = 0x7fffffff;

// The product of numbers >= 0, or the largest int64_t where it would pass that.
int64_t saturating_product(std::initializer_list<int64_t> factors);

// Whether every size lies in [1, kMaxExtent], the kernel's extent and the padding with them. The
// callers' own checks say it in the user's terms; the plans rely on it.
Status check_extents(const ConvShape& shape);

// Of a plan that is laid out: whether what it reads and writes per image stays so small that the
// tiling's products fit 64 bits. No memory holds more.
Status check_volume(const GatherPlan& plan);

// Of a plan that is tiled: whether 32 bits count what it packs, and the pattern its blocks.
Status check_offsets(const GatherPlan& plan, const BsrPattern& pattern);

// Block rows may not cross the border of two groups, nor the end of the weight.
Status check_pattern(const ConvShape& shape, const BsrPattern& pattern);

}  // namespace dsr::cpu
