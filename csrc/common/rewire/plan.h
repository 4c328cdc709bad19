// One rewire as every backend plans it: what the layers hold, and what is decided for them.
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
  const void* values;   // [nnz] of `type`
  ValueType type;
  uint32_t
      stream;  // numbers the layer's random stream: unique in the model, the same in every rewire

  int64_t positions() const { return rows * row_length; }
};

// What happens to one layer.
struct RewireDecision {
  int64_t ties = 0;    // how many entries of exactly the cut magnitude are pruned: the last ones
  int64_t pruned = 0;  // these, and everything smaller
  int64_t grown = 0;
};

// A per-entry array of a layer (values, momentum, ...) and its successor.
struct RewireArray {
  const void* from;  // [nnz]
  void* to;          // [nnz_after]: survivors moved, grown entries zero
  int64_t item_size;
};

// What is to be written for a layer. All null and empty for one that neither loses nor gains an
// entry: it stays as it is.
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
  std::vector<double> cuts;         // of each layer: smaller magnitudes are pruned, and the last of
                                    // those equal to it
  std::vector<int64_t> below_each;  // entries that the threshold would prune, were room no limit
  int64_t prunable = 0;             // entries that are no keeper (the largest of their layer)
  int64_t below = 0;                // the sum of below_each
  int64_t room = 0;                 // free positions that growth can use

  int64_t capacity(int64_t l) const {
    const RewireLayer& layer = layers[l];
    if (layer.nnz == 0) return 0;  // a share in proportion to its survivors is zero
    return std::min(layer.positions(), kMaxNnz) - layer.nnz;
  }
  int64_t nnz_after(int64_t l) const {
    return layers[l].nnz - decisions[l].pruned + decisions[l].grown;
  }
  bool changes(int64_t l) const { return decisions[l].pruned != 0 || decisions[l].grown != 0; }
  void set_cut(double cut) { cuts.assign(layers.size(), cut); }
  // The highest cut: where all layers have the same one, that.
  double cut() const { return cuts.empty() ? 0 : *std::max_element(cuts.begin(), cuts.end()); }
};

}  // namespace dsr
