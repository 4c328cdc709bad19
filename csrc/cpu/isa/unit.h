// A unit of work: what is packed at once.
#pragma once

#include "cpu/conv/kernels.h"
#include "cpu/conv/workspace.h"
#include "cpu/isa/simd.h"

namespace dsr::cpu::DSR_ISA {

// `images` images from `image`, destination rows [row, row + rows) of the largest class.
struct Unit {
  int64_t image, images;
  int64_t row, rows;
  int64_t index;
};

DSR_INLINE Unit unit_at(const GatherPlan& plan, int64_t n, int64_t index) {
  const int64_t most = plan.unit.images * plan.batch.lane_images,
                image = index / plan.unit.bands * most;
  const int64_t row = index % plan.unit.bands * plan.unit.band_rows;
  return {image, least(most, n - image), row,
          least(plan.unit.band_rows, plan.destination.classes[0].rows - row), index};
}

// Where part i begins, and part i - 1 ends, when [0, total) is cut into `count` even parts.
DSR_INLINE int64_t boundary(int64_t total, int64_t i, int64_t count) { return total * i / count; }

// Whether an output is so large that no cache holds it until it is read, and lies so that whole
// vectors of it can go past the caches: reading each line before writing it is saved.
template <typename S>
static bool passes_caches(const GatherArgs<S>& args) {
  constexpr int64_t kLargeBytes = 4 << 20;
  const GatherPlan& plan = *args.plan;
  const Strides4& s = args.destination_strides;
  const int64_t pixels = plan.destination.height * plan.destination.width;
  const bool half = args.destination_element == Element::kBFloat16;
  const int64_t element = half ? 2 : sizeof(S), vector = kVectorBytes / element;
  const int64_t bytes = args.n * plan.destination.channels * pixels * element;
  return bytes >= kLargeBytes && s.c % vector == 0 && s.n % vector == 0 &&
         reinterpret_cast<uintptr_t>(args.destination) % kVectorBytes == 0;
}

// [slices][nnz], behind the threads' shares.
template <typename S>
static S* slice_sums(const GradWeightArgs<S>& args) {
  const int64_t share = grad_weight_bytes(*args.plan, *args.grad_layout, sizeof(S));
  return reinterpret_cast<S*>(args.workspace + args.threads * share);
}

// Tiles of one class in a whole unit.
static inline int64_t tiles_of_a_unit(const GatherPlan& plan, int64_t lanes) {
  if (plan.is_plane()) {
    const int64_t rows = (plan.unit.images - 1) * plan.source.image_rows + plan.unit.band_rows;
    return ceil_div(rows * plan.source.pitch, lanes * plan.tile.cols);
  }
  const int64_t down = ceil_div(plan.unit.band_rows, plan.tile.rows);
  return plan.lanes == Lanes::kRow
             ? down
             : down * ceil_div(plan.destination.classes[0].cols, plan.tile.cols);
}

}  // namespace dsr::cpu::DSR_ISA
