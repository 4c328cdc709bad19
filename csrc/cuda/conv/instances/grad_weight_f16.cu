#include "cuda/conv/grad_weight_launch.cuh"

namespace dsr::cuda {

template <>
Status grad_weight_of<__half>(Queue queue, const GradWeight& pass,
                              const GradWeightArguments& with) {
  return launch_variant<__half>(queue, pass, with);
}

}  // namespace dsr::cuda
