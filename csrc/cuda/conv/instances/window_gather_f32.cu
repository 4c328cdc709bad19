#include "cuda/conv/window_gather_launch.cuh"

namespace dsr::cuda {

template <>
Status window_gather_of<float>(Queue queue, const Gather& pass, const WindowList& list,
                               const WindowGatherArguments& with) {
  return launch_window_variant<float>(queue, pass, list, with);
}

}  // namespace dsr::cuda
