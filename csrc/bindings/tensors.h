// Tensors of torch's as they come from Python, read without torch: by DLPack's C exchange API, a
// table of functions that a tensor type publishes as `__dlpack_c_exchange_api__` (DLPack 1.2 and
// later; torch 2.13 has it). Reading one this way takes some 30 ns; by Python's attributes, a
// microsecond.
#pragma once

#include <cstdint>
#include <vector>

#include "bindings/common.h"

namespace dsr::bindings {

// As DLPack's header declares them: these layouts are its ABI of major version 1.
namespace dlpack {

struct Device {
  int32_t type;
  int32_t id;
};

struct DataType {
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;
};

struct Tensor {
  void* data;
  Device device;
  int32_t ndim;
  DataType dtype;
  int64_t* shape;    // [ndim]
  int64_t* strides;  // [ndim], in elements
  uint64_t byte_offset;
};

struct ExchangeApi {
  struct {
    uint32_t major;
    uint32_t minor;
  } version;
  ExchangeApi* older;
  void* allocate;  // of no use here, as are the next two
  void* managed_from_object;
  void* managed_to_object;
  int (*tensor_from_object)(void* object, Tensor* out);  // -1: a Python exception is set
  void* current_stream;
};

}  // namespace dlpack

// Where the elements of a tensor lie: 0 for None; a number is an address already. Throws TypeError
// for what has no memory. A view of nothing that outlives the call.
uintptr_t address_of(py::handle tensor);

template <class T>
T* pointer_of(py::handle tensor) {
  return pointer<T>(address_of(tensor));
}

// What tensors look like: dtypes, devices, sizes and strides, but not what they hold or where.
class Look {
 public:
  explicit Look(const py::args& tensors);  // each a tensor or None
  bool fits(const py::args& tensors) const;

 private:
  struct One {
    bool is_none = true;
    dlpack::Device device{};
    dlpack::DataType dtype{};
    std::vector<int64_t> sizes, strides;

    bool fits(py::handle tensor) const;
  };
  std::vector<One> looks_;
};

void bind_exchange(py::module_& m);
void bind_look(py::module_& m);

}  // namespace dsr::bindings
