#include "cuda/conv/window_gather_launch.cuh"

namespace dsr::cuda {

Status window_gather(Queue queue, const Gather& pass, const WindowList& list, Element element,
                     const void* source, const float* values, const float* bias, void* dest,
                     const GatherMaps* maps) {
  const DeviceGuard guard(queue.device);
  if (pass.tiles == 0) return Status::ok();
  const WindowGatherArguments with{source, values, bias, dest, maps};
  switch (element) {
    case Element::kFloat32:
      return window_gather_of<float>(queue, pass, list, with);
    case Element::kBFloat16:
      return window_gather_of<__nv_bfloat16>(queue, pass, list, with);
    default:
      return window_gather_of<__half>(queue, pass, list, with);
  }
}

}  // namespace dsr::cuda
