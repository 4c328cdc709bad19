// What a rewire decides for its layers from what has been counted. It is the same on any device.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <string>
#include <vector>

#include "common/rewire/errors.h"
#include "common/rewire/plan.h"
#include "common/share_out.h"
#include "common/status.h"

namespace dsr {

// How many prunable entries of each layer are below its threshold, and how many are at it.
struct ThresholdCounts {
  std::vector<int64_t> less, equal;

  int64_t all_less() const { return std::accumulate(less.begin(), less.end(), int64_t{0}); }
};

// Counts entries and capacities. The layers have been checked.
inline void count_entries(RewirePlan& plan) {
  plan.prunable = plan.total_capacity = 0;
  for (size_t l = 0; l < plan.layers.size(); ++l) {
    plan.prunable += std::max<int64_t>(plan.layers[l].nnz - 1, 0);
    plan.total_capacity += plan.capacity(static_cast<int64_t>(l));
  }
}

// Prunes everything below the threshold, and the last `ties` entries at it over all layers.
inline void decide_at_threshold(RewirePlan& plan, const ThresholdCounts& counts, int64_t ties) {
  for (size_t l = plan.layers.size(); l-- > 0;) {
    RewireDecision& decision = plan.decisions[l];
    decision.ties = std::min(ties, counts.equal[l]);
    decision.pruned = counts.less[l] + decision.ties;
    ties -= decision.ties;
  }
}

// Prunes `wanted` entries of each layer: everything below its threshold, then the last ones at it.
inline void decide_at_thresholds(RewirePlan& plan, const ThresholdCounts& counts,
                                 const std::vector<int64_t>& wanted) {
  for (size_t l = 0; l < plan.layers.size(); ++l) {
    plan.decisions[l].ties = wanted[l] - counts.less[l];
    plan.decisions[l].pruned = wanted[l];
  }
}

// Limits `counts` to what each layer can lose: all but its largest entry.
inline std::vector<int64_t> limit_to_prunable(const RewirePlan& plan, std::vector<int64_t> counts) {
  for (size_t l = 0; l < plan.layers.size(); ++l) {
    counts[l] = std::min(counts[l], std::max<int64_t>(plan.layers[l].nnz - 1, 0));
  }
  return counts;
}

// Grows grown[l] entries in each layer.
inline Status rewire_grow(RewirePlan& plan, const std::vector<int64_t>& grown) {
  const std::string error = check_growth(plan, grown);
  if (!error.empty()) return Status::error(error);
  for (size_t l = 0; l < plan.layers.size(); ++l) plan.decisions[l].grown = grown[l];
  return Status::ok();
}

// Grows as many entries as were pruned. Each layer's share is in proportion to its survivors and
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
