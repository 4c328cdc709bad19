// One rewire as every backend plans it: what the layers hold, what is decided for them, and the
// arithmetic between the two, which is the same on any device.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "common/share_out.h"
#include "common/status.h"

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

struct RewireOutput {
  int32_t* crow;  // [rows + 1]
  int32_t* col;   // [nnz_after]
  std::vector<RewireArray> arrays;
};

// How many prunable entries of each layer are smaller than the cut and how many are equal to it.
struct CutCounts {
  std::vector<int64_t> less, equal;

  int64_t all_less() const { return std::accumulate(less.begin(), less.end(), int64_t{0}); }
};

struct RewirePlan {
  static constexpr int64_t kMaxNnz = std::numeric_limits<int32_t>::max();

  std::vector<RewireLayer> layers;
  std::vector<RewireDecision> decisions;  // one per layer
  double cut = 0;        // magnitudes below it are pruned, and the last of those equal to it
  int64_t prunable = 0;  // entries that are no keeper (the largest of their layer)
  int64_t below = 0;     // entries that the threshold would prune, were the budget's room no limit
  int64_t room = 0;      // free positions that growth can use: no more than these can be pruned

  int64_t capacity(int64_t l) const {
    const RewireLayer& layer = layers[l];
    if (layer.nnz == 0) return 0;  // a share in proportion to its survivors is zero
    return std::min(layer.positions(), kMaxNnz) - layer.nnz;
  }
  int64_t nnz_after(int64_t l) const {
    return layers[l].nnz - decisions[l].pruned + decisions[l].grown;
  }
};

// Counts what there is, for layers that have been found to fit.
inline void count_entries(RewirePlan& plan) {
  plan.prunable = plan.room = 0;
  for (size_t l = 0; l < plan.layers.size(); ++l) {
    plan.prunable += std::max<int64_t>(plan.layers[l].nnz - 1, 0);
    plan.room += plan.capacity(static_cast<int64_t>(l));
  }
}

// Prunes the last `ties` entries of cut magnitude over all layers, beside everything below it.
inline void decide_at_cut(RewirePlan& plan, const CutCounts& counts, int64_t ties) {
  for (size_t l = plan.layers.size(); l-- > 0;) {
    RewireDecision& decision = plan.decisions[l];
    decision.ties = std::min(ties, counts.equal[l]);
    decision.pruned = counts.less[l] + decision.ties;
    ties -= decision.ties;
  }
}

// Gives as many entries back as were pruned, to each layer in proportion to its survivors and
// within its capacity.
inline Status rewire_grow_proportionally(RewirePlan& plan) {
  const int64_t count = static_cast<int64_t>(plan.layers.size());
  std::vector<int64_t> survivors(count), capacity(count);
  int64_t pruned = 0;
  for (int64_t l = 0; l < count; ++l) {
    survivors[l] = plan.layers[l].nnz - plan.decisions[l].pruned;
    capacity[l] = plan.capacity(l);
    pruned += plan.decisions[l].pruned;
  }
  const std::vector<int64_t> grown = share_out(pruned, survivors, capacity);
  int64_t total = 0;
  for (int64_t l = 0; l < count; ++l) total += plan.decisions[l].grown = grown[l];
  if (total != pruned)
    return Status::error("rewire: the budget does not add up; please report this");
  return Status::ok();
}

}  // namespace dsr
