#include "bindings/common.h"
#include "bindings/tensors.h"

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native core of dsr_kernels.";
  dsr::bindings::bind_exchange(m);
  dsr::bindings::bind_look(m);
  dsr::bindings::bind_conv(m);
  dsr::bindings::bind_calls(m);
  dsr::bindings::bind_fused(m);
  dsr::bindings::bind_grad_bias(m);
  dsr::bindings::bind_elementwise(m);
  dsr::bindings::bind_rewire(m);
}
