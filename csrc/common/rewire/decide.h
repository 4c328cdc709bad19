// What is decided for the layers of a rewire, from what has been counted: the same on any device.
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

// How many prunable entries of each layer are smaller than the cut and how many are equal to it.
struct CutCounts {
  std::vector<int64_t> less, equal;

  int64_t all_less() const { return std::accumulate(less.begin(), less.end(), int64_t{0}); }
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

// Prunes `wanted` entries of each layer: everything below its cut, and the last ones at it.
inline void decide_at_cuts(RewirePlan& plan, const CutCounts& counts,
                           const std::vector<int64_t>& wanted) {
  for (size_t l = 0; l < plan.layers.size(); ++l) {
    plan.decisions[l].ties = wanted[l] - counts.less[l];
    plan.decisions[l].pruned = wanted[l];
  }
}

// Within what each layer can lose: all but its keeper.
inline std::vector<int64_t> limit_to_prunable(const RewirePlan& plan, std::vector<int64_t> counts) {
  for (size_t l = 0; l < plan.layers.size(); ++l) {
    counts[l] = std::min(counts[l], std::max<int64_t>(plan.layers[l].nnz - 1, 0));
  }
  return counts;
}

// Gives each layer as many entries as the caller says.
inline Status rewire_grow(RewirePlan& plan, const std::vector<int64_t>& grown) {
  const std::string error = check_growth(plan, grown);
  if (!error.empty()) return Status::error(error);
  for (size_t l = 0; l < plan.layers.size(); ++l) plan.decisions[l].grown = grown[l];
  return Status::ok();
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
