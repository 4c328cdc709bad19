// dsr_kernels._cuda: the GPU kernels, a module of its own, since a build may lack it.
#include "bindings/common.h"
#include "cuda/device.h"

namespace dsr::bindings {

void bind_cuda_calls(py::module_& m);
void bind_cuda_conv(py::module_& m);
void bind_cuda_fused(py::module_& m);
void bind_cuda_window_gather(py::module_& m);
void bind_cuda_window_grad_weight(py::module_& m);
void bind_cuda_rewire(py::module_& m);

void bind_cuda_device(py::module_& m) {
#ifdef DSR_EMULATE_CUDA
  m.attr("emulated") = true;
#else
  m.attr("emulated") = false;
#endif
  m.attr("architectures") = DSR_CUDA_ARCHITECTURES;
  m.attr("toolkit_version") = cuda::toolkit_version();
  m.def(
      "device_count",
      [] {
        std::string reason;
        const int count = cuda::device_count(&reason);
        return std::pair(count, reason);
      },
      "(how many devices can run kernels, why none can).");
}

#ifdef DSR_EMULATE_CUDA
void bind_emulator(py::module_& m);
#endif

}  // namespace dsr::bindings

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "GPU kernels of dsr_kernels.";
  dsr::bindings::bind_cuda_device(m);
  dsr::bindings::bind_cuda_conv(m);
  dsr::bindings::bind_cuda_calls(m);
  dsr::bindings::bind_cuda_fused(m);
  dsr::bindings::bind_cuda_window_gather(m);
  dsr::bindings::bind_cuda_window_grad_weight(m);
  dsr::bindings::bind_cuda_rewire(m);
#ifdef DSR_EMULATE_CUDA
  dsr::bindings::bind_emulator(m);
#endif
}
