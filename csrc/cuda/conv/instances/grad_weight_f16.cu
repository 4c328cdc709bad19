#include "cuda/conv/grad_weight_launch.cuh"

namespace dsr::cuda {

template <>
Status grad_weight_of<__half>(Queue queue, const GradWeight& pass, const void* source,
                              const void* grad, const int32_t* offsets, const int32_t* bounds,
                              float* partial) {
  const auto run = [&](auto launch) {
    return launch(queue, pass, source, grad, offsets, bounds, partial);
  };
  if (pass.units == 2) return run(launch_grad_weight<__half, 2>);
  if (pass.units == 1) return run(launch_grad_weight<__half, 1>);
  return no_kernel(pass);
}

}  // namespace dsr::cuda
