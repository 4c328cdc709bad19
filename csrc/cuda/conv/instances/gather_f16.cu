#include "cuda/conv/gather_launch.cuh"

namespace dsr::cuda {

template <>
Status gather_of<__half>(Queue queue, const Gather& pass, const void* source, const void* list,
                         const int32_t* bounds, const float* bias, void* dest) {
  const auto run = [&](auto launch) {
    return launch(queue, pass, source, list, bounds, bias, dest);
  };
  if (pass.rows == 4 && pass.units == 1) return run(launch_gather<__half, 4, 1>);
  if (pass.rows == 2 && pass.units == 2) return run(launch_gather<__half, 2, 2>);
  return Status::error("gather: no kernel of " + std::to_string(pass.rows) + " rows and " +
                       std::to_string(pass.units) + " units");
}

}  // namespace dsr::cuda
