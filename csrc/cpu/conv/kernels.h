// The kernels every instruction set provides, as plain function pointers over plain structs.
#pragma once

#include <cstdint>

#include "common/conv_shape.h"
#include "cpu/conv/gather_plan.h"
#include "cpu/isa/limits.h"

namespace dsr::cpu {

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

// What one instruction set's build provides (isa/table.cpp).
struct KernelTable {
  const char* name;
  Limits limits;
  void (*gather_f32)(const GatherArgs<float>&);  // isa/gather.cpp
  void (*gather_f64)(const GatherArgs<double>&);
  void (*grad_weight_f32)(const GradWeightArgs<float>&);  // isa/grad_weight.cpp
  void (*grad_weight_f64)(const GradWeightArgs<double>&);
  double (*peak_gflops)(int threads, double seconds);  // float32, from registers, as measured

  void gather(const GatherArgs<float>& args) const { gather_f32(args); }
  void gather(const GatherArgs<double>& args) const { gather_f64(args); }
  void grad_weight(const GradWeightArgs<float>& args) const { grad_weight_f32(args); }
  void grad_weight(const GradWeightArgs<double>& args) const { grad_weight_f64(args); }
};

}  // namespace dsr::cpu
