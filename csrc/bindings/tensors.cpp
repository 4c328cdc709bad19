#include "bindings/tensors.h"

#include <algorithm>
#include <cstring>

namespace dsr::bindings {
namespace {

// torch's, once `use_exchange_api` was given it. It lives as long as the process.
const dlpack::ExchangeApi* api = nullptr;

bool use_exchange_api(const py::capsule& capsule) {
  constexpr const char* kName = "dlpack_exchange_api";
  if (capsule.name() == nullptr || std::strcmp(capsule.name(), kName) != 0) return false;
  const auto* found = capsule.get_pointer<dlpack::ExchangeApi>();
  while (found != nullptr && found->version.major > 1) found = found->older;
  if (found == nullptr || found->version.major != 1 || found->tensor_from_object == nullptr)
    return false;
  api = found;
  return true;
}

// False, without an exception, where the object is no tensor with elements in memory.
bool read(py::handle tensor, dlpack::Tensor* out) {
  if (api != nullptr && api->tensor_from_object(tensor.ptr(), out) == 0) return true;
  PyErr_Clear();
  return false;
}

bool has_elements(const dlpack::Tensor& tensor) {
  return std::all_of(tensor.shape, tensor.shape + tensor.ndim, [](int64_t n) { return n > 0; });
}

}  // namespace

uintptr_t address_of(py::handle tensor) {
  if (tensor.is_none()) return 0;
  if (PyLong_CheckExact(tensor.ptr())) return tensor.cast<uintptr_t>();
  dlpack::Tensor found{};
  if (!read(tensor, &found) || (found.data == nullptr && has_elements(found)))
    throw py::type_error("dsr_kernels: expected a tensor with memory of its own, got " +
                         py::repr(py::type::of(tensor)).cast<std::string>() + " without");
  return reinterpret_cast<uintptr_t>(found.data) + found.byte_offset;
}

Look::Look(const py::args& tensors) {
  for (const py::handle tensor : tensors) {
    One one;
    if (!tensor.is_none()) {
      dlpack::Tensor found{};
      if (!read(tensor, &found)) throw py::type_error("Look: expected tensors or None");
      one = {.is_none = false,
             .device = found.device,
             .dtype = found.dtype,
             .sizes = {found.shape, found.shape + found.ndim},
             .strides = {found.strides, found.strides + found.ndim}};
    }
    looks_.push_back(std::move(one));
  }
}

bool Look::fits(const py::args& tensors) const {
  if (tensors.size() != looks_.size()) return false;
  for (size_t i = 0; i < looks_.size(); ++i) {
    if (!looks_[i].fits(tensors[i])) return false;
  }
  return true;
}

bool Look::One::fits(py::handle tensor) const {
  if (is_none || tensor.is_none()) return is_none && tensor.is_none();
  dlpack::Tensor found{};
  if (!read(tensor, &found) || static_cast<size_t>(found.ndim) != sizes.size()) return false;
  return found.device.type == device.type && found.device.id == device.id &&
         found.dtype.code == dtype.code && found.dtype.bits == dtype.bits &&
         found.dtype.lanes == dtype.lanes && std::equal(sizes.begin(), sizes.end(), found.shape) &&
         std::equal(strides.begin(), strides.end(), found.strides);
}

void bind_exchange(py::module_& m) {
  m.def("use_exchange_api", &use_exchange_api, py::arg("capsule"),
        "Has tensors read by the functions of torch.Tensor.__dlpack_c_exchange_api__; False where "
        "it is of a version that is not known.");
}

void bind_look(py::module_& m) {
  py::class_<Look>(m, "Look", "Dtypes, devices, sizes and strides of tensors, or None for absent.")
      .def(py::init<const py::args&>())
      .def("fits", &Look::fits, "Whether these tensors look the same.");
}

}  // namespace dsr::bindings
