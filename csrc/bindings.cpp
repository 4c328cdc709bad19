// The only file that knows pybind11: it checks and converts, and turns a Status into a Python
// exception.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <stdexcept>
#include <vector>

#include "common/feistel.h"
#include "common/philox.h"
#include "common/status.h"
#include "cpu/rewire_sample.h"

namespace py = pybind11;

namespace {

// ---- rewire
// ---------------------------------------------------------------------------------------------------------

void require_ok(const dsr::Status& status) {
  if (!status.is_ok()) throw std::invalid_argument(status.message);
}

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

void bind_rewire(py::module_& m) {
  m.def(
      "sample_pattern",
      [](int64_t rows, int64_t row_length, int64_t nnz, uint64_t seed, uintptr_t crow,
         uintptr_t col) {
        py::gil_scoped_release release;
        require_ok(dsr::cpu::sample_pattern(rows, row_length, nnz, seed, pointer<int32_t>(crow),
                                            pointer<int32_t>(col)));
      },
      py::arg("rows"), py::arg("row_length"), py::arg("nnz"), py::arg("seed"), py::arg("crow"),
      py::arg("col"),
      "Fills crow [rows + 1] and col [nnz] (int32) with distinct uniform positions, sorted.");

  // For the tests of the random numbers, on which everything else rests.
  m.def("_philox", [](std::array<uint32_t, 4> counter, uint64_t key) {
    const dsr::PhiloxBlock block =
        dsr::philox4x32({{counter[0], counter[1], counter[2], counter[3]}}, key);
    return std::array<uint32_t, 4>{block.word[0], block.word[1], block.word[2], block.word[3]};
  });
  m.def("_feistel",
        [](uint64_t n, uint64_t seed, uint32_t step, uint32_t layer, std::vector<uint64_t> points) {
          if (n < 1 || n > (uint64_t{1} << 62)) throw std::invalid_argument("n out of range");
          const auto permutation = dsr::Feistel::make(n, seed, step, layer, dsr::Purpose::kGrowth);
          for (uint64_t& x : points) x = permutation(x);
          return points;
        });
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native core of dsr_kernels.";
  bind_rewire(m);
}
