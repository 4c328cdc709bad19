#include "cuda/conv/direct.cuh"

#include <string>

namespace dsr::cuda {
namespace {

std::string shapes_of(const Direct& pass) {
  return std::to_string(pass.images) + " images, " +
         std::to_string(pass.groups * pass.source_channels) + " channels of " +
         std::to_string(pass.height) + "x" + std::to_string(pass.width) + " and " +
         std::to_string(pass.groups * pass.dest_channels) + " of " + std::to_string(pass.rows) +
         "x" + std::to_string(pass.cols);
}

// Calls f with typed null pointers: activations, and the numbers sums are made of.
template <class F>
Status with_types(DirectType type, F f) {
  switch (type) {
    case DirectType::kFloat64:
      return f(static_cast<double*>(nullptr), static_cast<double*>(nullptr));
    case DirectType::kFloat32:
      return f(static_cast<float*>(nullptr), static_cast<float*>(nullptr));
    case DirectType::kBFloat16:
      return f(static_cast<__nv_bfloat16*>(nullptr), static_cast<float*>(nullptr));
    default:
      return f(static_cast<__half*>(nullptr), static_cast<float*>(nullptr));
  }
}

int64_t pixels_of(const Direct& pass) {
  return static_cast<int64_t>(pass.images) * pass.rows * pass.cols;
}

}  // namespace

Status direct_gather(Queue queue, const Direct& pass, DirectType type, const void* source,
                     const DirectEntry* entries, const int32_t* bounds, const void* values,
                     const void* bias, void* dest) {
  const DeviceGuard guard(queue.device);
  const int64_t pixels = pixels_of(pass);
  if (pixels == 0) return Status::ok();
  const int64_t pixel_blocks = (pixels + kDirectThreads - 1) / kDirectThreads;
  const int64_t blocks = pixel_blocks * pass.groups * pass.dest_channels;
  return with_types(type, [&](auto* activation, auto* number) {
    using T = std::remove_pointer_t<decltype(activation)>;
    using S = std::remove_pointer_t<decltype(number)>;
    DSR_LAUNCH((direct_gather_kernel<T, S>), dim3(static_cast<unsigned>(blocks)),
               dim3(kDirectThreads), 0, queue.stream, pass, pixels, static_cast<int>(pixel_blocks),
               static_cast<const T*>(source), entries, reinterpret_cast<const int2*>(bounds),
               static_cast<const S*>(values), static_cast<const S*>(bias), static_cast<T*>(dest));
    return launched("direct gather", shapes_of(pass));
  });
}

Status direct_grad_weight(Queue queue, const Direct& pass, DirectType type, const void* source,
                          const void* grad, int64_t nnz, const DirectEntry* entries,
                          const int32_t* bounds, void* grad_values) {
  const DeviceGuard guard(queue.device);
  if (nnz == 0) return Status::ok();
  return with_types(type, [&](auto* activation, auto* number) {
    using T = std::remove_pointer_t<decltype(activation)>;
    using S = std::remove_pointer_t<decltype(number)>;
    DSR_LAUNCH((direct_grad_weight_kernel<T, S>), dim3(static_cast<unsigned>(nnz)),
               dim3(kDirectThreads), 0, queue.stream, pass, pixels_of(pass),
               static_cast<const T*>(source), static_cast<const T*>(grad), entries,
               reinterpret_cast<const int2*>(bounds), static_cast<S*>(grad_values));
    return launched("direct grad_weight", shapes_of(pass));
  });
}

}  // namespace dsr::cuda
