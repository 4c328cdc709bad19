#include "cuda/conv/window_gather_launch.cuh"

namespace dsr::cuda {

template <>
Status window_gather_of<__half>(Queue queue, const Gather& pass, const WindowList& list,
                                const WindowGatherArguments& with) {
  return launch_window_variant<__half>(queue, pass, list, with);
}

}  // namespace dsr::cuda
