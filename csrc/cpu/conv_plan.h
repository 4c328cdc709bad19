// One convolution's launchers on the CPU, with everything derived from its pattern and geometry.
#pragma once

#include <string>

#include "common/conv_shape.h"
#include "common/status.h"
#include "cpu/gather_plan.h"

namespace dsr::cpu {

enum class Op { kForward, kGradInput, kGradWeight };

class ConvPlan {
 public:
  // The pattern is validated and not kept. element_size is 4 (float) or 8 (double).
  static Status make(const ConvShape& shape, const CsrPattern& pattern, int element_size,
                     ConvPlan* plan);

  // Bytes of workspace a launch needs, at any address.
  int64_t workspace_bytes(Op op, int64_t n, int threads) const;
  int64_t bytes() const { return forward_.bytes() + grad_input_.bytes(); }
  int element_size() const { return element_size_; }
  std::string describe() const;

  // y = conv2d(x, w) + bias; S must have the plan's element size.
  template <typename S>
  void forward(int64_t n, const S* x,  // [N, C, H, W]
               const Strides4& x_strides, const S* values, const S* bias,
               S* y,  // [N, O, P, Q]
               const Strides4& y_strides, int threads, char* workspace) const;
  template <typename S>
  void grad_input(int64_t n, const S* grad_y,  // [N, O, P, Q]
                  const Strides4& grad_y_strides, const S* values,
                  S* grad_x,  // [N, C, H, W]
                  const Strides4& grad_x_strides, int threads, char* workspace) const;
  template <typename S>
  void grad_weight(int64_t n, const S* x, const Strides4& x_strides, const S* grad_y,
                   const Strides4& grad_y_strides,
                   S* grad_values,  // [nnz]
                   int threads, char* workspace) const;

 private:
  int64_t slices(int64_t n) const;

  ConvShape shape_{};
  int64_t nnz_ = 0;
  int element_size_ = 4;
  GatherPlan forward_;
  GatherPlan grad_input_;
  PackLayout grad_layout_;  // the output gradient on the rows and pitch of the packed input
};

}  // namespace dsr::cpu
