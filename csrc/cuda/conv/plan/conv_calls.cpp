#include "cuda/conv/plan/conv_calls.h"

#include "cuda/carver.h"
#include "cuda/conv/window_gather.h"

namespace dsr::cuda {
namespace {

Element element_of(DirectType type) {
  return type == DirectType::kFloat32    ? Element::kFloat32
         : type == DirectType::kBFloat16 ? Element::kBFloat16
                                         : Element::kFloat16;
}

// Where the parts of a call's workspace are.
struct GatherWorkspace {
  int64_t* entries;  // of the list, with their values
  float* partial;    // [3 or 2, channels, parts]
  size_t bytes;
};

// A warp of a tile leaves a part of every channel that it stores.
int parts_of(const Gather& launch) { return launch.tiles * (kComputeWarps / launch.row_warps); }

int parts_of(const ConvPlan& plan) {
  int parts = 0;
  for (const Gather& launch : plan.gathers) parts += parts_of(launch);
  return parts;
}

int channels_of(const ConvPlan& plan) {
  return static_cast<int>(plan.key.groups * plan.key.dest_channels);
}

GatherWorkspace carve(const ConvPlan& plan, const PatternList& list, bool sums, void* workspace) {
  Carver carver(workspace);
  auto* entries = carver.take<int64_t>(plan.kind == Kind::kSlab ? list.entries : 0);
  const int64_t numbers = plan.direction == Direction::kForward ? 3 : 2;
  const int64_t parts = sums ? numbers * channels_of(plan) * parts_of(plan) : 0;
  auto* partial = carver.take<float>(parts);
  return {entries, partial, carver.bytes()};
}

int64_t partial_sums(const ConvPlan& plan, const PatternList& list) {
  if (plan.kind == Kind::kDirect) return 0;
  const int64_t each = plan.kind == Kind::kWindow ? list.windows.values : list.entries;
  return plan.splits() * each;
}

Status run_direct(Queue queue, const ConvPlan& plan, const PatternList& list,
                  const GatherCall& call) {
  for (const Direct& launch : plan.directs) {
    const Status done = direct_gather(queue, launch, plan.dtype, call.source, list.direct,
                                      list.bounds, call.values, call.bias, call.dest);
    if (!done.is_ok()) return done;
  }
  return Status::ok();
}

Status run_launch(Queue queue, const ConvPlan& plan, const Gather& launch, const PatternList& list,
                  const GatherCall& call, const void* entries, const GatherMaps* maps) {
  const Element element = element_of(plan.dtype);
  const auto* bias = static_cast<const float*>(call.bias);
  if (plan.kind == Kind::kWindow)
    return window_gather(queue, launch, list.windows, element, call.source,
                         static_cast<const float*>(call.values), bias, call.dest, maps);
  return gather(queue, launch, element, call.source, entries, list.bounds, bias, call.dest, maps);
}

}  // namespace

int64_t workspace_bytes(const ConvPlan& plan, const PatternList& list, bool sums) {
  if (plan.direction == Direction::kGradWeight)
    return partial_sums(plan, list) * static_cast<int64_t>(sizeof(float));
  return static_cast<int64_t>(carve(plan, list, sums, nullptr).bytes);
}

Status run_gather(Queue queue, const ConvPlan& plan, const PatternList& list,
                  const GatherCall& call, void* workspace) {
  if (plan.kind == Kind::kDirect) return run_direct(queue, plan, list, call);
  const bool sums = call.first != nullptr;
  const GatherWorkspace space = carve(plan, list, sums, workspace);
  if (plan.kind == Kind::kSlab) {
    const Status arranged = arrange(queue, list.entries, list.offsets, list.value_index,
                                    static_cast<const float*>(call.values), space.entries);
    if (!arranged.is_ok()) return arranged;
  }
  const int parts = parts_of(plan);
  GatherMaps maps = call.maps == nullptr ? GatherMaps{} : *call.maps;
  maps.dest.partial = sums ? space.partial : nullptr;
  maps.dest.parts = parts;
  maps.dest.first_part = 0;
  for (const Gather& launch : plan.gathers) {
    const Status done = run_launch(queue, plan, launch, list, call, space.entries,
                                   call.maps == nullptr ? nullptr : &maps);
    if (!done.is_ok()) return done;
    maps.dest.first_part += parts_of(launch);
  }
  if (!sums) return Status::ok();
  return combine_parts(queue, plan.direction == Direction::kForward, channels_of(plan), parts,
                       space.partial, call.first, call.second);
}

Status run_grad_weight(Queue queue, const ConvPlan& plan, const PatternList& list,
                       const GradWeightCall& call, void* workspace) {
  if (plan.kind == Kind::kDirect)
    return direct_grad_weight(queue, plan.directs[0], plan.dtype, call.source, call.grad,
                              list.entries, list.direct, list.bounds, call.grad_values);
  const Element element = element_of(plan.dtype);
  auto* partial = static_cast<float*>(workspace);
  auto* values = static_cast<float*>(call.grad_values);
  if (plan.kind == Kind::kWindow)
    return window_grad_weight(queue, plan.window_grad_weight, list.windows, element, call.source,
                              call.grad, partial, values, call.maps);
  GradWeight pass = plan.grad_weight;
  pass.entries = list.entries;  // the rest belongs to sizes, this to the pattern
  return grad_weight(queue, pass, element, call.source, call.grad, list.offsets, list.value_index,
                     list.bounds, partial, values, call.maps);
}

}  // namespace dsr::cuda
