// The kernels every instruction set provides, as plain function pointers over plain structs.
#pragma once

#include <cstdint>

#if defined(DSR_SANITIZE)
#include <sanitizer/asan_interface.h>
#endif

#include "common/conv_shape.h"
#include "cpu/conv/gather_plan.h"

namespace dsr::cpu {

inline constexpr int kMaxTileRows = 4, kMaxTileCols = 8;  // of tiles with more than one row

inline constexpr int kRowVectors[] = {1, 2, 4};  // vectors of a packed row in kRow

// What activations are stored as; they are computed in the type of the values.
enum class Element { kFloat32, kFloat64, kBFloat16 };

// y = gather(x): forward, or grad-input on the transposed plan.
template <typename S>
struct GatherArgs {
  const GatherPlan* plan;
  int64_t n;
  const void* source;  // [N, source channels, ...] of source_element
  Strides4 source_strides;
  Element source_element;
  const S* values;    // [nnz], in the order of plan->offsets
  const S* bias;      // [destination channels] or null
  void* destination;  // [N, destination channels, ...] of destination_element, fully overwritten
  Strides4 destination_strides;
  Element destination_element;
  int threads;
  char* workspace;  // threads * gather_bytes(), 64-byte aligned
};

// grad_values[k] = sum over n, m of grad[n, row(k), m] * packed x[offset(k) + m], on the forward
// plan.
template <typename S>
struct GradWeightArgs {
  const GatherPlan* plan;
  const PackLayout* grad_layout;
  int64_t n;
  const void* x;  // [N, C, H, W]
  Strides4 x_strides;
  Element x_element;
  const void* grad;  // [N, O, P, Q]
  Strides4 grad_strides;
  Element grad_element;
  S* grad_values;  // [nnz], fully overwritten
  int64_t slices;  // the batch is summed in this many parts, whatever the number of threads
  int threads;
  char* workspace;  // threads * grad_weight_bytes(), then [slices][nnz] sums
};

struct KernelTable {
  const char* name;
  int vector_bytes;
  bool masks_lanes;      // multiply-adds can leave lanes out at no cost: what kRow wants
  int tile_vectors;      // what the registers hold beside an operand and a value
  int row_tile_vectors;  // the same for kRow
  void (*gather_f32)(const GatherArgs<float>&);
  void (*gather_f64)(const GatherArgs<double>&);
  void (*grad_weight_f32)(const GradWeightArgs<float>&);
  void (*grad_weight_f64)(const GradWeightArgs<double>&);
  double (*peak_gflops)(int threads, double seconds);  // float32, from registers, as measured
};

// Bytes of one thread's share of the workspace, as the kernels cut it up.
inline int64_t align64(int64_t bytes) { return (bytes + 63) & ~int64_t{63}; }
#if defined(DSR_SANITIZE)
inline constexpr int64_t kGuardBytes = 64;  // behind every part, where nothing may read or write
#else
inline constexpr int64_t kGuardBytes = 0;
#endif
inline int64_t part_bytes(int64_t bytes) { return align64(bytes) + kGuardBytes; }
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
inline int64_t packed_bytes(const GatherPlan& plan, const PackLayout& layout, int element_size) {
  return part_bytes((layout.elements() * plan.lane_images + kSlack) * element_size);
}
// kBatch: where each pixel of a source channel goes, and which elements of the packed plane are
// zero.
inline int64_t pixel_map_bytes(const GatherPlan& plan, const PackLayout& layout) {
  if (plan.lanes != Lanes::kBatch) return 0;
  return part_bytes((layout.height * layout.width + layout.channel_stride()) *
                    static_cast<int64_t>(sizeof(int32_t)));
}
// kBatch: elements from one channel's accumulators of a strip to the next; odd, so that they do not
// fall on the same cache sets.
inline int64_t strip_elements(const GatherPlan& plan) {
  return (plan.tile_rows * plan.step_h * plan.strip_cols * plan.step_w) | 1;
}
// kRow: scalars of one class's accumulators in one tile, and vectors that a slot spans.
inline int64_t row_class_scalars(const GatherPlan& plan, int64_t lanes) {
  return plan.destination_channels * plan.tile_rows * plan.row_vectors * lanes;
}
inline int64_t slot_vectors(const GatherPlan& plan) {
  const int64_t lanes = plan.source.pitch / plan.row_vectors;
  return plan.slot_lanes > lanes ? plan.slot_lanes / lanes : 1;
}
inline constexpr int kMaxTables = 8;  // of a plan for kRow
inline int64_t accumulator_bytes(const GatherPlan& plan, int element_size) {
  if (plan.lanes == Lanes::kRow) {
    const int64_t lanes = plan.source.pitch / plan.row_vectors;
    const int64_t classes = static_cast<int64_t>(plan.classes.size());
    // A last vector is read whole, from wherever its slot begins.
    return part_bytes((classes * row_class_scalars(plan, lanes) + lanes) * element_size);
  }
  const int64_t scalars =
      plan.lanes == Lanes::kPlane ? kMaxTileElements : strip_elements(plan) * plan.lane_images;
  return part_bytes(plan.destination_block * scalars * element_size);
}
inline int64_t gather_bytes(const GatherPlan& plan, int element_size) {
  return packed_bytes(plan, plan.source, element_size) + accumulator_bytes(plan, element_size) +
         pixel_map_bytes(plan, plan.source);
}
inline int64_t grad_weight_bytes(const GatherPlan& plan, const PackLayout& grad, int element_size) {
  return packed_bytes(plan, plan.source, element_size) + packed_bytes(plan, grad, element_size) +
         pixel_map_bytes(plan, plan.source) + pixel_map_bytes(plan, grad);
}

}  // namespace dsr::cpu
