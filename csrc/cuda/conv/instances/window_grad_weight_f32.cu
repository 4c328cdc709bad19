#include "cuda/conv/window_grad_weight_launch.cuh"

namespace dsr::cuda {

template <>
Status window_grad_weight_of<float>(Queue queue, const WindowGradWeight& pass,
                                    const WindowList& list, const WindowGradWeightArguments& with) {
  return launch_window_grad_weight<float>(queue, pass, list, with);
}

}  // namespace dsr::cuda
