#include "cuda/conv/gather_launch.cuh"

namespace dsr::cuda {

template <>
Status gather_of<float>(Queue queue, const Gather& pass, const GatherArguments& with) {
  return launch_variant<float>(queue, pass, with);
}

}  // namespace dsr::cuda
