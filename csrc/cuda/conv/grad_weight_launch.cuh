// One launcher per element type, each instantiated in a file of its own so that they build in
// parallel.
#pragma once

#include <string>

#include "cuda/conv/grad_weight.cuh"
#include "cuda/shared_memory.cuh"

namespace dsr::cuda {

std::string shapes_of(const GradWeight& pass);

template <class T, int Units>
Status launch_grad_weight(Queue queue, const GradWeight& pass, const void* source, const void* grad,
                          const int32_t* offsets, const int32_t* bounds, float* partial) {
  const Status enough = allow_shared_bytes<&grad_weight_kernel<T, Units>>(
      queue, kSlabs * pass.slab_bytes, "grad_weight");
  if (!enough.is_ok()) return enough;
  const int row_blocks = (pass.dest_channels + pass.row_block - 1) / pass.row_block;
  const unsigned blocks = pass.blocks * pass.groups * row_blocks * pass.splits;
  DSR_LAUNCH((grad_weight_kernel<T, Units>), dim3(blocks), dim3(kThreads), kSlabs * pass.slab_bytes,
             queue.stream, pass, static_cast<const T*>(source), static_cast<const T*>(grad),
             reinterpret_cast<const int2*>(offsets), reinterpret_cast<const int2*>(bounds),
             partial);
  return launched("grad_weight", shapes_of(pass));
}

// The kernel of the pass's units: variant kIndex of those there are, or a later one.
template <class T, int kIndex = 0>
Status launch_variant(Queue queue, const GradWeight& pass, const void* source, const void* grad,
                      const int32_t* offsets, const int32_t* bounds, float* partial) {
  constexpr auto variants = Variants<sizeof(T)>::grad_weight_units;
  if constexpr (kIndex == variants.size()) {
    return Status::error("grad_weight: no kernel of " + std::to_string(pass.units) + " units");
  } else {
    if (pass.units == variants[kIndex])
      return launch_grad_weight<T, variants[kIndex]>(queue, pass, source, grad, offsets, bounds,
                                                     partial);
    return launch_variant<T, kIndex + 1>(queue, pass, source, grad, offsets, bounds, partial);
  }
}

// Defined in instances/, for each T.
template <class T>
Status grad_weight_of(Queue queue, const GradWeight& pass, const void* source, const void* grad,
                      const int32_t* offsets, const int32_t* bounds, float* partial);

}  // namespace dsr::cuda
