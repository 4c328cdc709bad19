// The rewire engine of the GPU: the plan of bindings/rewire.cpp, for layers in device memory.
#include <memory>
#include <utility>
#include <vector>

#include "bindings/rewire_plan.h"
#include "cuda/rewire/rewire.h"

namespace dsr::bindings {
namespace {

std::unique_ptr<cuda::RewirePlan> open_plan(const std::vector<LayerTuple>& layers, int device,
                                            uintptr_t stream, py::function allocate) {
  auto plan = std::make_unique<cuda::RewirePlan>();
  plan->layers = rewire_layers(layers);
  plan->queue = {device, pointer<CUstream_st>(stream)};
  plan->allocate = [allocate](size_t bytes) {
    const py::gil_scoped_acquire acquire;
    return pointer<void>(allocate(bytes).cast<uintptr_t>());
  };
  const py::gil_scoped_release release;
  require_ok(cuda::rewire_open(*plan));
  return plan;
}

void apply_plan(cuda::RewirePlan& plan, uint64_t seed, uint32_t step,
                const std::vector<OutputTuple>& tuples) {
  const std::vector<RewireOutput> outputs = rewire_outputs(tuples);
  const py::gil_scoped_release release;
  require_ok(cuda::rewire_apply(plan, seed, step, outputs));
}

}  // namespace

void bind_cuda_rewire(py::module_& m) {
  m.attr("rewire_chunk") = cuda::RewireConfig::kChunk;
  py::class_<cuda::RewirePlan> plan(m, "RewirePlan", py::module_local());
  plan.def(py::init([](const std::vector<LayerTuple>& layers, int device, uintptr_t stream,
                       py::function allocate, const py::object&) {
             return open_plan(layers, device, stream, std::move(allocate));
           }),
           py::arg("layers"), py::arg("device"), py::arg("stream"), py::arg("allocate"),
           py::arg("keep") = py::none(), py::keep_alive<1, 6>(),
           "layers: their addresses are the device's. stream: its handle. allocate(bytes): the "
           "address of device memory for the stream, which `allocate` keeps as long as it lives. "
           "keep: an object that lives as long as the plan.");
  plan.def("apply", &apply_plan, py::arg("seed"), py::arg("step"), py::arg("outputs"));
  define_decisions(plan);
}

}  // namespace dsr::bindings
