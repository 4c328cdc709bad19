#include "cuda/conv/gather_launch.cuh"

namespace dsr::cuda {

template <>
Status gather_of<__half>(Queue queue, const Gather& pass, const GatherArguments& with) {
  return launch_variant<__half>(queue, pass, with);
}

}  // namespace dsr::cuda
