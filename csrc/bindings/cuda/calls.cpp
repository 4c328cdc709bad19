// Prepared passes of the slab kernels: everything decided but where tensors lie. One call launches
// all of a pass. `backends/cuda/calls.py` makes them, and checks tensors before.
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "bindings/cuda/conv.h"
#include "bindings/tensors.h"
#include "cuda/conv/gather.h"
#include "cuda/conv/grad_weight.h"

namespace dsr::bindings {
namespace {

using Tensor = py::handle;

// The pattern's list: cuda/conv/gather.h. Whoever makes a call keeps its memory.
struct List {
  int64_t entries;
  uintptr_t offsets, value_index, bounds;
};
using ListTuple = std::tuple<int64_t, uintptr_t, uintptr_t, uintptr_t>;

List list_of(const ListTuple& list) {
  const auto& [entries, offsets, value_index, bounds] = list;
  return {entries, offsets, value_index, bounds};
}

// A forward pass, or a grad-input.
struct GatherCall {
  std::vector<cuda::Gather> launches;
  cuda::Element element;
  List list;

  void run(int device, uintptr_t stream, Tensor source, Tensor values, Tensor bias, Tensor dest,
           Tensor workspace) const {
    const cuda::Queue queue = queue_of({device, stream});
    const uintptr_t from = address_of(source), w = address_of(values), b = address_of(bias);
    const uintptr_t to = address_of(dest), arranged = address_of(workspace);
    py::gil_scoped_release release;
    require_ok(cuda::arrange(queue, list.entries, pointer<int32_t>(list.offsets),
                             pointer<int32_t>(list.value_index), pointer<float>(w),
                             pointer<void>(arranged)));
    for (const cuda::Gather& launch : launches) {
      require_ok(cuda::gather(queue, launch, element, pointer<void>(from), pointer<void>(arranged),
                              pointer<int32_t>(list.bounds), pointer<float>(b), pointer<void>(to)));
    }
  }
};

struct GradWeightCall {
  cuda::GradWeight launch;
  cuda::Element element;
  List list;

  void run(int device, uintptr_t stream, Tensor source, Tensor grad, Tensor grad_values,
           Tensor partial) const {
    const cuda::Queue queue = queue_of({device, stream});
    const uintptr_t from = address_of(source), g = address_of(grad), to = address_of(grad_values);
    const uintptr_t sums = address_of(partial);
    py::gil_scoped_release release;
    require_ok(cuda::grad_weight(queue, launch, element, pointer<void>(from), pointer<void>(g),
                                 pointer<int32_t>(list.offsets), pointer<int32_t>(list.value_index),
                                 pointer<int32_t>(list.bounds), pointer<float>(sums),
                                 pointer<float>(to)));
  }
};

}  // namespace

void bind_cuda_calls(py::module_& m) {
  bind_exchange(m);
  py::class_<GatherCall>(m, "GatherCall", py::module_local())
      .def(py::init([](std::vector<cuda::Gather> launches, const std::string& dtype,
                       const ListTuple& list) {
             return GatherCall{std::move(launches), element_named(dtype), list_of(list)};
           }),
           py::arg("launches"), py::arg("dtype"), py::arg("list"))
      .def("run", &GatherCall::run);
  py::class_<GradWeightCall>(m, "GradWeightCall", py::module_local())
      .def(py::init([](cuda::GradWeight launch, const std::string& dtype, const ListTuple& list) {
             launch.entries = std::get<0>(list);  // the rest belongs to sizes, this to the pattern
             return GradWeightCall{launch, element_named(dtype), list_of(list)};
           }),
           py::arg("launch"), py::arg("dtype"), py::arg("list"))
      .def("run", &GradWeightCall::run);
}

}  // namespace dsr::bindings
