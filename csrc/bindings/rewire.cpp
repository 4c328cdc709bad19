// The rewire engine, and the random numbers it rests on.
#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "bindings/rewire_plan.h"
#include "common/feistel.h"
#include "common/philox.h"
#include "cpu/rewire/rewire.h"
#include "cpu/rewire/sample.h"

namespace dsr::bindings {
namespace {

std::unique_ptr<cpu::RewirePlan> open_plan(const std::vector<LayerTuple>& layers, int threads) {
  auto plan = std::make_unique<cpu::RewirePlan>();
  plan->layers = rewire_layers(layers);
  py::gil_scoped_release release;
  require_ok(cpu::rewire_open(*plan, threads));
  return plan;
}

void apply_plan(const cpu::RewirePlan& plan, uint64_t seed, uint32_t step,
                const std::vector<OutputTuple>& tuples) {
  const std::vector<RewireOutput> outputs = rewire_outputs(tuples);
  py::gil_scoped_release release;
  require_ok(cpu::rewire_apply(plan, seed, step, outputs));
}

}  // namespace

void bind_rewire(py::module_& m) {
  py::class_<cpu::RewirePlan> plan(m, "RewirePlan", py::module_local());
  plan.def(py::init([](const std::vector<LayerTuple>& layers, int threads, const py::object&) {
             return open_plan(layers, threads);
           }),
           py::arg("layers"), py::arg("threads"), py::arg("keep") = py::none(),
           py::keep_alive<1, 4>());
  plan.def("apply", &apply_plan, py::arg("seed"), py::arg("step"), py::arg("outputs"));
  define_decisions(plan);
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
