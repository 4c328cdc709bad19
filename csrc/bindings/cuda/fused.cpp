// Convolutions on the GPU that take batch norm, ReLU and additions in: cuda/conv/fused.h.
#include <cstdint>
#include <string>

#include "bindings/cuda/conv.h"
#include "bindings/cuda/maps.h"
#include "cuda/conv/grad_weight.h"

namespace dsr::bindings {

void bind_cuda_fused(py::module_& m) {
  m.def(
      "fused_gather",
      [](QueueTuple queue, const cuda::Gather& pass, const std::string& dtype, uintptr_t source,
         uintptr_t list, uintptr_t bounds, uintptr_t bias, uintptr_t dest,
         const SourceTuple& of_source, const DestTuple& of_dest) {
        const auto element = element_named(dtype);
        const cuda::GatherMaps maps{source_map(of_source), dest_map(of_dest)};
        py::gil_scoped_release release;
        require_ok(cuda::gather(queue_of(queue), pass, element, pointer<void>(source),
                                pointer<void>(list), pointer<int32_t>(bounds), pointer<float>(bias),
                                pointer<void>(dest), &maps));
      },
      py::arg("queue"), py::arg("pass"), py::arg("dtype"), py::arg("source"), py::arg("list"),
      py::arg("bounds"), py::arg("bias"), py::arg("dest"), py::arg("source_map"),
      py::arg("dest_map"));
  m.def(
      "fused_grad_weight",
      [](QueueTuple queue, cuda::GradWeight pass, int64_t entries, const std::string& dtype,
         uintptr_t source, uintptr_t grad, uintptr_t offsets, uintptr_t value_index,
         uintptr_t bounds, uintptr_t partial, uintptr_t grad_values, const SourceTuple& of_source,
         const SourceTuple& of_grad) {
        const auto element = element_named(dtype);
        const cuda::GradWeightMaps maps{source_map(of_source), source_map(of_grad)};
        pass.entries = entries;
        py::gil_scoped_release release;
        require_ok(cuda::grad_weight(queue_of(queue), pass, element, pointer<void>(source),
                                     pointer<void>(grad), pointer<int32_t>(offsets),
                                     pointer<int32_t>(value_index), pointer<int32_t>(bounds),
                                     pointer<float>(partial), pointer<float>(grad_values), &maps));
      },
      py::arg("queue"), py::arg("pass"), py::arg("entries"), py::arg("dtype"), py::arg("source"),
      py::arg("grad"), py::arg("offsets"), py::arg("value_index"), py::arg("bounds"),
      py::arg("partial"), py::arg("grad_values"), py::arg("source_map"), py::arg("grad_map"));
  m.def(
      "combine_parts",
      [](QueueTuple queue, bool moments, int channels, int parts, uintptr_t partial,
         uintptr_t first, uintptr_t second) {
        py::gil_scoped_release release;
        require_ok(cuda::combine_parts(queue_of(queue), moments, channels, parts,
                                       pointer<float>(partial), pointer<float>(first),
                                       pointer<float>(second)));
      },
      py::arg("queue"), py::arg("moments"), py::arg("channels"), py::arg("parts"),
      py::arg("partial"), py::arg("first"), py::arg("second"));
}

}  // namespace dsr::bindings
