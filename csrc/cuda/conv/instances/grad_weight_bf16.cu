#include "cuda/conv/grad_weight_launch.cuh"

namespace dsr::cuda {

template <>
Status grad_weight_of<__nv_bfloat16>(Queue queue, const GradWeight& pass,
                                     const GradWeightArguments& with) {
  return launch_variant<__nv_bfloat16>(queue, pass, with);
}

}  // namespace dsr::cuda
