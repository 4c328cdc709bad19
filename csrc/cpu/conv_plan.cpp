#include "cpu/conv_plan.h"

#include <omp.h>

#include <algorithm>
#include <exception>

#include "cpu/dispatch.h"

namespace dsr::cpu {
namespace {

// Slices of the batch that grad-weight sums apart. Their number depends on the problem alone, so
// that the result does not depend on the threads.
constexpr int64_t kMaxSlices = 16;
constexpr int64_t kSliceBytes = 32 << 20;

char* aligned(char* workspace) {
  return reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(workspace) + 63) & ~uintptr_t{63});
}

template <typename S>
void run_gather(const GatherArgs<S>& args) {
  if constexpr (sizeof(S) == 4) {
    kernels().gather_f32(args);
  } else {
    kernels().gather_f64(args);
  }
}

// What the plans rely on; the callers' own checks say it in the user's terms.
Status check_shape(const ConvShape& s) {
  const int64_t smallest = std::min({s.in_channels, s.height, s.width, s.out_channels, s.out_height,
                                     s.out_width, s.kernel_h, s.kernel_w, s.stride_h, s.stride_w,
                                     s.dilation_h, s.dilation_w, s.groups});
  if (smallest < 1)
    return Status::error(
        "a convolution's sizes, stride, dilation and groups must be at least 1, got " +
        std::to_string(smallest));
  if (s.in_channels % s.groups != 0 || s.out_channels % s.groups != 0)
    return Status::error("groups = " + std::to_string(s.groups) + " must divide the " +
                         std::to_string(s.in_channels) + " input and " +
                         std::to_string(s.out_channels) + " output channels");
  return Status::ok();
}

// An exception must not leave an OpenMP region.
template <typename Make>
Status without_exceptions(Make make) {
  try {
    return make();
  } catch (const std::exception& error) {
    return Status::error(std::string("cannot plan the convolution: ") + error.what());
  }
}

PackLayout grad_layout_of(const GatherPlan& forward) {
  const DestinationClass& target = forward.classes[0];
  PackLayout l = forward.source;  // the same rows, pitch and images; no halo, one phase
  l.channels = forward.destination_channels;
  l.step_h = l.step_w = 1;
  l.phases = {{0, 0, target.rows, target.cols}};
  l.first_row = l.first_col = 0;
  l.halo_rows = forward.images > 1 ? l.image_rows - target.rows : 0;
  const int64_t stored =
      ((forward.images - 1) * l.image_rows + forward.band_rows + l.halo_rows) * l.pitch;
  l.plane = ((stored + 15) / 16 | 1) * 16;
  return l;
}

}  // namespace

Status ConvPlan::make(const ConvShape& shape, const CsrPattern& pattern, int element_size,
                      ConvPlan* plan) {
  Status valid = check_shape(shape);
  if (!valid.is_ok()) return valid;
  plan->shape_ = shape;
  plan->nnz_ = pattern.nnz;
  plan->element_size_ = element_size;
  Status forward, grad_input;
#pragma omp parallel sections
  {
#pragma omp section
    forward = without_exceptions(
        [&] { return make_forward_plan(shape, pattern, element_size, &plan->forward_); });
#pragma omp section
    grad_input = without_exceptions(
        [&] { return make_grad_input_plan(shape, pattern, element_size, &plan->grad_input_); });
  }
  if (!forward.is_ok()) return forward;
  plan->grad_layout_ = grad_layout_of(plan->forward_);
  return grad_input;
}

int64_t ConvPlan::slices(int64_t n) const {
  const int64_t most = kSliceBytes / std::max<int64_t>(1, nnz_ * element_size_);
  return std::clamp<int64_t>(std::min(most, kMaxSlices), 1,
                             std::max<int64_t>(1, forward_.units(n)));
}

int64_t ConvPlan::workspace_bytes(Op op, int64_t n, int threads) const {
  const int size = element_size_;
  switch (op) {
    case Op::kForward:
      return 64 + threads * (packed_bytes(forward_.source, size) + accumulator_bytes(size));
    case Op::kGradInput:
      return 64 + align64(nnz_ * size) +
             threads * (packed_bytes(grad_input_.source, size) + accumulator_bytes(size));
    case Op::kGradWeight:
      return 64 + slices(n) * nnz_ * size +
             threads * (packed_bytes(forward_.source, size) + packed_bytes(grad_layout_, size));
  }
  return 0;
}

std::string ConvPlan::describe() const {
  const auto line = [](const char* name, const GatherPlan& p) {
    return std::string(name) + ": " + std::to_string(p.images) + " image(s) x " +
           std::to_string(p.band_rows) + " row(s) per unit, pitch " +
           std::to_string(p.source.pitch) + ", " + std::to_string(p.source.phases.size()) +
           " phase(s), " + std::to_string(p.classes.size()) + " class(es), " +
           std::to_string(p.blocks) + " block(s) of " + std::to_string(p.channel_block) +
           " channels, " + std::to_string(p.source.elements()) + " packed elements";
  };
  return line("forward", forward_) + "\n" + line("grad_input", grad_input_);
}

template <typename S>
void ConvPlan::forward(int64_t n, const S* x, const Strides4& x_strides, const S* values,
                       const S* bias, S* y, const Strides4& y_strides, int threads,
                       char* workspace) const {
  run_gather<S>(
      {&forward_, n, x, x_strides, values, bias, y, y_strides, threads, aligned(workspace)});
}

template <typename S>
void ConvPlan::grad_input(int64_t n, const S* grad_y, const Strides4& grad_y_strides,
                          const S* values, S* grad_x, const Strides4& grad_x_strides, int threads,
                          char* workspace) const {
  workspace = aligned(workspace);
  S* ordered = reinterpret_cast<S*>(workspace);
  const int32_t* index = grad_input_.value_index.data();
#pragma omp parallel for num_threads(threads)
  for (int64_t k = 0; k < nnz_; ++k) ordered[k] = values[index[k]];
  run_gather<S>({&grad_input_, n, grad_y, grad_y_strides, ordered, nullptr, grad_x, grad_x_strides,
                 threads, workspace + align64(nnz_ * element_size_)});
}

template <typename S>
void ConvPlan::grad_weight(int64_t n, const S* x, const Strides4& x_strides, const S* grad_y,
                           const Strides4& grad_y_strides, S* grad_values, int threads,
                           char* workspace) const {
  const GradWeightArgs<S> args{
      &forward_,      &grad_layout_, n,         x,       x_strides,         grad_y,
      grad_y_strides, grad_values,   slices(n), threads, aligned(workspace)};
  if constexpr (sizeof(S) == 4) {
    kernels().grad_weight_f32(args);
  } else {
    kernels().grad_weight_f64(args);
  }
}

#define DSR_INSTANTIATE(S)                                                                       \
  template void ConvPlan::forward<S>(int64_t, const S*, const Strides4&, const S*, const S*, S*, \
                                     const Strides4&, int, char*) const;                         \
  template void ConvPlan::grad_input<S>(int64_t, const S*, const Strides4&, const S*, S*,        \
                                        const Strides4&, int, char*) const;                      \
  template void ConvPlan::grad_weight<S>(int64_t, const S*, const Strides4&, const S*,           \
                                         const Strides4&, S*, int, char*) const;
DSR_INSTANTIATE(float)
DSR_INSTANTIATE(double)

}  // namespace dsr::cpu
