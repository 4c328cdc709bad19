// The rewire engine, and the random numbers it rests on.
#include <array>
#include <cstdint>
#include <tuple>
#include <vector>

#include "bindings/common.h"
#include "common/feistel.h"
#include "common/philox.h"
#include "cpu/rewire.h"
#include "cpu/rewire_sample.h"

namespace dsr::bindings {
namespace {

// name, rows, row_length, nnz, crow, col, values, dtype, stream
using LayerTuple = std::tuple<std::string, int64_t, int64_t, int64_t, uintptr_t, uintptr_t,
                              uintptr_t, std::string, uint32_t>;
// crow, col, [(from, to, item_size), ...]
using OutputTuple =
    std::tuple<uintptr_t, uintptr_t, std::vector<std::tuple<uintptr_t, uintptr_t, int64_t>>>;

cpu::RewirePlan open_plan(const std::vector<LayerTuple>& layers, int threads) {
  cpu::RewirePlan plan;
  for (const auto& [name, rows, row_length, nnz, crow, col, values, dtype, stream] : layers) {
    plan.layers.push_back(
        {name, rows, row_length, nnz, pointer<int32_t>(crow), pointer<int32_t>(col),
         pointer<void>(values),
         element_size(dtype) == 4 ? cpu::ValueType::kFloat32 : cpu::ValueType::kFloat64, stream});
  }
  py::gil_scoped_release release;
  require_ok(cpu::rewire_open(plan, threads));
  return plan;
}

void apply_plan(const cpu::RewirePlan& plan, uint64_t seed, uint32_t step,
                const std::vector<OutputTuple>& tuples) {
  std::vector<cpu::RewireOutput> outputs;
  for (const auto& [crow, col, arrays] : tuples) {
    outputs.push_back({pointer<int32_t>(crow), pointer<int32_t>(col), {}});
    for (const auto& [from, to, item_size] : arrays) {
      outputs.back().arrays.push_back({pointer<void>(from), pointer<void>(to), item_size});
    }
  }
  py::gil_scoped_release release;
  require_ok(cpu::rewire_apply(plan, seed, step, outputs));
}

template <class F>
std::vector<int64_t> per_layer(const cpu::RewirePlan& plan, F&& f) {
  std::vector<int64_t> result;
  for (size_t l = 0; l < plan.layers.size(); ++l) result.push_back(f(static_cast<int64_t>(l)));
  return result;
}

// The plan borrows the memory of its layers: the caller keeps their tensors until it is done with
// the plan.
void bind_rewire_plan(py::module_& m) {
  using cpu::RewirePlan;
  py::class_<RewirePlan>(m, "RewirePlan")
      .def(py::init(&open_plan), py::arg("layers"), py::arg("threads"))
      .def(
          "prune_below",
          [](RewirePlan& plan, double threshold) {
            py::gil_scoped_release release;
            require_ok(cpu::rewire_prune_below(plan, threshold));
          },
          py::arg("threshold"))
      .def(
          "prune_smallest",
          [](RewirePlan& plan, int64_t count) {
            py::gil_scoped_release release;
            require_ok(cpu::rewire_prune_smallest(plan, count));
          },
          py::arg("count"))
      .def("grow_proportionally",
           [](RewirePlan& plan) { require_ok(cpu::rewire_grow_proportionally(plan)); })
      .def("apply", &apply_plan, py::arg("seed"), py::arg("step"), py::arg("outputs"))
      .def_readonly("prunable", &RewirePlan::prunable)
      .def_readonly("below", &RewirePlan::below)
      .def_readonly("room", &RewirePlan::room)
      .def_readonly("cut", &RewirePlan::cut)
      .def_property_readonly("pruned",
                             [](const RewirePlan& plan) {
                               return per_layer(
                                   plan, [&](int64_t l) { return plan.decisions[l].pruned; });
                             })
      .def_property_readonly("grown",
                             [](const RewirePlan& plan) {
                               return per_layer(plan,
                                                [&](int64_t l) { return plan.decisions[l].grown; });
                             })
      .def_property_readonly("nnz_after", [](const RewirePlan& plan) {
        return per_layer(plan, [&](int64_t l) { return plan.nnz_after(l); });
      });
}

}  // namespace

void bind_rewire(py::module_& m) {
  bind_rewire_plan(m);
  m.def(
      "sample_pattern",
      [](int64_t rows, int64_t row_length, int64_t nnz, uint64_t seed, uintptr_t crow,
         uintptr_t col) {
        py::gil_scoped_release release;
        require_ok(cpu::sample_pattern(rows, row_length, nnz, seed, pointer<int32_t>(crow),
                                       pointer<int32_t>(col)));
      },
      py::arg("rows"), py::arg("row_length"), py::arg("nnz"), py::arg("seed"), py::arg("crow"),
      py::arg("col"),
      "Fills crow [rows + 1] and col [nnz] (int32) with distinct uniform positions, sorted.");

  // For the tests of the random numbers, on which everything else rests.
  m.def("_philox", [](std::array<uint32_t, 4> counter, uint64_t key) {
    const PhiloxBlock block = philox4x32({{counter[0], counter[1], counter[2], counter[3]}}, key);
    return std::array<uint32_t, 4>{block.word[0], block.word[1], block.word[2], block.word[3]};
  });
  m.def("_feistel",
        [](uint64_t n, uint64_t seed, uint32_t step, uint32_t layer, std::vector<uint64_t> points) {
          if (n < 1 || n > (uint64_t{1} << 62)) throw std::invalid_argument("n out of range");
          const auto permutation = Feistel::make(n, seed, step, layer, Purpose::kGrowth);
          for (uint64_t& x : points) x = permutation(x);
          return points;
        });
}

}  // namespace dsr::bindings
