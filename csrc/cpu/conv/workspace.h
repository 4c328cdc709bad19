// The memory of a launch: one share for each thread, cut into parts by the kernels, and what each
// part takes.
#pragma once

#include <cstdint>

#if defined(DSR_SANITIZE)
#include <sanitizer/asan_interface.h>
#endif

#include "cpu/conv/gather_plan.h"
#include "cpu/isa/limits.h"

namespace dsr::cpu {

inline constexpr int kBFloat16Bytes = 2;

static inline int64_t align_up(int64_t bytes) {
  return (bytes + kAlignment - 1) & ~int64_t{kAlignment - 1};
}
// The first aligned address of a workspace that has kAlignment bytes to spare.
static inline char* align_up(char* workspace) {
  return reinterpret_cast<char*>(align_up(reinterpret_cast<intptr_t>(workspace)));
}
#if defined(DSR_SANITIZE)
inline constexpr int64_t kGuardBytes =
    kAlignment;  // behind every part, where nothing may read or write
#else
inline constexpr int64_t kGuardBytes = 0;
#endif
static inline int64_t part_bytes(int64_t bytes) { return align_up(bytes) + kGuardBytes; }
// Cuts a part of part_bytes() off the front of a workspace.
static inline __attribute__((always_inline)) char* cut_part(char** workspace, int64_t bytes) {
  char* part = *workspace;
  *workspace += bytes;
#if defined(DSR_SANITIZE)
  if (bytes > 0) ASAN_POISON_MEMORY_REGION(*workspace - kGuardBytes, kGuardBytes);
#endif
  return part;
}
// The workspace is kept for other layouts: the guards of a launch end with it.
static inline __attribute__((always_inline)) void drop_guards([[maybe_unused]] char* workspace,
                                                              [[maybe_unused]] int64_t bytes) {
#if defined(DSR_SANITIZE)
  ASAN_UNPOISON_MEMORY_REGION(workspace, bytes);
#endif
}
// Of what is packed.
static inline int packed_size(const GatherPlan& plan, int element_size) {
  return plan.lanes == Lanes::kMatrix ? kBFloat16Bytes : element_size;
}
// Readable scalars behind it. kMatrix: a piece of two rows may end a row after the last one.
static inline int64_t slack(const GatherPlan& plan, const PackLayout& layout) {
  return kSlack + (plan.lanes == Lanes::kMatrix ? layout.pitch : 0);
}
static inline int64_t packed_bytes(const GatherPlan& plan, const PackLayout& layout,
                                   int element_size) {
  return part_bytes((layout.elements() * plan.batch.lane_images + slack(plan, layout)) *
                    packed_size(plan, element_size));
}
// kBatch: where each pixel of a source channel goes, and which elements of the packed plane are
// zero.
static inline int64_t pixel_map_bytes(const GatherPlan& plan, const PackLayout& layout) {
  if (plan.lanes != Lanes::kBatch) return 0;
  return part_bytes((layout.height * layout.width + layout.channel_stride()) *
                    static_cast<int64_t>(sizeof(int32_t)));
}
// kBatch: elements from one channel's accumulators of a strip to the next; odd, so that they do not
// fall on the same cache sets.
static inline int64_t strip_elements(const GatherPlan& plan) {
  return (plan.tile.rows * plan.destination.step_h * plan.strip.cols * plan.destination.step_w) | 1;
}
// kRow: scalars of one class's accumulators in one tile, and vectors that a slot spans.
static inline int64_t row_class_scalars(const GatherPlan& plan, int64_t lanes) {
  return plan.destination.channels * plan.tile.rows * plan.row.vectors * lanes;
}
static inline int64_t slot_vectors(const GatherPlan& plan) {
  const int64_t lanes = plan.source.pitch / plan.row.vectors;
  return plan.row.slot_lanes > lanes ? plan.row.slot_lanes / lanes : 1;
}
static inline int64_t accumulator_bytes(const GatherPlan& plan, int element_size) {
  if (plan.lanes == Lanes::kRow) {
    const int64_t lanes = plan.source.pitch / plan.row.vectors;
    const int64_t classes = static_cast<int64_t>(plan.destination.classes.size());
    // A last vector is read whole, from wherever its slot begins.
    return part_bytes((classes * row_class_scalars(plan, lanes) + lanes) * element_size);
  }
  const int64_t scalars = plan.is_plane() ? kMaxTileElements + kMatrixRows
                                          : strip_elements(plan) * plan.batch.lane_images;
  return part_bytes(plan.strip.channels * scalars * element_size);
}
// A thread's sums of one unit by channel (isa/channel_sums.h), and what all units leave.
static inline int64_t unit_sums_bytes(const GatherPlan& plan, int element_size) {
  const int64_t channels = plan.destination.channels;
  return part_bytes((4 * (channels + kMaxLanes) + 2 * channels * kMaxLanes) * element_size);
}
static inline int64_t partial_sums_bytes(const GatherPlan& plan, int64_t n, int element_size) {
  return part_bytes(3 * plan.units(n) * plan.destination.channels * element_size);
}
// kMatrix, grad-input: the packed source in pairs of channels.
static inline int64_t pairs_bytes(const GatherPlan& plan) {
  if (plan.lanes != Lanes::kMatrix || !plan.has_groups()) return 0;
  const int64_t products = (plan.source.channels + kMatrixDepth - 1) / kMatrixDepth;
  const int64_t halves = products * kMatrixDepth * plan.source.plane;
  return part_bytes((halves + 2 * slack(plan, plan.source)) * kBFloat16Bytes);
}
// kMatrix, grad-weight: the gradient of one block of output channels in pairs of pixels.
static inline int64_t grad_tiles_bytes(const GatherPlan& plan, const PackLayout& grad) {
  if (plan.lanes != Lanes::kMatrix) return 0;
  return part_bytes((grad.plane + kMatrixPixels) * kMatrixRows * kBFloat16Bytes);
}
static inline int64_t gather_bytes(const GatherPlan& plan, int element_size) {
  return packed_bytes(plan, plan.source, element_size) + accumulator_bytes(plan, element_size) +
         pixel_map_bytes(plan, plan.source) + unit_sums_bytes(plan, element_size) +
         pairs_bytes(plan);
}
static inline int64_t grad_weight_bytes(const GatherPlan& plan, const PackLayout& grad,
                                        int element_size) {
  return packed_bytes(plan, plan.source, element_size) + packed_bytes(plan, grad, element_size) +
         pixel_map_bytes(plan, plan.source) + pixel_map_bytes(plan, grad) +
         grad_tiles_bytes(plan, grad);
}

}  // namespace dsr::cpu
