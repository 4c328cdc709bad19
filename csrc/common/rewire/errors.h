// What is wrong with a rewire's arguments, in words. An empty text: nothing is.
#pragma once

#include <string>
#include <vector>

#include "common/rewire/plan.h"

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

inline std::string check_one_each(const RewirePlan& plan, const char* name, size_t got) {
  if (got == plan.layers.size()) return {};
  return std::string(name) + ": expected one for each of " + std::to_string(plan.layers.size()) +
         " layers, got " + std::to_string(got);
}

// How many entries to prune in each layer.
inline std::string check_counts(const RewirePlan& plan, const std::vector<int64_t>& counts) {
  std::string error = check_one_each(plan, "counts", counts.size());
  for (size_t l = 0; error.empty() && l < counts.size(); ++l) {
    error = check_count(counts[l]);
    if (!error.empty()) error = quoted(plan.layers[l]) + ": " + error;
  }
  return error;
}

// How many entries to grow in each layer.
inline std::string check_growth(const RewirePlan& plan, const std::vector<int64_t>& grown) {
  const std::string error = check_one_each(plan, "grown", grown.size());
  if (!error.empty()) return error;
  for (size_t l = 0; l < grown.size(); ++l) {
    const int64_t capacity = plan.capacity(static_cast<int64_t>(l));
    if (grown[l] >= 0 && grown[l] <= capacity) continue;
    return quoted(plan.layers[l]) + ": expected to grow between 0 and its " +
           std::to_string(capacity) + " free positions, got " + std::to_string(grown[l]);
  }
  return {};
}

inline std::string check_outputs(const RewirePlan& plan, const std::vector<RewireOutput>& outputs) {
  const std::string error = check_one_each(plan, "outputs", outputs.size());
  if (!error.empty()) return error;
  for (size_t l = 0; l < outputs.size(); ++l) {
    if (outputs[l].crow == nullptr && plan.changes(static_cast<int64_t>(l))) {
      return quoted(plan.layers[l]) + ": expected memory for its new pattern, got none";
    }
    for (const RewireArray& array : outputs[l].arrays) {
      if (array.item_size < 1) {
        return "item_size: expected at least 1 byte, got " + std::to_string(array.item_size);
      }
    }
  }
  return {};
}

inline std::string bad_ranks(const RewireLayer& layer) {
  return quoted(layer) +
         ": the ranks of what grows do not ascend among its free positions; nothing was rewired";
}

}  // namespace dsr
