// One rewire over all sparse layers at once: prune -> budget -> grow. See docs of
// dsr_kernels.rewiring for the method.
//
//   plan.layers = ...          what every layer holds now; the memory stays the caller's and must
//   outlive the plan rewire_open                checks the weights, finds each layer's keeper
//   rewire_prune_*             decides what goes
//   rewire_grow_*              decides how many come back, and where (in which layer)
//   rewire_apply               writes the new patterns and arrays into memory of nnz_after()
//   entries
//
// Nothing a caller holds is changed: outputs are new memory. Every result is independent of the
// number of threads.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/status.h"

namespace dsr::cpu {

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
  int64_t keeper = -1;    // the entry that is never pruned: largest magnitude, the first of equals;
                          // -1: layer is empty
  int64_t tie_start = 0;  // entries of exactly the cut magnitude are pruned from this one on
  int64_t pruned = 0;
  int64_t grown = 0;
};

struct RewirePlan {
  std::vector<RewireLayer> layers;
  std::vector<RewireDecision> decisions;  // one per layer
  std::vector<int64_t> order;             // layers by falling nnz: large ones start first
  int threads = 1;
  double cut = 0;        // magnitudes below it are pruned, those equal to it from tie_start on
  int64_t prunable = 0;  // entries that are no keeper
  int64_t below = 0;     // entries that the threshold would prune, were the budget's room no limit
  int64_t room = 0;      // free positions that growth can use: no more than these can be pruned

  int64_t capacity(int64_t layer) const;
  int64_t nnz_after(int64_t layer) const {
    return layers[layer].nnz - decisions[layer].pruned + decisions[layer].grown;
  }
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

// Stops with the layer and position of the first NaN or infinite weight, or of an inconsistent
// crow.
// Everything else runs on as many threads.
Status rewire_open(RewirePlan& plan, int threads);

// Prunes |w| < threshold, except keepers; only the plan.room smallest where growth could not give
// more back.
Status rewire_prune_below(RewirePlan& plan, double threshold);

// Prunes exactly min(count, plan.prunable, plan.room) entries: the smallest magnitudes of all
// layers together, among equals the later ones (by layer, then by position).
Status rewire_prune_smallest(RewirePlan& plan, int64_t count);

// Gives as many entries back as were pruned, to each layer in proportion to its survivors and
// within its capacity.
Status rewire_grow_proportionally(RewirePlan& plan);

// Samples the grown positions uniformly outside the old support and merges. `step` numbers the
// rewires of a run.
Status rewire_apply(const RewirePlan& plan, uint64_t seed, uint32_t step,
                    const std::vector<RewireOutput>& outputs);

// Runs f(layer) for every layer, large ones first. f must not throw and must touch its own layer
// only.
template <class F>
void for_each_layer(const RewirePlan& plan, F&& f) {
  const int64_t count = static_cast<int64_t>(plan.order.size());
#pragma omp parallel for num_threads(plan.threads) schedule(dynamic, 1)
  for (int64_t i = 0; i < count; ++i) f(plan.order[i]);
}

// Calls f with the layer's values as float* or double*.
template <class F>
void with_values(const RewireLayer& layer, F&& f) {
  if (layer.type == ValueType::kFloat32) {
    f(static_cast<const float*>(layer.values));
  } else {
    f(static_cast<const double*>(layer.values));
  }
}

}  // namespace dsr::cpu
