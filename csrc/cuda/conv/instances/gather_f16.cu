#include "cuda/conv/gather_launch.cuh"

namespace dsr::cuda {

template <>
Status gather_of<__half>(Queue queue, const Gather& pass, const void* source, const void* list,
                         const int32_t* bounds, const float* bias, void* dest) {
  return launch_variant<__half>(queue, pass, source, list, bounds, bias, dest);
}

}  // namespace dsr::cuda
