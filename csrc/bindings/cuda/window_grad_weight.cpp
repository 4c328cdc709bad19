// Grad-weight by matrix units: cuda/conv/window_grad_weight.h.
#include <cstdint>
#include <optional>
#include <string>
#include <utility>

#include "bindings/cuda/conv.h"
#include "bindings/cuda/maps.h"
#include "bindings/cuda/window_list.h"
#include "cuda/conv/window_grad_weight.h"

namespace dsr::bindings {

void bind_cuda_window_grad_weight(py::module_& m) {
  using cuda::WindowGradWeight;
  py::class_<WindowGradWeight>(m, "WindowGradWeight", py::module_local())
      .def(py::init<>())
      .def_readwrite("slab", &WindowGradWeight::slab)
      .def_readwrite("groups", &WindowGradWeight::groups)
      .def_readwrite("dest_channels", &WindowGradWeight::dest_channels)
      .def_readwrite("source_channels", &WindowGradWeight::source_channels)
      .def_readwrite("channel_block", &WindowGradWeight::channel_block)
      .def_readwrite("blocks", &WindowGradWeight::blocks)
      .def_readwrite("window_block", &WindowGradWeight::window_block)
      .def_readwrite("compute_warps", &WindowGradWeight::compute_warps)
      .def_readwrite("grad_warps", &WindowGradWeight::grad_warps)
      .def_readwrite("tile", &WindowGradWeight::tile)
      .def_readwrite("tiles", &WindowGradWeight::tiles)
      .def_readwrite("splits", &WindowGradWeight::splits)
      .def_readwrite("tiles_per_split", &WindowGradWeight::tiles_per_split)
      .def_readwrite("source_lanes_on_channels", &WindowGradWeight::source_lanes_on_channels)
      .def_readwrite("grad_lanes_on_channels", &WindowGradWeight::grad_lanes_on_channels)
      .def_readwrite("slab_bytes", &WindowGradWeight::slab_bytes)
      .def_readwrite("grad_plane", &WindowGradWeight::grad_plane)
      .def_property("source_strides", nullptr,
                    &set_strides<WindowGradWeight, &WindowGradWeight::source_strides>)
      .def_property("grad_strides", nullptr,
                    &set_strides<WindowGradWeight, &WindowGradWeight::grad_strides>)
      .def_property_readonly("shared_bytes", &WindowGradWeight::shared_bytes);
  m.def(
      "window_grad_weight",
      [](QueueTuple queue, const WindowGradWeight& pass, const WindowListTuple& list,
         const std::string& dtype, uintptr_t source, uintptr_t grad, uintptr_t partial,
         uintptr_t grad_values, const std::optional<std::pair<SourceTuple, SourceTuple>>& maps) {
        const auto element = element_named(dtype);
        cuda::GradWeightMaps both{};
        if (maps) both = {source_map(maps->first), source_map(maps->second)};
        py::gil_scoped_release release;
        require_ok(cuda::window_grad_weight(queue_of(queue), pass, window_list(list), element,
                                            pointer<void>(source), pointer<void>(grad),
                                            pointer<float>(partial), pointer<float>(grad_values),
                                            maps ? &both : nullptr));
      },
      py::arg("queue"), py::arg("pass"), py::arg("list"), py::arg("dtype"), py::arg("source"),
      py::arg("grad"), py::arg("partial"), py::arg("grad_values"), py::arg("maps"));
}

}  // namespace dsr::bindings
