// One rewire over all sparse layers at once: prune -> budget -> grow. See docs of
// dsr_kernels.rewiring for the method.
//
//   plan.layers = ...   what every layer holds now; that memory outlives the plan
//   rewire_open         checks the weights, finds each layer's keeper
//   rewire_prune_*      decides what goes
//   rewire_grow_*       decides how many come back, in which layer (common/rewire/decide.h)
//   rewire_apply        writes the new patterns and arrays, of nnz_after() entries
//
// Nothing a caller holds is changed: outputs are new memory. Every result is independent of the
// number of threads.
#pragma once

#include <cstdint>
#include <vector>

#include "common/rewire/plan.h"
#include "common/status.h"

namespace dsr::cpu {

struct RewirePlan : dsr::RewirePlan {
  std::vector<int64_t> order;  // layers by falling nnz: large ones start first
  int threads = 1;
  std::vector<int64_t> keeper;     // of each layer: the entry that is never pruned, of the largest
                                   // magnitude and the first of equals; -1: layer is empty
  std::vector<int64_t> tie_start;  // of each layer: entries of exactly the cut magnitude are pruned
                                   // from this one on
};

// Stops with the layer and position of the first NaN or infinite weight, or of an inconsistent
// crow.
// Everything else runs on as many threads.
Status rewire_open(RewirePlan& plan, int threads);

// Prunes |w| < threshold, except keepers; only the plan.room smallest where growth could not give
// more back.
Status rewire_prune_below(RewirePlan& plan, double threshold);

// Prunes exactly min(count, plan.prunable) entries, and no more than plan.room if as many are to be
// regrown: the smallest magnitudes of all layers together, among equals the later ones (by layer,
// then by position).
Status rewire_prune_smallest(RewirePlan& plan, int64_t count, bool regrown);

// Prunes exactly counts[l] entries of each layer, but never its keeper: the smallest, among equals
// the later ones.
Status rewire_prune_smallest_each(RewirePlan& plan, const std::vector<int64_t>& counts);

// Grows at the given ranks or samples positions uniformly outside the old support, and merges.
// `step` numbers the rewires of a run.
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
