// One rewire over all sparse layers at once: prune -> budget -> grow. See docs of
// dsr_kernels.rewiring for the method.
//
//   plan.layers = ...   what every layer holds now; that memory outlives the plan
//   rewire_open         checks the scores, finds each layer's largest entry
//   rewire_prune_*      decides which entries are pruned
//   rewire_grow_*       decides how many grow in which layer (common/rewire/decide.h)
//   rewire_apply        writes the new patterns and arrays, of nnz_after() entries
//
// Nothing a caller holds is changed: outputs are new memory. Every result is independent of the
// number of threads.
#pragma once

#include <cstdint>
#include <exception>
#include <vector>

#include "common/rewire/plan.h"
#include "common/status.h"

namespace dsr::cpu {

struct RewirePlan : dsr::RewirePlan {
  std::vector<int64_t> order;  // layers by falling nnz: large ones start first
  int threads = 1;
  // Of each layer the entry of largest magnitude, of equal ones the first. It is never pruned. -1:
  // the layer is empty.
  std::vector<int64_t> largest_entry;
  std::vector<int64_t> tie_start;  // of each layer, where the pruned entries at the threshold begin
};

// Stops with the layer and position of the first NaN or infinite score, or of an inconsistent crow.
// `threads` is for all that follows, too.
Status rewire_open(RewirePlan& plan, int threads);

// Prunes |score| < threshold, but never a layer's largest entry. Where growth could not give as
// many back, prunes only the plan.total_capacity smallest.
Status rewire_prune_below(RewirePlan& plan, double threshold);

// Prunes exactly min(count, plan.prunable) entries, and no more than plan.total_capacity if as many
// are to be regrown: the smallest magnitudes of all layers together, of equal ones the later (by
// layer, then by position).
Status rewire_prune_smallest(RewirePlan& plan, int64_t count, bool regrown);

// Prunes exactly counts[l] entries of each layer, but never its largest one: the smallest
// magnitudes, of equal ones the later.
Status rewire_prune_smallest_each(RewirePlan& plan, const std::vector<int64_t>& counts);

// Grows at the given ranks, or at positions sampled uniformly outside the old support, and merges.
// `step` numbers the rewires of a run.
Status rewire_apply(const RewirePlan& plan, uint64_t seed, uint32_t step,
                    const std::vector<RewireOutput>& outputs);

// Runs f(layer) for every layer, large ones first. f must touch its own layer only. An exception
// that left the parallel region, such as for memory that is not to be had, would end the process:
// one of those thrown is kept, and thrown again behind the region.
template <class F>
void for_each_layer(const RewirePlan& plan, F&& f) {
  const int64_t count = static_cast<int64_t>(plan.order.size());
  std::exception_ptr thrown;
#pragma omp parallel for num_threads(plan.threads) schedule(dynamic, 1)
  for (int64_t i = 0; i < count; ++i) {
    try {
      f(plan.order[i]);
    } catch (...) {
#pragma omp critical(dsr_thrown)
      thrown = std::current_exception();
    }
  }
  if (thrown) std::rethrow_exception(thrown);
}

// Calls f with the layer's scores as float* or double*.
template <class F>
void with_scores(const RewireLayer& layer, F&& f) {
  if (layer.type == ValueType::kFloat32) {
    f(static_cast<const float*>(layer.scores));
  } else {
    f(static_cast<const double*>(layer.scores));
  }
}

}  // namespace dsr::cpu
