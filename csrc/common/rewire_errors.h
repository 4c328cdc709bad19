// What can be wrong with a rewire's arguments, in words. An empty text: nothing is.
#pragma once

#include <string>
#include <vector>

#include "common/rewire_plan.h"

namespace dsr {

inline std::string quoted(const RewireLayer& layer) { return "layer '" + layer.name + "'"; }

inline std::string misfit(const RewireLayer& layer) {
  constexpr int64_t kMax = RewirePlan::kMaxNnz;
  if (layer.rows >= 0 && layer.rows <= kMax && layer.row_length >= 0 && layer.row_length <= kMax &&
      layer.nnz >= 0 && layer.nnz <= kMax && layer.nnz <= layer.positions()) {
    return {};
  }
  return quoted(layer) + ": " + std::to_string(layer.nnz) + " non-zeros do not fit " +
         std::to_string(layer.rows) + " x " + std::to_string(layer.row_length) +
         " positions with 32-bit indices";
}

inline std::string broken_crow(const RewireLayer& layer) {
  return quoted(layer) + ": crow_indices do not rise from 0 to nnz = " + std::to_string(layer.nnz);
}

inline std::string not_finite(const RewireLayer& layer, int64_t row, int64_t col, double value) {
  return quoted(layer) + ": the weight at row " + std::to_string(row) + ", column " +
         std::to_string(col) + " is " + std::to_string(value) + "; nothing was rewired";
}

inline std::string unsorted_or_changed(const RewireLayer& layer) {
  return quoted(layer) +
         ": col_indices are not ascending and in range in every row, or the weights changed during "
         "the rewire; nothing was rewired";
}

inline std::string check_threshold(double threshold) {
  if (threshold >= 0) return {};
  return "threshold: expected a number >= 0, got " + std::to_string(threshold);
}

inline std::string check_count(int64_t count) {
  if (count >= 0) return {};
  return "count: expected >= 0, got " + std::to_string(count);
}

inline std::string check_outputs(const RewirePlan& plan, const std::vector<RewireOutput>& outputs) {
  if (outputs.size() != plan.layers.size()) {
    return "outputs: expected one for each of " + std::to_string(plan.layers.size()) +
           " layers, got " + std::to_string(outputs.size());
  }
  for (const RewireOutput& output : outputs) {
    for (const RewireArray& array : output.arrays) {
      const int64_t size = array.item_size;
      if (size != 1 && size != 2 && size != 4 && size != 8) {
        return "item_size: expected 1, 2, 4 or 8 bytes, got " + std::to_string(size);
      }
    }
  }
  return {};
}

}  // namespace dsr
