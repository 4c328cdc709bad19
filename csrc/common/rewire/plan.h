// One rewire as every backend plans it: what the layers hold, and what has been decided for them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

namespace dsr {

enum class ValueType { kFloat32, kFloat64 };

// A weight of rows x row_length positions in CSR.
struct RewireLayer {
  std::string name;  // for messages
  int64_t rows;
  int64_t row_length;
  int64_t nnz;
  const int32_t* crow;  // [rows + 1]
  const int32_t* col;   // [nnz] ascending in each row
  const void* scores;   // [nnz] of `type`
  ValueType type;
  // Numbers the layer's random stream: unique in the model, the same in every rewire.
  uint32_t stream;

  int64_t positions() const { return rows * row_length; }
};

// What happens to one layer.
struct RewireDecision {
  int64_t ties = 0;    // entries at the threshold that are pruned: the last ones
  int64_t pruned = 0;  // these, and everything below the threshold
  int64_t grown = 0;
};

// A per-entry array of a layer (values, momentum, ...) and its successor.
struct RewireArray {
  const void* from;  // [nnz]
  void* to;          // [nnz_after]: survivors moved, grown entries zero
  int64_t item_size;
};

// Where a layer's new pattern and arrays are written. All null and empty: the layer neither loses
// nor gains an entry, and stays as it is.
struct RewireOutput {
  int32_t* crow;  // [rows + 1]
  int32_t* col;   // [nnz_after]
  std::vector<RewireArray> arrays;
  const int64_t* ranks;  // [grown] which of the free positions grow, ascending; null: sampled ones
};

struct RewirePlan {
  static constexpr int64_t kMaxNnz = std::numeric_limits<int32_t>::max();

  std::vector<RewireLayer> layers;
  std::vector<RewireDecision> decisions;  // one per layer
  std::vector<double> thresholds;         // of each layer: entries below it are pruned, and the
                                          // last ones at it
  std::vector<int64_t> below_each;        // entries below the threshold, whatever the capacity
  int64_t below = 0;                      // the sum of below_each
  int64_t prunable = 0;                   // all entries but the largest of each layer
  int64_t total_capacity = 0;             // the sum of capacity(l)

  // Free positions at which layer l can grow.
  int64_t capacity(int64_t l) const {
    const RewireLayer& layer = layers[l];
    if (layer.nnz == 0) return 0;  // its share is in proportion to its survivors
    return std::min(layer.positions(), kMaxNnz) - layer.nnz;
  }
  int64_t nnz_after(int64_t l) const {
    return layers[l].nnz - decisions[l].pruned + decisions[l].grown;
  }
  bool changes(int64_t l) const { return decisions[l].pruned != 0 || decisions[l].grown != 0; }
  void set_threshold(double threshold) { thresholds.assign(layers.size(), threshold); }
  // The largest threshold; where all layers have the same one, that.
  double threshold() const {
    return thresholds.empty() ? 0 : *std::max_element(thresholds.begin(), thresholds.end());
  }
};

}  // namespace dsr
