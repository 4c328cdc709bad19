#include "cuda/conv/window_gather_launch.cuh"

namespace dsr::cuda {

template <>
Status window_gather_of<__nv_bfloat16>(Queue queue, const Gather& pass, const WindowList& list,
                                       const WindowGatherArguments& with) {
  return launch_window_variant<__nv_bfloat16>(queue, pass, list, with);
}

}  // namespace dsr::cuda
