#include "cuda/conv/gather_launch.cuh"

namespace dsr::cuda {

template <>
Status gather_of<__nv_bfloat16>(Queue queue, const Gather& pass, const GatherArguments& with) {
  return launch_variant<__nv_bfloat16>(queue, pass, with);
}

}  // namespace dsr::cuda
