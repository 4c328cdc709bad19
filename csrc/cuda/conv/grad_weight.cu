#include "cuda/conv/grad_weight_launch.cuh"

namespace dsr::cuda {

std::string shapes_of(const GradWeight& pass) {
  const Slab& s = pass.slab;
  return std::to_string(s.images) + " images, " +
         std::to_string(pass.groups * pass.source_channels) + " channels of " +
         std::to_string(s.height) + "x" + std::to_string(s.width) + " against " +
         std::to_string(pass.groups * pass.dest_channels) + " of " + std::to_string(s.rows) + "x" +
         std::to_string(s.cols) + ", " + std::to_string(pass.slab_bytes) + " bytes of slab";
}

namespace {

constexpr int kReduceEntries = 32, kReduceParts = 8;

// As reduce_splits: eight threads per entry take every eighth split, and their sums are added in
// order.
__global__ void __launch_bounds__(kReduceEntries* kReduceParts)
    reduce_splits_kernel(int64_t entries, int splits, const int32_t* __restrict__ value_index,
                         const float* __restrict__ partial,  // [splits, entries]
                         float* __restrict__ grad_values) {
  DSR_SHARED(float, parts, [kReduceParts][kReduceEntries]);
  const int column = threadIdx.x % kReduceEntries, part = threadIdx.x / kReduceEntries;
  const int64_t entry = static_cast<int64_t>(blockIdx.x) * kReduceEntries + column;
  int index = -1;
  if (entry < entries)
    index = value_index == nullptr ? static_cast<int>(entry) : value_index[entry];
  float sum = 0.f;
  if (index >= 0) {
    for (int split = part; split < splits; split += kReduceParts)
      sum += partial[split * entries + entry];
  }
  parts[part][column] = sum;
  __syncthreads();
  if (part > 0 || index < 0) return;
  for (int other = 1; other < kReduceParts; ++other) sum += parts[other][column];
  grad_values[index] = sum;
}

Status partial_sums(Queue queue, const GradWeight& pass, Element element,
                    const GradWeightArguments& with) {
  switch (element) {
    case Element::kFloat32:
      return grad_weight_of<float>(queue, pass, with);
    case Element::kBFloat16:
      return grad_weight_of<__nv_bfloat16>(queue, pass, with);
    default:
      return grad_weight_of<__half>(queue, pass, with);
  }
}

}  // namespace

Status reduce_splits(Queue queue, int64_t entries, int splits, const int32_t* value_index,
                     const float* partial, float* grad_values) {
  const int64_t blocks = (entries + kReduceEntries - 1) / kReduceEntries;
  DSR_LAUNCH((reduce_splits_kernel), dim3(static_cast<unsigned>(blocks)),
             dim3(kReduceEntries * kReduceParts), 0, queue.stream, entries, splits, value_index,
             partial, grad_values);
  return launched("grad_weight, sum of splits",
                  std::to_string(splits) + " splits of " + std::to_string(entries) + " entries");
}

Status grad_weight(Queue queue, const GradWeight& pass, Element element, const void* source,
                   const void* grad, const int32_t* offsets, const int32_t* value_index,
                   const int32_t* bounds, float* partial, float* grad_values,
                   const GradWeightMaps* maps) {
  const DeviceGuard guard(queue.device);
  if (pass.entries == 0) return Status::ok();
  const Status summed =
      partial_sums(queue, pass, element, {source, grad, offsets, bounds, partial, maps});
  if (!summed.is_ok()) return summed;
  return reduce_splits(queue, pass.entries, pass.splits, value_index, partial, grad_values);
}

}  // namespace dsr::cuda
