// What the rewire plans of all backends look like in Python: dsr_kernels/rewiring/plan.py describes
// their methods. A plan borrows the memory of its layers; it keeps what is passed as `keep` alive.
#pragma once

#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

#include "bindings/common.h"
#include "common/rewire/decide.h"
#include "common/rewire/plan.h"

namespace dsr::bindings {

// name, rows, row_length, nnz, crow, col, scores, dtype, stream
using LayerTuple = std::tuple<std::string, int64_t, int64_t, int64_t, uintptr_t, uintptr_t,
                              uintptr_t, std::string, uint32_t>;
// crow, col, [(from, to, item_size), ...], ranks; all zero and empty: the layer stays as it is
using OutputTuple = std::tuple<uintptr_t, uintptr_t,
                               std::vector<std::tuple<uintptr_t, uintptr_t, int64_t>>, uintptr_t>;

inline std::vector<RewireLayer> rewire_layers(const std::vector<LayerTuple>& tuples) {
  std::vector<RewireLayer> layers;
  for (const auto& [name, rows, row_length, nnz, crow, col, scores, dtype, stream] : tuples) {
    layers.push_back({.name = name,
                      .rows = rows,
                      .row_length = row_length,
                      .nnz = nnz,
                      .crow = pointer<int32_t>(crow),
                      .col = pointer<int32_t>(col),
                      .scores = pointer<void>(scores),
                      .type = element_size(dtype) == 4 ? ValueType::kFloat32 : ValueType::kFloat64,
                      .stream = stream});
  }
  return layers;
}

inline std::vector<RewireOutput> rewire_outputs(const std::vector<OutputTuple>& tuples) {
  std::vector<RewireOutput> outputs;
  for (const auto& [crow, col, arrays, ranks] : tuples) {
    outputs.push_back({pointer<int32_t>(crow), pointer<int32_t>(col), {}, pointer<int64_t>(ranks)});
    for (const auto& [from, to, item_size] : arrays) {
      outputs.back().arrays.push_back({pointer<void>(from), pointer<void>(to), item_size});
    }
  }
  return outputs;
}

template <class Plan, class F>
void define_per_layer(py::class_<Plan>& c, const char* name, F f) {
  c.def_property_readonly(name, [f](const Plan& plan) {
    std::vector<int64_t> result;
    for (size_t l = 0; l < plan.layers.size(); ++l) {
      result.push_back(f(plan, static_cast<int64_t>(l)));
    }
    return result;
  });
}

// Everything but opening and applying, which differ between backends.
template <class Plan>
void define_decisions(py::class_<Plan>& c) {
  c.def(
      "prune_below",
      [](Plan& plan, double threshold) {
        py::gil_scoped_release release;
        require_ok(rewire_prune_below(plan, threshold));
      },
      py::arg("threshold"));
  c.def(
      "prune_smallest",
      [](Plan& plan, int64_t count, bool regrown) {
        py::gil_scoped_release release;
        require_ok(rewire_prune_smallest(plan, count, regrown));
      },
      py::arg("count"), py::arg("regrown") = true);
  c.def(
      "prune_smallest_each",
      [](Plan& plan, const std::vector<int64_t>& counts) {
        py::gil_scoped_release release;
        require_ok(rewire_prune_smallest_each(plan, counts));
      },
      py::arg("counts"));
  c.def(
      "grow",
      [](Plan& plan, const std::vector<int64_t>& grown) { require_ok(rewire_grow(plan, grown)); },
      py::arg("grown"));
  c.def("grow_proportionally", [](Plan& plan) { require_ok(rewire_grow_proportionally(plan)); });
  c.def_property_readonly("prunable", [](const Plan& plan) { return plan.prunable; });
  c.def_property_readonly("below", [](const Plan& plan) { return plan.below; });
  c.def_property_readonly("total_capacity", [](const Plan& plan) { return plan.total_capacity; });
  c.def_property_readonly("threshold", [](const Plan& plan) { return plan.threshold(); });
  c.def_property_readonly("thresholds", [](const Plan& plan) { return plan.thresholds; });
  c.def_property_readonly("below_each", [](const Plan& plan) { return plan.below_each; });
  define_per_layer(c, "nnz", [](const Plan& plan, int64_t l) { return plan.layers[l].nnz; });
  define_per_layer(c, "capacity", [](const Plan& plan, int64_t l) { return plan.capacity(l); });
  define_per_layer(c, "pruned",
                   [](const Plan& plan, int64_t l) { return plan.decisions[l].pruned; });
  define_per_layer(c, "grown", [](const Plan& plan, int64_t l) { return plan.decisions[l].grown; });
  define_per_layer(c, "nnz_after", [](const Plan& plan, int64_t l) { return plan.nnz_after(l); });
}

}  // namespace dsr::bindings
