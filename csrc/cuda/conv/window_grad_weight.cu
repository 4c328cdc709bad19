#include "cuda/conv/grad_weight.h"
#include "cuda/conv/window_grad_weight_launch.cuh"

namespace dsr::cuda {

std::string shapes_of(const WindowGradWeight& pass) {
  const Slab& s = pass.slab;
  return std::to_string(s.images) + " images, " +
         std::to_string(pass.groups * pass.source_channels) + " channels of " +
         std::to_string(s.height) + "x" + std::to_string(s.width) + " against " +
         std::to_string(pass.groups * pass.dest_channels) + " of " + std::to_string(s.rows) + "x" +
         std::to_string(s.cols) + ", " + std::to_string(pass.shared_bytes()) +
         " bytes of shared memory";
}

namespace {

Status sum_splits(Queue queue, const WindowGradWeight& pass, const WindowList& list,
                  Element element, const WindowGradWeightArguments& with) {
  switch (element) {
    case Element::kFloat32:
      return window_grad_weight_of<float>(queue, pass, list, with);
    case Element::kBFloat16:
      return window_grad_weight_of<__nv_bfloat16>(queue, pass, list, with);
    default:
      return window_grad_weight_of<__half>(queue, pass, list, with);
  }
}

}  // namespace

Status window_grad_weight(Queue queue, const WindowGradWeight& pass, const WindowList& list,
                          Element element, const void* source, const void* grad, float* partial,
                          float* grad_values, const GradWeightMaps* maps) {
  const DeviceGuard guard(queue.device);
  if (list.values == 0) return Status::ok();
  if (pass.compute_warps < 1 || pass.grad_warps < 1 ||
      pass.compute_warps + pass.grad_warps >= kWarps) {
    return Status::error("window_grad_weight: expected " + std::to_string(kWarps) +
                         " warps with some to bring the source, got " +
                         std::to_string(pass.compute_warps) + " that compute and " +
                         std::to_string(pass.grad_warps) + " that bring the gradient");
  }
  const Status summed = sum_splits(queue, pass, list, element, {source, grad, partial, maps});
  if (!summed.is_ok()) return summed;
  return reduce_splits(queue, list.values, pass.splits, nullptr, partial, grad_values);
}

}  // namespace dsr::cuda
