#include "cpu/conv/conv_plan.h"

#include <omp.h>

#include <algorithm>
#include <cstdlib>

#include "cpu/conv/extents.h"
#include "cpu/conv/launch_finite.h"
#include "cpu/conv/layout.h"
#include "cpu/conv/matrix_plan.h"
#include "cpu/conv/workspace.h"
#include "cpu/dispatch.h"

namespace dsr::cpu {
namespace {

// Slices of the batch that grad-weight sums apart. Their number depends on the problem alone, so
// that the result does not depend on the threads.
constexpr int64_t kMaxSlices = 16;
constexpr int64_t kSliceBytes = 32 << 20;

// Where there is one row or column of outputs, the stride says nothing; as large as given, it could
// only make the accumulators large.
ConvShape without_idle_stride(ConvShape s) {
  if (s.out_height == 1) s.stride_h = std::min(s.stride_h, s.height + std::abs(s.pad_h));
  if (s.out_width == 1) s.stride_w = std::min(s.stride_w, s.width + std::abs(s.pad_w));
  return s;
}

// At least `elements`, as an odd number of cache lines: see choose_plane in plane_length.cpp.
int64_t odd_lines(int64_t elements) {
  constexpr int64_t kLine = kCacheLine / sizeof(float);
  return (ceil_div(elements, kLine) | 1) * kLine;
}

// The output gradient on the rows of the packed input (kPlane: and on its pitch).
PackLayout grad_layout_of(const GatherPlan& forward) {
  const DestinationClass& target = forward.destination.classes[0];
  PackLayout l = forward.source;  // the same images; no halo, one phase
  l.channels = forward.destination.channels;
  l.height = target.rows;
  l.width = target.cols;
  l.step_h = l.step_w = 1;
  l.phases = {{0, 0, target.rows, target.cols}};
  l.first_row = l.first_col = 0;
  const bool stacked = forward.is_plane() && forward.unit.images > 1;
  l.halo_rows = stacked ? l.image_rows - target.rows : 0;
  l.halo_cols = 0;
  if (forward.lanes == Lanes::kRow) {
    l.plane = odd_lines(forward.unit.band_rows * l.pitch);
    return l;
  }
  if (forward.lanes == Lanes::kBatch) {
    l.pitch = target.cols;
    l.plane = (forward.unit.band_rows * l.pitch + 1) | 1;
    return l;
  }
  const int64_t stored =
      ((forward.unit.images - 1) * l.image_rows + forward.unit.band_rows + l.halo_rows) * l.pitch;
  // A matrix unit takes whole stretches of pixels: those beyond the last are zero.
  const int64_t whole = ceil_div(stored, kMatrixPixels) | 1;
  l.plane = forward.lanes == Lanes::kMatrix ? whole * kMatrixPixels : odd_lines(stored);
  return l;
}

}  // namespace

Status ConvPlan::make(const ConvShape& shape, const BsrPattern& pattern, int element_size,
                      Lanes lanes, Direction direction, ConvPlan* plan) {
  Status status = check_extents(shape);
  if (!status.is_ok()) return status;
  plan->kernels_ = &kernels();
  plan->nnz_ = pattern.nnz();
  plan->element_size_ = element_size;
  plan->direction_ = direction;
  status = make_gather_plan(without_idle_stride(shape), pattern, element_size, lanes, direction,
                            &plan->gather_);
  if (!status.is_ok()) return status;
  // To pack or to store one pixel, and a limit that is enough for any number of threads.
  constexpr int64_t kPerPixel = 16, kMaxWork = int64_t{1} << 60;
  const int64_t in = shape.height * shape.width, out = shape.out_height * shape.out_width;
  const int64_t computed = saturating_product({pattern.nnz(), std::max(in, out)});
  plan->work_per_image_ = std::min(computed, kMaxWork) +
                          kPerPixel * (in * shape.in_channels + out * shape.out_channels);
  if (direction == Direction::kForward) plan->grad_layout_ = grad_layout_of(plan->gather_);
  return status;
}

// Threads that have enough to do: waking one costs some microseconds. Results do not depend on it.
int ConvPlan::useful(int threads, int64_t n) const {
  constexpr int64_t kWorthAThread = 100'000;
  const int64_t most = saturating_product({n, work_per_image_}) / kWorthAThread;
  return static_cast<int>(std::clamp<int64_t>(most, 1, std::max(threads, 1)));
}

int64_t ConvPlan::slices(int64_t n) const {
  const int64_t most = kSliceBytes / std::max<int64_t>(1, nnz_ * element_size_);
  return std::clamp<int64_t>(std::min(most, kMaxSlices), 1, std::max<int64_t>(1, gather_.units(n)));
}

Lanes choose_lanes(const ConvShape& shape, int64_t n, bool contiguous_rows, int element_size,
                   int64_t block_size, bool bfloat16, std::string* reason) {
  constexpr int64_t kMarginPercent = 15;  // of a row, that blocks compute in vain in the plane
  constexpr int64_t kFilledPercent = 60;  // below, the shifted loads of the plane cost less
  const Limits& limits = kernels().limits;
  const int64_t lanes = limits.lanes(element_size);
  n = std::min(n, kMaxExtent);                          // 100 * n below must fit
  const auto because = [&](Lanes choice, auto words) {  // words are made only where asked for
    if (reason) *reason = words();
    return choice;
  };
  const bool strided =
      shape.stride_h * shape.stride_w > 1;  // phases pack, and classes store, by single pixels
  if (limits.matrix_unit != MatrixUnit::kNone && bfloat16 && !strided && element_size == 4 &&
      fits_matrix_unit(block_size))
    return because(Lanes::kMatrix, [&] {
      const bool is_amx = limits.matrix_unit == MatrixUnit::kAmx;
      return std::string("bfloat16: ") + (is_amx ? "AMX" : "AVX512-BF16") + " takes blocks of 16";
    });
  if (shape.taps() == 1 && shape.stride_h * shape.stride_w == 1)
    return because(Lanes::kPlane, [] { return "pointwise: no tap shifts a load"; });
  if (limits.masks_lanes && element_size == 4 && contiguous_rows) {
    const int64_t slot =
        std::min(slot_lanes(forward_pass(shape)), slot_lanes(grad_input_pass(shape)));
    // Narrow rows lie beside those of other images.
    if (slot >= lanes || (slot > 0 && n * slot >= 4 * lanes))
      return because(Lanes::kRow, [&] {
        return "rows of " + std::to_string(shape.width) + " px turn in registers";
      });
  }
  const int64_t margin = ceil_div((shape.kernel_w - 1) * shape.dilation_w, 2 * shape.stride_w);
  if (block_size % kBlockRows == 0 && contiguous_rows &&
      kMarginPercent * shape.out_width >= 100 * margin)
    return because(Lanes::kPlane, [&] {
      return "a shifted load serves " + std::to_string(kBlockRows) + " output channels";
    });
  const int64_t carried = ceil_div(n, lanes) * lanes;
  if (100 * n >= kFilledPercent * carried)
    return because(Lanes::kBatch, [&] {
      return (n == 1 ? "1 image fills " : std::to_string(n) + " images fill ") +
             std::to_string(100 * n / carried) + " % of the lanes";
    });
  return because(Lanes::kPlane, [&] {
    return "a batch of " + std::to_string(n) + " would leave " +
           std::to_string(100 - 100 * n / carried) + " % of the lanes empty";
  });
}

int64_t ConvPlan::workspace_bytes(Op op, int64_t n, int threads, bool sums) const {
  const int size = element_size_;
  if (op == Op::kGradWeight)
    return kAlignment + slices(n) * nnz_ * size +
           threads * grad_weight_bytes(gather_, grad_layout_, size);
  const int64_t values =
      gather_.lanes == Lanes::kMatrix ? tile_values_bytes(gather_) : part_bytes(nnz_ * size);
  return kAlignment + values + threads * gather_bytes(gather_, size) +
         (sums ? partial_sums_bytes(gather_, n, size) : 0);
}

// The values in the order of the plan, copied to the workspace.
template <typename S>
const S* ConvPlan::ordered(const S* values, int threads, char** workspace) const {
  S* copy = reinterpret_cast<S*>(cut_part(workspace, part_bytes(nnz_ * element_size_)));
  const int32_t* index = gather_.value_index.data();
  constexpr int64_t kWorthThreads = 8192;
#pragma omp parallel for num_threads(threads) if (nnz_ > kWorthThreads)
  for (int64_t k = 0; k < nnz_; ++k) copy[k] = values[index[k]];
  return copy;
}

template <typename S>
GatherArgs<S> ConvPlan::gather_args(int64_t n, const Operand<S>& source, const S* values,
                                    const S* bias, const Activation& destination,
                                    const Finish<S>& finish, int threads, char* workspace) const {
  char* parts = align_up(workspace);
  void* tile_values = nullptr;
  if constexpr (std::is_same_v<S, float>) {
    if (gather_.lanes == Lanes::kMatrix) {
      tile_values = cut_part(&parts, tile_values_bytes(gather_));
      order_tile_values(gather_, values, threads, tile_values);
      values = nullptr;
    }
  }
  if (!tile_values) values = ordered(values, threads, &parts);
  GatherArgs<S> args{.plan = &gather_,
                     .n = n,
                     .source = source,
                     .values = values,
                     .tile_values = tile_values,
                     .bias = bias,
                     .destination = destination.data,
                     .destination_strides = destination.strides,
                     .destination_element = destination.element,
                     .finish = finish,
                     .threads = threads,
                     .workspace = parts};
  if (finish.sums.first)
    args.finish.sums.partial =
        reinterpret_cast<S*>(parts + threads * gather_bytes(gather_, element_size_));
  return args;
}

template <typename S>
GradWeightArgs<S> ConvPlan::grad_weight_args(int64_t n, const Operand<S>& x,
                                             const Operand<S>& grad_y, S* grad_values, int threads,
                                             char* workspace) const {
  return {.plan = &gather_,
          .grad_layout = &grad_layout_,
          .n = n,
          .x = x,
          .grad = grad_y,
          .grad_values = grad_values,
          .slices = slices(n),
          .threads = threads,
          .workspace = align_up(workspace)};
}

// kernels_ holds the kernels of the plan's instruction set: kernels_->gather() is gather() in
// cpu/isa/gather.cpp, kernels_->grad_weight() is grad_weight() in cpu/isa/grad_weight.cpp.
template <typename S>
void ConvPlan::sparse_conv2d(int64_t n, const Operand<S>& x, const S* values, const S* bias,
                             const Activation& y, const Finish<S>& finish, int threads,
                             char* workspace) const {
  threads = useful(threads, n);
  const auto args = [&](const S* used) {
    return gather_args(n, x, used, bias, y, finish, threads, workspace);
  };
  const auto launch = [&](const GatherArgs<S>& gather) { kernels_->gather(gather); };
  launch_finite(values, nnz_, args, launch);
  const bool sums = finish.sums.first != nullptr;
  drop_guards(workspace, workspace_bytes(Op::kForward, n, threads, sums));
}

// Every pass but grad-weight is a gather: on a transposed plan, of the output's gradient.
template <typename S>
void ConvPlan::sparse_conv2d_grad_input(int64_t n, const Operand<S>& grad_y, const S* values,
                                        const Activation& grad_x, const Finish<S>& finish,
                                        int threads, char* workspace) const {
  sparse_conv2d<S>(n, grad_y, values, nullptr, grad_x, finish, threads, workspace);
}

template <typename S>
void ConvPlan::sparse_conv2d_grad_weight(int64_t n, const Operand<S>& x, const Operand<S>& grad_y,
                                         S* grad_values, int threads, char* workspace) const {
  threads = useful(threads, n);
  const auto args = grad_weight_args(n, x, grad_y, grad_values, threads, workspace);
  kernels_->grad_weight(args);
  if (!all_finite(grad_values, nnz_)) mend_grad_values(args);
  drop_guards(workspace, workspace_bytes(Op::kGradWeight, n, threads));
}

template <typename S>
void ConvPlan::sparse_conv2d_backward(const ConvPlan& forward, int64_t n, const Operand<S>& grad_y,
                                      const S* values, const Activation& grad_x,
                                      const Finish<S>& finish, const Operand<S>& x, S* grad_values,
                                      int threads, char* workspace) const {
  threads = useful(threads, n);
  const bool sums = finish.sums.first != nullptr;
  char* behind = workspace + workspace_bytes(Op::kGradInput, n, threads, sums);
  const auto weight = forward.grad_weight_args(n, x, grad_y, grad_values, threads, behind);
  const auto args = [&](const S* used) {
    const S* no_bias = nullptr;
    return gather_args(n, grad_y, used, no_bias, grad_x, finish, threads, workspace);
  };
  const auto launch = [&](const GatherArgs<S>& gather) { kernels_->backward(gather, weight); };
  launch_finite(values, nnz_, args, launch);
  if (!all_finite(grad_values, nnz_)) mend_grad_values(weight);
  drop_guards(workspace, backward_workspace_bytes(forward, n, threads, sums));
}

#define DSR_INSTANTIATE(S)                                                                         \
  template void ConvPlan::sparse_conv2d<S>(int64_t, const Operand<S>&, const S*, const S*,         \
                                           const Activation&, const Finish<S>&, int, char*) const; \
  template void ConvPlan::sparse_conv2d_grad_input<S>(                                             \
      int64_t, const Operand<S>&, const S*, const Activation&, const Finish<S>&, int, char*)       \
      const;                                                                                       \
  template void ConvPlan::sparse_conv2d_grad_weight<S>(int64_t, const Operand<S>&,                 \
                                                       const Operand<S>&, S*, int, char*) const;   \
  template void ConvPlan::sparse_conv2d_backward<S>(const ConvPlan&, int64_t, const Operand<S>&,   \
                                                    const S*, const Activation&, const Finish<S>&, \
                                                    const Operand<S>&, S*, int, char*) const;
DSR_INSTANTIATE(float)
DSR_INSTANTIATE(double)

}  // namespace dsr::cpu
