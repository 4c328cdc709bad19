#include "cuda/conv/grad_weight_launch.cuh"

namespace dsr::cuda {

template <>
Status grad_weight_of<__half>(Queue queue, const GradWeight& pass, const void* source,
                              const void* grad, const int32_t* offsets, const int32_t* bounds,
                              float* partial) {
  return launch_variant<__half>(queue, pass, source, grad, offsets, bounds, partial);
}

}  // namespace dsr::cuda
