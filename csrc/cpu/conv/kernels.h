// The kernels every instruction set provides, as plain function pointers over plain structs.
#pragma once

#include <cstdint>

#include "common/conv_shape.h"
#include "cpu/conv/fused.h"
#include "cpu/conv/gather_plan.h"
#include "cpu/elementwise/elementwise.h"
#include "cpu/isa/limits.h"

namespace dsr::cpu {

// y = gather(x): forward, or grad-input on the transposed plan.
template <typename S>
struct GatherArgs {
  const GatherPlan* plan;
  int64_t n;
  Operand<S> source;                  // [N, source channels, ...]
  const S* values;                    // [nnz], in the order of plan->offsets; kMatrix: null, and
  const void* tile_values = nullptr;  // bfloat16: forward tiles of weights, else [steps][16]
  const S* bias;                      // [destination channels] or null
  void* destination;  // [N, destination channels, ...] of destination_element, fully overwritten
  Strides4 destination_strides;
  Element destination_element;
  Finish<S> finish;
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
  Operand<S> x;     // [N, C, H, W]
  Operand<S> grad;  // [N, O, P, Q]
  S* grad_values;   // [nnz], fully overwritten
  int64_t slices;   // the batch is summed in this many parts, whatever the number of threads
  int threads;
  char* workspace;  // threads * grad_weight_bytes(), then [slices][nnz] sums

  // Whether slices fill the threads; if not, output channels are shared out too.
  bool is_even() const { return slices % threads == 0 || slices >= 8 * threads; }
};

// What one instruction set's build provides (isa/table.cpp).
struct KernelTable {
  const char* name;
  Limits limits;
  void (*gather_f32)(const GatherArgs<float>&);  // isa/gather.cpp
  void (*gather_f64)(const GatherArgs<double>&);
  void (*grad_weight_f32)(const GradWeightArgs<float>&);  // isa/grad_weight.cpp
  void (*grad_weight_f64)(const GradWeightArgs<double>&);
  // Both at once, unit by unit, so that the second finds in cache what the first has read.
  void (*backward_f32)(const GatherArgs<float>&, const GradWeightArgs<float>&);  // isa/gather.cpp
  void (*backward_f64)(const GatherArgs<double>&, const GradWeightArgs<double>&);
  void (*channel_moments)(const MomentsArgs&);           // isa/channel_moments.cpp
  void (*channel_affine_f32)(const AffineArgs<float>&);  // isa/channel_affine.cpp
  void (*channel_affine_f64)(const AffineArgs<double>&);
  void (*channel_affine_grad_f32)(const AffineGradArgs<float>&);  // isa/channel_affine_grad.cpp
  void (*channel_affine_grad_f64)(const AffineGradArgs<double>&);
  double (*peak_gflops)(int threads, double seconds);  // float32, from registers, as measured

  void gather(const GatherArgs<float>& args) const { gather_f32(args); }
  void gather(const GatherArgs<double>& args) const { gather_f64(args); }
  void grad_weight(const GradWeightArgs<float>& args) const { grad_weight_f32(args); }
  void grad_weight(const GradWeightArgs<double>& args) const { grad_weight_f64(args); }
  void backward(const GatherArgs<float>& x, const GradWeightArgs<float>& w) const {
    backward_f32(x, w);
  }
  void backward(const GatherArgs<double>& x, const GradWeightArgs<double>& w) const {
    backward_f64(x, w);
  }
  void channel_affine(const AffineArgs<float>& args) const { channel_affine_f32(args); }
  void channel_affine(const AffineArgs<double>& args) const { channel_affine_f64(args); }
  void channel_affine_grad(const AffineGradArgs<float>& args) const {
    channel_affine_grad_f32(args);
  }
  void channel_affine_grad(const AffineGradArgs<double>& args) const {
    channel_affine_grad_f64(args);
  }
};

}  // namespace dsr::cpu
