// One convolution's launchers on the CPU, with everything derived from its pattern and geometry.
#pragma once

#include <string>

#include "common/conv_shape.h"
#include "common/status.h"
#include "cpu/conv/gather_plan.h"
#include "cpu/conv/kernels.h"

namespace dsr::cpu {

enum class Op { kForward, kGradInput, kGradWeight };

// An activation in memory: [N, channels, height, width] of any strides.
struct Activation {
  void* data;
  Element element;
  Strides4 strides;
};

class ConvPlan {
 public:
  // The pattern is validated and not kept. element_size is 4 (float) or 8 (double). The plan
  // belongs to the instruction set that is active now.
  static Status make(const ConvShape& shape, const BsrPattern& pattern, int element_size,
                     Lanes lanes, Direction direction, ConvPlan* plan);

  // Bytes of workspace that a launch needs. The address need not be aligned.
  // `sums` says whether Finish::sums are asked for.
  int64_t workspace_bytes(Op op, int64_t n, int threads, bool sums = false) const;
  int element_size() const { return element_size_; }
  Direction direction() const { return direction_; }
  const GatherPlan& gather_plan() const { return gather_; }

  // sparse_conv2d and sparse_conv2d_grad_weight take a plan of Direction::kForward,
  // sparse_conv2d_grad_input one of kGradInput; S must have the plan's element size.

  // y = finish(conv2d(x, w) + bias)
  template <typename S>
  void sparse_conv2d(int64_t n, const Operand<S>& x, const S* values, const S* bias,
                     const Activation& y, const Finish<S>& finish, int threads,
                     char* workspace) const;
  template <typename S>
  void sparse_conv2d_grad_input(int64_t n, const Operand<S>& grad_y, const S* values,
                                const Activation& grad_x, const Finish<S>& finish, int threads,
                                char* workspace) const;
  template <typename S>
  void sparse_conv2d_grad_weight(int64_t n, const Operand<S>& x, const Operand<S>& grad_y,
                                 S* grad_values,  // [nnz]
                                 int threads, char* workspace) const;

  // grad_input and grad_weight at once; `forward` is a plan of the same convolution.
  template <typename S>
  void sparse_conv2d_backward(const ConvPlan& forward, int64_t n, const Operand<S>& grad_y,
                              const S* values, const Activation& grad_x, const Finish<S>& finish,
                              const Operand<S>& x, S* grad_values, int threads,
                              char* workspace) const;
  int64_t backward_workspace_bytes(const ConvPlan& forward, int64_t n, int threads,
                                   bool sums) const {
    return workspace_bytes(Op::kGradInput, n, threads, sums) +
           forward.workspace_bytes(Op::kGradWeight, n, threads);
  }

 private:
  template <typename S>
  GatherArgs<S> gather_args(int64_t n, const Operand<S>& source, const S* values, const S* bias,
                            const Activation& destination, const Finish<S>& finish, int threads,
                            char* workspace) const;
  template <typename S>
  GradWeightArgs<S> grad_weight_args(int64_t n, const Operand<S>& x, const Operand<S>& grad_y,
                                     S* grad_values, int threads, char* workspace) const;
  template <typename S>
  const S* ordered(const S* values, int threads, char** workspace) const;
  int64_t slices(int64_t n) const;
  int useful(int threads, int64_t n) const;

  const KernelTable* kernels_ = nullptr;
  int64_t nnz_ = 0;
  int64_t work_per_image_ = 0;  // in multiply-adds, roughly
  int element_size_ = 4;
  Direction direction_ = Direction::kForward;
  GatherPlan gather_;
  PackLayout grad_layout_;  // the output gradient beside the packed input, for grad-weight
};

// The lanes that suit a convolution at a batch of n on the active instruction set.
// `contiguous_rows` says whether the pixels of a row lie side by side in the activations' memory,
// `bfloat16` whether that holds bfloat16.
// `reason`, where asked for, gets the rule that decided, in words.
Lanes choose_lanes(const ConvShape& shape, int64_t n, bool contiguous_rows, int element_size,
                   int64_t block_size, bool bfloat16, std::string* reason = nullptr);

}  // namespace dsr::cpu
