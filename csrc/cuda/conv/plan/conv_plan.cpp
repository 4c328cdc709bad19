#include "cuda/conv/plan/conv_plan.h"

#include <algorithm>
#include <cstdlib>
#include <string>

#include "cuda/conv/plan/launches.h"

namespace dsr::cuda {
namespace {

template <class Tiling>
std::optional<Tiling> cheapest(const std::vector<Tiling>& tilings) {
  const Tiling* found = cheapest_of(tilings);
  return found == nullptr ? std::nullopt : std::optional<Tiling>(*found);
}

// Whether slabs are to be taken. The direct kernels do float64, slabs that do not fit, and patterns
// so sparse that most segments of a list would be empty: it would be longer than the non-zeros.
template <class Tiling>
bool takes_slabs(const ConvProblem& problem, const PassShape& shape,
                 const std::optional<Tiling>& tiling) {
  if (problem.dtype == DirectType::kFloat64 || !tiling) return false;
  if (tiling->channel_block == shape.source_channels) return true;
  return problem.density * tiling->channel_block * shape.taps >= 0.5;
}

// Whether windows are to be taken where slabs row by row could be, or the direct kernels.
template <class Rows, class Windows>
bool takes_windows(const ConvProblem& problem, const std::optional<Windows>& windows,
                   bool takes_rows, const std::optional<Rows>& rows) {
  if (!problem.windows || !windows) return false;
  return !takes_rows || rows->clocks > windows->clocks;
}

// Whether the positions of a warp may be further apart than 32 bits count. Where images are of few
// pixels, each of them is of other images.
bool far_apart(const ConvProblem& problem, const StridedPass& pass, int64_t units) {
  constexpr int64_t kLimit = int64_t{1} << 31;
  const Strides4& s = pass.dest;
  const int64_t n = std::abs(s.n), h = std::abs(s.h), w = std::abs(s.w);
  if (std::max({n, h, w}) >= kLimit) return true;
  int64_t rows = 0, cols = 0;
  for (const PassClass& c : pass.shape.classes) {
    rows = std::max(rows, c.dest_h + c.rows * pass.shape.dest_step_h);
    cols = std::max(cols, c.dest_w + c.cols * pass.shape.dest_step_w);
  }
  if (rows * h >= kLimit || cols * w >= kLimit) return true;
  const int64_t images = kVectorBytes / problem.element_size();  // of a position
  return images * units * n + rows * h + cols * w >= kLimit;
}

Status checked(const ConvProblem& problem, const Narrow& narrow) {
  if (narrow.fits) return Status::ok();
  const ConvShape& s = problem.shape;
  return Status::error("ConvPlan: expected sizes that 32 bits count, got " +
                       std::to_string(problem.images) + " images, " +
                       std::to_string(s.in_channels) + " channels of " + std::to_string(s.height) +
                       "x" + std::to_string(s.width) + " to " + std::to_string(s.out_channels) +
                       " of " + std::to_string(s.out_height) + "x" + std::to_string(s.out_width));
}

// A plan of the direct kernels, until another kind is put in its place.
ConvPlan start(const ConvProblem& problem, const StridedPass& pass, Narrow& narrow) {
  ConvPlan plan{};
  plan.direction = problem.direction;
  plan.dtype = problem.dtype;
  plan.kind = Kind::kDirect;
  plan.key = direct_key(pass.shape);
  plan.directs = direct_launches(pass, narrow);
  return plan;
}

template <class Tiling>
void take(ConvPlan& plan, Kind kind, const StridedPass& pass, const Tiling& tiling,
          const std::vector<Layout>& layouts) {
  plan.kind = kind;
  plan.key = slab_key(pass.shape, tiling.channel_block, layouts);
  plan.clocks = tiling.clocks;
  plan.directs.clear();
}

}  // namespace

GatherTilings choose_gather(const ConvProblem& problem) {
  GatherTilings found;
  if (problem.dtype == DirectType::kFloat64) return found;
  const PassShape shape = StridedPass(problem).shape;
  const int size = problem.element_size();
  found.rows =
      cheapest(gather_tilings(shape, problem.images, problem.density, size, problem.device));
  if (problem.windows)
    found.windows = cheapest(window_gather_tilings(shape, problem.images, problem.density,
                                                   problem.block_size, size, problem.device));
  return found;
}

GradWeightTilings choose_grad_weight(const ConvProblem& problem) {
  GradWeightTilings found;
  if (problem.dtype == DirectType::kFloat64) return found;
  const PassShape shape = StridedPass(problem).shape;
  const int size = problem.element_size();
  found.rows =
      cheapest(grad_weight_tilings(shape, problem.images, problem.density, size, problem.device));
  if (problem.windows)
    found.windows = cheapest(window_grad_weight_tilings(shape, problem.images, problem.density,
                                                        problem.block_size, size, problem.device));
  return found;
}

Status ConvPlan::make(const ConvProblem& problem, const GatherTilings& tilings, ConvPlan* plan) {
  const StridedPass pass(problem);
  Narrow narrow;
  *plan = start(problem, pass, narrow);
  const auto& [rows, windows] = tilings;
  const bool by_rows = takes_slabs(problem, pass.shape, rows);
  const bool by_windows =
      takes_windows(problem, windows, by_rows, rows) && !far_apart(problem, pass, windows->units);
  if (by_rows || by_windows) {
    const GatherTiling& tiling = by_windows ? *windows : *rows;
    take(*plan, by_windows ? Kind::kWindow : Kind::kSlab, pass, tiling, tiling.layouts);
    plan->gathers = gather_launches(pass, tiling, plan->key, by_windows, problem.device, narrow);
  }
  return checked(problem, narrow);
}

Status ConvPlan::make(const ConvProblem& problem, const GradWeightTilings& tilings,
                      ConvPlan* plan) {
  const StridedPass pass(problem);
  Narrow narrow;
  *plan = start(problem, pass, narrow);
  const auto& [rows, windows] = tilings;
  const bool by_rows = takes_slabs(problem, pass.shape, rows);
  if (takes_windows(problem, windows, by_rows, rows)) {
    take(*plan, Kind::kWindow, pass, *windows, {windows->layout});
    plan->window_grad_weight = window_grad_weight_launch(pass, *windows, plan->key, narrow);
  } else if (by_rows) {
    take(*plan, Kind::kSlab, pass, *rows, {rows->layout});
    plan->grad_weight = grad_weight_launch(pass, *rows, plan->key, narrow);
  }
  return checked(problem, narrow);
}

Status ConvPlan::make(const ConvProblem& problem, ConvPlan* plan) {
  return problem.direction == Direction::kGradWeight
             ? make(problem, choose_grad_weight(problem), plan)
             : make(problem, choose_gather(problem), plan);
}

int ConvPlan::splits() const {
  if (direction != Direction::kGradWeight || kind == Kind::kDirect) return 1;
  return kind == Kind::kWindow ? window_grad_weight.splits : grad_weight.splits;
}

}  // namespace dsr::cuda
