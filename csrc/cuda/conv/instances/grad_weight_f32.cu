#include "cuda/conv/grad_weight_launch.cuh"

namespace dsr::cuda {

template <>
Status grad_weight_of<float>(Queue queue, const GradWeight& pass, const GradWeightArguments& with) {
  return launch_variant<float>(queue, pass, with);
}

}  // namespace dsr::cuda
