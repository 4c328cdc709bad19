// Forward and grad-input by matrix units: cuda/conv/window_gather.h.
#include "cuda/conv/window_gather.h"

#include <cstdint>
#include <optional>
#include <string>
#include <utility>

#include "bindings/cuda/conv.h"
#include "bindings/cuda/maps.h"
#include "bindings/cuda/window_list.h"

namespace dsr::bindings {

void bind_cuda_window_gather(py::module_& m) {
  m.def(
      "window_gather",
      [](QueueTuple queue, const cuda::Gather& pass, const WindowListTuple& list,
         const std::string& dtype, uintptr_t source, uintptr_t values, uintptr_t bias,
         uintptr_t dest, const std::optional<std::pair<SourceTuple, DestTuple>>& maps) {
        const auto element = element_named(dtype);
        cuda::GatherMaps both{};
        if (maps) both = {source_map(maps->first), dest_map(maps->second)};
        py::gil_scoped_release release;
        require_ok(cuda::window_gather(queue_of(queue), pass, window_list(list), element,
                                       pointer<void>(source), pointer<float>(values),
                                       pointer<float>(bias), pointer<void>(dest),
                                       maps ? &both : nullptr));
      },
      py::arg("queue"), py::arg("pass"), py::arg("list"), py::arg("dtype"), py::arg("source"),
      py::arg("values"), py::arg("bias"), py::arg("dest"), py::arg("maps"));
}

}  // namespace dsr::bindings
