// One launcher per element type, each instantiated in a file of its own so that they build in
// parallel.
#pragma once

#include <string>

#include "cuda/conv/grad_weight.cuh"
#include "cuda/shared_memory.cuh"

namespace dsr::cuda {

std::string shapes_of(const GradWeight& pass);

// The addresses of a pass; `maps` is null for a plain convolution.
struct GradWeightArguments {
  const void* source;
  const void* grad;
  const int32_t* offsets;
  const int32_t* bounds;
  float* partial;
  const GradWeightMaps* maps;
};

template <class T, int Units>
Status launch_grad_weight(Queue queue, const GradWeight& pass, const GradWeightArguments& with) {
  const int bytes = kSlabs * pass.slab_bytes;
  const Status enough =
      with.maps == nullptr
          ? allow_shared_bytes<&grad_weight_kernel<T, Units>>(queue, bytes, "grad_weight")
          : allow_shared_bytes<&fused_grad_weight_kernel<T, Units>>(queue, bytes, "grad_weight");
  if (!enough.is_ok()) return enough;
  const int row_blocks = (pass.dest_channels + pass.row_block - 1) / pass.row_block;
  const dim3 blocks(pass.blocks * pass.groups * row_blocks * pass.splits);
  const auto* source = static_cast<const T*>(with.source);
  const auto* grad = static_cast<const T*>(with.grad);
  const auto* offsets = reinterpret_cast<const int2*>(with.offsets);
  const auto* bounds = reinterpret_cast<const int2*>(with.bounds);
  if (with.maps == nullptr) {
    DSR_LAUNCH((grad_weight_kernel<T, Units>), blocks, dim3(kThreads), bytes, queue.stream, pass,
               source, grad, offsets, bounds, with.partial);
  } else {
    DSR_LAUNCH((fused_grad_weight_kernel<T, Units>), blocks, dim3(kThreads), bytes, queue.stream,
               pass, *with.maps, source, grad, offsets, bounds, with.partial);
  }
  return launched("grad_weight", shapes_of(pass));
}

// The kernel of the pass's units: variant kIndex of those there are, or a later one.
template <class T, int kIndex = 0>
Status launch_variant(Queue queue, const GradWeight& pass, const GradWeightArguments& with) {
  constexpr auto variants = Variants<sizeof(T)>::grad_weight_units;
  if constexpr (kIndex == variants.size()) {
    return Status::error("grad_weight: no kernel of " + std::to_string(pass.units) + " units");
  } else {
    if (pass.units == variants[kIndex])
      return launch_grad_weight<T, variants[kIndex]>(queue, pass, with);
    return launch_variant<T, kIndex + 1>(queue, pass, with);
  }
}

// Defined in instances/, for each T.
template <class T>
Status grad_weight_of(Queue queue, const GradWeight& pass, const GradWeightArguments& with);

}  // namespace dsr::cuda
