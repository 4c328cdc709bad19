// The kernels every instruction set provides, as plain function pointers over plain structs.
#pragma once

#include <cstdint>

#include "common/conv_shape.h"
#include "cpu/gather_plan.h"

namespace dsr::cpu {

// y = gather(x): forward, or grad-input on the transposed plan.
template <typename S>
struct GatherArgs {
  const GatherPlan* plan;
  int64_t n;
  const S* source;  // [N, source channels, ...]
  Strides4 source_strides;
  const S* values;  // [nnz], in the order of plan->offsets
  const S* bias;    // [destination channels] or null
  S* destination;   // [N, destination channels, ...], fully overwritten
  Strides4 destination_strides;
  int threads;
  char* workspace;  // gather_workspace_bytes(), 64-byte aligned
};

// grad_values[k] = sum over n, m of grad[n, row(k), m] * packed x[offset(k) + m], on the forward
// plan.
template <typename S>
struct GradWeightArgs {
  const GatherPlan* plan;
  const PackLayout* grad_layout;
  int64_t n;
  const S* x;  // [N, C, H, W]
  Strides4 x_strides;
  const S* grad;  // [N, O, P, Q]
  Strides4 grad_strides;
  S* grad_values;  // [nnz], fully overwritten
  int64_t slices;  // the batch is summed in this many parts, whatever the number of threads
  int threads;
  char* workspace;
};

struct KernelTable {
  const char* name;
  int tile_elements_f32, tile_elements_f64;
  void (*gather_f32)(const GatherArgs<float>&);
  void (*gather_f64)(const GatherArgs<double>&);
  void (*grad_weight_f32)(const GradWeightArgs<float>&);
  void (*grad_weight_f64)(const GradWeightArgs<double>&);
};

// Bytes of one thread's share of the workspace, as the kernels cut it up.
inline int64_t align64(int64_t bytes) { return (bytes + 63) & ~int64_t{63}; }
inline int64_t packed_bytes(const PackLayout& layout, int element_size) {
  return align64(layout.elements() * element_size);
}
inline int64_t accumulator_bytes(int element_size) {
  return align64(int64_t{kDestinationBlock} * kMaxTileElements * element_size);
}

}  // namespace dsr::cpu
