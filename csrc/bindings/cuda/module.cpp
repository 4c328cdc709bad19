// dsr_kernels._cuda: the GPU kernels, a module of its own, since a build may lack it.
#include "bindings/common.h"
#include "bindings/tensors.h"
#include "cuda/device.h"

namespace dsr::bindings {

void bind_cuda_lists(py::module_& m);
void bind_cuda_plan(py::module_& m);
void bind_cuda_planning(py::module_& m);
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
  dsr::bindings::bind_exchange(m);
  dsr::bindings::bind_cuda_lists(m);
  dsr::bindings::bind_cuda_plan(m);
  dsr::bindings::bind_cuda_planning(m);
  dsr::bindings::bind_cuda_rewire(m);
#ifdef DSR_EMULATE_CUDA
  dsr::bindings::bind_emulator(m);
#endif
}
