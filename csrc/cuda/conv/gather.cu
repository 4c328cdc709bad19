#include "cuda/conv/gather_launch.cuh"

namespace dsr::cuda {
namespace {

constexpr int kArrangeThreads = 256;

__global__ void __launch_bounds__(kArrangeThreads)
    arrange_kernel(int64_t entries, const int32_t* __restrict__ offsets,
                   const int32_t* __restrict__ value_index, const float* __restrict__ values,
                   int2* __restrict__ list) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kArrangeThreads + threadIdx.x;
  if (i >= entries) return;
  const int index = value_index[i];
  list[i] = make_int2(offsets[i], index < 0 ? 0 : __float_as_int(values[index]));
}

}  // namespace

Status arrange(Queue queue, int64_t entries, const int32_t* offsets, const int32_t* value_index,
               const float* values, void* list) {
  const DeviceGuard guard(queue.device);
  if (entries == 0) return Status::ok();
  const unsigned blocks = static_cast<unsigned>((entries + kArrangeThreads - 1) / kArrangeThreads);
  DSR_LAUNCH((arrange_kernel), dim3(blocks), dim3(kArrangeThreads), 0, queue.stream, entries,
             offsets, value_index, values, static_cast<int2*>(list));
  return launched("arrange", std::to_string(entries) + " entries");
}

Status gather(Queue queue, const Gather& pass, Element element, const void* source,
              const void* list, const int32_t* bounds, const float* bias, void* dest,
              const GatherMaps* maps) {
  const DeviceGuard guard(queue.device);
  if (pass.tiles == 0) return Status::ok();
  const GatherArguments with{source, list, bounds, bias, dest, maps};
  switch (element) {
    case Element::kFloat32:
      return gather_of<float>(queue, pass, with);
    case Element::kBFloat16:
      return gather_of<__nv_bfloat16>(queue, pass, with);
    default:
      return gather_of<__half>(queue, pass, with);
  }
}

}  // namespace dsr::cuda
