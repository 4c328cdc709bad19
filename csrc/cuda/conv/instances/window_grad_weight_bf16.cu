#include "cuda/conv/window_grad_weight_launch.cuh"

namespace dsr::cuda {

template <>
Status window_grad_weight_of<__nv_bfloat16>(Queue queue, const WindowGradWeight& pass,
                                            const WindowList& list,
                                            const WindowGradWeightArguments& with) {
  return launch_window_grad_weight<__nv_bfloat16>(queue, pass, list, with);
}

}  // namespace dsr::cuda
