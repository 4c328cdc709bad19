// Convolutions on the GPU. A pass is prepared once per plan in Python (backends/cuda) and launched
// with addresses; its fields are documented where the structs are.
#include <cstdint>
#include <string>

#include "bindings/cuda/conv.h"
#include "cuda/conv/direct.h"
#include "cuda/conv/gather.h"
#include "cuda/conv/grad_weight.h"

namespace dsr::bindings {
namespace {

cuda::DirectType direct_type_named(const std::string& dtype) {
  if (dtype == "float64") return cuda::DirectType::kFloat64;
  switch (element_named(dtype)) {
    case cuda::Element::kFloat32:
      return cuda::DirectType::kFloat32;
    case cuda::Element::kBFloat16:
      return cuda::DirectType::kBFloat16;
    default:
      return cuda::DirectType::kFloat16;
  }
}

void bind_slab(py::module_& m) {
  using cuda::Slab;
  py::class_<Slab>(m, "Slab", py::module_local())
      .def(py::init<>())
      .def_readwrite("rows", &Slab::rows)
      .def_readwrite("cols", &Slab::cols)
      .def_readwrite("tile_cols", &Slab::tile_cols)
      .def_readwrite("chunks", &Slab::chunks)
      .def_readwrite("height", &Slab::height)
      .def_readwrite("width", &Slab::width)
      .def_readwrite("first_h", &Slab::first_h)
      .def_readwrite("first_w", &Slab::first_w)
      .def_readwrite("row_step", &Slab::row_step)
      .def_readwrite("col_step", &Slab::col_step)
      .def_readwrite("reach_rows", &Slab::reach_rows)
      .def_readwrite("image_rows", &Slab::image_rows)
      .def_readwrite("slab_cols", &Slab::slab_cols)
      .def_readwrite("phase_cols", &Slab::phase_cols)
      .def_readwrite("pitch", &Slab::pitch)
      .def_readwrite("plane", &Slab::plane)
      .def_readwrite("images", &Slab::images)
      .def_readwrite("positions", &Slab::positions)
      .def("prepare", &Slab::prepare, "To be called when all fields are set.");
}

void bind_gather(py::module_& m) {
  using cuda::Gather;
  using cuda::GatherClass;
  py::class_<GatherClass>(m, "GatherClass", py::module_local())
      .def(py::init<>())
      .def_readwrite("slab", &GatherClass::slab)
      .def_readwrite("dest_h", &GatherClass::dest_h)
      .def_readwrite("dest_w", &GatherClass::dest_w)
      .def_readwrite("blocks", &GatherClass::blocks)
      .def_readwrite("first_segment", &GatherClass::first_segment)
      .def_readwrite("first_tile", &GatherClass::first_tile);
  py::class_<Gather>(m, "Gather", py::module_local())
      .def(py::init<>())
      .def_readwrite("class_count", &Gather::class_count)
      .def_readwrite("tiles", &Gather::tiles)
      .def_readwrite("groups", &Gather::groups)
      .def_readwrite("dest_channels", &Gather::dest_channels)
      .def_readwrite("source_channels", &Gather::source_channels)
      .def_readwrite("channel_block", &Gather::channel_block)
      .def_readwrite("row_warps", &Gather::row_warps)
      .def_readwrite("dest_step_h", &Gather::dest_step_h)
      .def_readwrite("dest_step_w", &Gather::dest_step_w)
      .def_readwrite("lanes_on_channels", &Gather::lanes_on_channels)
      .def_readwrite("slab_bytes", &Gather::slab_bytes)
      .def_readwrite("blocks_limit", &Gather::blocks_limit)
      .def_readwrite("rows", &Gather::rows)
      .def_readwrite("units", &Gather::units)
      .def_readwrite("transposed", &Gather::transposed)
      .def_property("source_strides", nullptr, &set_strides<Gather, &Gather::source_strides>)
      .def_property("dest_strides", nullptr, &set_strides<Gather, &Gather::dest_strides>)
      .def("set_class", [](Gather& pass, int index, const GatherClass& value) {
        if (index < 0 || index >= cuda::kMaxClasses) throw std::out_of_range("index");
        pass.classes[index] = value;
      });
  m.def(
      "arrange",
      [](QueueTuple queue, int64_t entries, uintptr_t offsets, uintptr_t value_index,
         uintptr_t values, uintptr_t list) {
        py::gil_scoped_release release;
        require_ok(cuda::arrange(queue_of(queue), entries, pointer<int32_t>(offsets),
                                 pointer<int32_t>(value_index), pointer<float>(values),
                                 pointer<void>(list)));
      },
      py::arg("queue"), py::arg("entries"), py::arg("offsets"), py::arg("value_index"),
      py::arg("values"), py::arg("list"));
  m.def(
      "gather",
      [](QueueTuple queue, const Gather& pass, const std::string& dtype, uintptr_t source,
         uintptr_t list, uintptr_t bounds, uintptr_t bias, uintptr_t dest) {
        const auto element = element_named(dtype);
        py::gil_scoped_release release;
        require_ok(cuda::gather(queue_of(queue), pass, element, pointer<void>(source),
                                pointer<void>(list), pointer<int32_t>(bounds), pointer<float>(bias),
                                pointer<void>(dest)));
      },
      py::arg("queue"), py::arg("pass"), py::arg("dtype"), py::arg("source"), py::arg("list"),
      py::arg("bounds"), py::arg("bias"), py::arg("dest"));
}

void bind_grad_weight(py::module_& m) {
  using cuda::GradWeight;
  py::class_<GradWeight>(m, "GradWeight", py::module_local())
      .def(py::init<>())
      .def_readwrite("slab", &GradWeight::slab)
      .def_readwrite("groups", &GradWeight::groups)
      .def_readwrite("dest_channels", &GradWeight::dest_channels)
      .def_readwrite("source_channels", &GradWeight::source_channels)
      .def_readwrite("channel_block", &GradWeight::channel_block)
      .def_readwrite("blocks", &GradWeight::blocks)
      .def_readwrite("row_block", &GradWeight::row_block)
      .def_readwrite("tiles", &GradWeight::tiles)
      .def_readwrite("splits", &GradWeight::splits)
      .def_readwrite("tiles_per_split", &GradWeight::tiles_per_split)
      .def_readwrite("lanes_on_channels", &GradWeight::lanes_on_channels)
      .def_readwrite("slab_bytes", &GradWeight::slab_bytes)
      .def_readwrite("units", &GradWeight::units)
      .def_property("source_strides", nullptr,
                    &set_strides<GradWeight, &GradWeight::source_strides>)
      .def_property("grad_strides", nullptr, &set_strides<GradWeight, &GradWeight::grad_strides>);
  m.def(
      "grad_weight",
      [](QueueTuple queue, GradWeight pass, int64_t entries, const std::string& dtype,
         uintptr_t source, uintptr_t grad, uintptr_t offsets, uintptr_t value_index,
         uintptr_t bounds, uintptr_t partial, uintptr_t grad_values) {
        const auto element = element_named(dtype);
        pass.entries = entries;  // the rest belongs to sizes, this to the pattern
        py::gil_scoped_release release;
        require_ok(cuda::grad_weight(queue_of(queue), pass, element, pointer<void>(source),
                                     pointer<void>(grad), pointer<int32_t>(offsets),
                                     pointer<int32_t>(value_index), pointer<int32_t>(bounds),
                                     pointer<float>(partial), pointer<float>(grad_values)));
      },
      py::arg("queue"), py::arg("pass"), py::arg("entries"), py::arg("dtype"), py::arg("source"),
      py::arg("grad"), py::arg("offsets"), py::arg("value_index"), py::arg("bounds"),
      py::arg("partial"), py::arg("grad_values"));
}

void bind_direct(py::module_& m) {
  using cuda::Direct;
  py::class_<Direct>(m, "Direct", py::module_local())
      .def(py::init<>())
      .def_readwrite("images", &Direct::images)
      .def_readwrite("height", &Direct::height)
      .def_readwrite("width", &Direct::width)
      .def_readwrite("rows", &Direct::rows)
      .def_readwrite("cols", &Direct::cols)
      .def_readwrite("dest_h", &Direct::dest_h)
      .def_readwrite("dest_w", &Direct::dest_w)
      .def_readwrite("dest_step_h", &Direct::dest_step_h)
      .def_readwrite("dest_step_w", &Direct::dest_step_w)
      .def_readwrite("row_step", &Direct::row_step)
      .def_readwrite("col_step", &Direct::col_step)
      .def_readwrite("groups", &Direct::groups)
      .def_readwrite("dest_channels", &Direct::dest_channels)
      .def_readwrite("source_channels", &Direct::source_channels)
      .def_readwrite("first_segment", &Direct::first_segment)
      .def_property("source_strides", nullptr, &set_strides<Direct, &Direct::source_strides>)
      .def_property("dest_strides", nullptr, &set_strides<Direct, &Direct::dest_strides>);
  m.def(
      "direct_gather",
      [](QueueTuple queue, const Direct& pass, const std::string& dtype, uintptr_t source,
         uintptr_t entries, uintptr_t bounds, uintptr_t values, uintptr_t bias, uintptr_t dest) {
        const auto type = direct_type_named(dtype);
        py::gil_scoped_release release;
        require_ok(cuda::direct_gather(queue_of(queue), pass, type, pointer<void>(source),
                                       pointer<cuda::DirectEntry>(entries),
                                       pointer<int32_t>(bounds), pointer<void>(values),
                                       pointer<void>(bias), pointer<void>(dest)));
      },
      py::arg("queue"), py::arg("pass"), py::arg("dtype"), py::arg("source"), py::arg("entries"),
      py::arg("bounds"), py::arg("values"), py::arg("bias"), py::arg("dest"));
  m.def(
      "direct_grad_weight",
      [](QueueTuple queue, const Direct& pass, const std::string& dtype, uintptr_t source,
         uintptr_t grad, int64_t nnz, uintptr_t entries, uintptr_t bounds, uintptr_t grad_values) {
        const auto type = direct_type_named(dtype);
        py::gil_scoped_release release;
        require_ok(cuda::direct_grad_weight(queue_of(queue), pass, type, pointer<void>(source),
                                            pointer<void>(grad), nnz,
                                            pointer<cuda::DirectEntry>(entries),
                                            pointer<int32_t>(bounds), pointer<void>(grad_values)));
      },
      py::arg("queue"), py::arg("pass"), py::arg("dtype"), py::arg("source"), py::arg("grad"),
      py::arg("nnz"), py::arg("entries"), py::arg("bounds"), py::arg("grad_values"));
}

}  // namespace

void bind_cuda_conv(py::module_& m) {
  bind_slab(m);
  bind_gather(m);
  bind_grad_weight(m);
  bind_direct(m);
}

}  // namespace dsr::bindings
