// One launcher per element type, each instantiated in a file of its own so that they build in
// parallel.
#pragma once

#include <string>

#include "cuda/conv/window_grad_weight.cuh"
#include "cuda/shared_memory.cuh"

namespace dsr::cuda {

std::string shapes_of(const WindowGradWeight& pass);

// The addresses of a pass beside the list; `maps` is null for a plain convolution.
struct WindowGradWeightArguments {
  const void* source;
  const void* grad;
  float* partial;
  const GradWeightMaps* maps;
};

template <class T>
Status launch_window_grad_weight(Queue queue, const WindowGradWeight& pass, const WindowList& list,
                                 const WindowGradWeightArguments& with) {
  static constexpr const char* kOp = "window_grad_weight";
  const int bytes = pass.shared_bytes(), grad_bytes = pass.grad_bytes();
  const Status enough =
      with.maps == nullptr
          ? allow_shared_bytes<&window_grad_weight_kernel<T>>(queue, bytes, kOp)
          : allow_shared_bytes<&fused_window_grad_weight_kernel<T>>(queue, bytes, kOp);
  if (!enough.is_ok()) return enough;
  const dim3 blocks(pass.blocks * pass.groups * pass.window_parts() * pass.splits);
  const auto* source = static_cast<const T*>(with.source);
  const auto* grad = static_cast<const T*>(with.grad);
  if (with.maps == nullptr) {
    DSR_LAUNCH((window_grad_weight_kernel<T>), blocks, dim3(kThreads), bytes, queue.stream, pass,
               grad_bytes, list, source, grad, with.partial);
  } else {
    DSR_LAUNCH((fused_window_grad_weight_kernel<T>), blocks, dim3(kThreads), bytes, queue.stream,
               pass, grad_bytes, list, *with.maps, source, grad, with.partial);
  }
  return launched(kOp, shapes_of(pass));
}

// Defined in instances/, for each T.
template <class T>
Status window_grad_weight_of(Queue queue, const WindowGradWeight& pass, const WindowList& list,
                             const WindowGradWeightArguments& with);

}  // namespace dsr::cuda
