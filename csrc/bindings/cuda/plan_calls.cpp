// The calls of a ConvPlan, with tensors or their addresses: one for each pass.
#include <cstdint>
#include <optional>
#include <string>
#include <utility>

#include "bindings/cuda/maps.h"
#include "bindings/cuda/plan.h"
#include "bindings/tensors.h"
#include "cuda/conv/plan/conv_calls.h"

namespace dsr::bindings {
namespace {

using cuda::ConvPlan;
using cuda::PatternList;
using Tensor = py::handle;  // or an address

// device, stream
using QueueTuple = std::pair<int, uintptr_t>;

cuda::Queue queue_of(const QueueTuple& queue) {
  return {queue.first, pointer<CUstream_st>(queue.second)};
}

PatternList slab_list(int64_t entries, uintptr_t offsets, uintptr_t value_index, uintptr_t bounds) {
  PatternList list{cuda::Kind::kSlab};
  list.entries = entries;
  list.offsets = pointer<int32_t>(offsets);
  list.value_index = pointer<int32_t>(value_index);
  list.bounds = pointer<int32_t>(bounds);
  return list;
}

PatternList window_list(uintptr_t offsets, uintptr_t bounds, uintptr_t pieces, uintptr_t places,
                        uintptr_t piece_bounds, int piece_size, int64_t values) {
  int shift = 0;
  while (1 << shift < piece_size) ++shift;
  PatternList list{cuda::Kind::kWindow};
  list.windows = {pointer<int32_t>(offsets),
                  pointer<int32_t>(bounds),
                  pointer<int32_t>(pieces),
                  pointer<uint8_t>(places),
                  pointer<int32_t>(piece_bounds),
                  shift,
                  values};
  return list;
}

PatternList direct_list(int64_t values, uintptr_t entries, uintptr_t bounds) {
  PatternList list{cuda::Kind::kDirect};
  list.entries = values;
  list.direct = pointer<cuda::DirectEntry>(entries);
  list.bounds = pointer<int32_t>(bounds);
  return list;
}

void require(const ConvPlan& plan, bool grad_weight, const PatternList& list, bool maps) {
  if ((plan.direction == cuda::Direction::kGradWeight) != grad_weight)
    throw std::invalid_argument(
        "ConvPlan.grad_weight needs a plan of direction 'grad_weight'; ConvPlan.gather needs one "
        "of 'forward' or 'grad_input'");
  if (plan.kind != list.kind)
    throw std::invalid_argument(std::string("list: expected one for a plan of kind '") +
                                name_of(plan.kind) + "', got one of kind '" + name_of(list.kind) +
                                "'");
  if (maps && plan.kind == cuda::Kind::kDirect)
    throw std::invalid_argument("maps: a plan of kind 'direct' does nothing beside");
}

void run_gather(const ConvPlan& plan, QueueTuple queue, const PatternList& list, Tensor source,
                Tensor values, Tensor bias, Tensor dest, Tensor workspace,
                const std::optional<std::pair<SourceTuple, DestTuple>>& maps) {
  require(plan, false, list, maps.has_value());
  cuda::GatherCall call{pointer_of<void>(source), pointer_of<void>(values), pointer_of<void>(bias),
                        pointer_of<void>(dest)};
  void* const memory = pointer_of<void>(workspace);
  cuda::GatherMaps both{};
  if (maps) {
    both = {source_map(maps->first), dest_map(maps->second)};
    call.maps = &both;
    const auto& [first, second] = std::get<4>(maps->second);
    call.first = pointer<float>(first), call.second = pointer<float>(second);
  }
  const py::gil_scoped_release release;
  require_ok(cuda::run_gather(queue_of(queue), plan, list, call, memory));
}

void run_grad_weight(const ConvPlan& plan, QueueTuple queue, const PatternList& list, Tensor source,
                     Tensor grad, Tensor grad_values, Tensor workspace,
                     const std::optional<std::pair<SourceTuple, SourceTuple>>& maps) {
  require(plan, true, list, maps.has_value());
  cuda::GradWeightCall call{pointer_of<void>(source), pointer_of<void>(grad),
                            pointer_of<void>(grad_values)};
  void* const memory = pointer_of<void>(workspace);
  cuda::GradWeightMaps both{};
  if (maps) {
    both = {source_map(maps->first), source_map(maps->second)};
    call.maps = &both;
  }
  const py::gil_scoped_release release;
  require_ok(cuda::run_grad_weight(queue_of(queue), plan, list, call, memory));
}

}  // namespace

void bind_cuda_lists(py::module_& m) {
  py::class_<PatternList>(m, "PatternList", py::module_local())
      .def_static("slabs", &slab_list, py::arg("entries"), py::arg("offsets"),
                  py::arg("value_index"), py::arg("bounds"))
      .def_static("windows", &window_list, py::arg("offsets"), py::arg("bounds"), py::arg("pieces"),
                  py::arg("places"), py::arg("piece_bounds"), py::arg("piece_size"),
                  py::arg("values"))
      .def_static("direct", &direct_list, py::arg("values"), py::arg("entries"), py::arg("bounds"));
}

void define_calls(py::class_<ConvPlan>& plan) {
  plan.def("workspace_bytes", &cuda::workspace_bytes, py::arg("list"), py::arg("sums") = false);
  plan.def("gather", &run_gather, py::arg("queue"), py::arg("list"), py::arg("source"),
           py::arg("values"), py::arg("bias"), py::arg("dest"), py::arg("workspace"),
           py::arg("maps") = py::none());
  plan.def("grad_weight", &run_grad_weight, py::arg("queue"), py::arg("list"), py::arg("source"),
           py::arg("grad"), py::arg("grad_values"), py::arg("workspace"),
           py::arg("maps") = py::none());
}

}  // namespace dsr::bindings
