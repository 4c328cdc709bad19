// Which entries go. Magnitudes of either type are compared as doubles, which hold every float
// exactly.
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "cpu/rewire.h"

namespace dsr::cpu {
namespace {

constexpr int64_t kMaxNnz = std::numeric_limits<int32_t>::max();
constexpr int kBinBits =
    15;  // sign-free bits of a double kept as histogram bin: the exponent and 4 of the mantissa
constexpr int64_t kBins = int64_t{1} << kBinBits;

template <class T>
double magnitude(T value) {
  return std::fabs(static_cast<double>(value));
}

int64_t bin_of(double magnitude) {
  uint64_t bits;
  std::memcpy(&bits, &magnitude, sizeof(bits));
  return static_cast<int64_t>(bits >> (63 - kBinBits));
}

std::string quoted(const RewireLayer& layer) { return "layer '" + layer.name + "'"; }

std::string check_pattern(const RewireLayer& layer) {
  if (layer.rows < 0 || layer.rows > kMaxNnz || layer.row_length < 0 ||
      layer.row_length > kMaxNnz || layer.nnz < 0 || layer.nnz > kMaxNnz ||
      layer.nnz > layer.positions()) {
    return quoted(layer) + ": " + std::to_string(layer.nnz) + " non-zeros do not fit " +
           std::to_string(layer.rows) + " x " + std::to_string(layer.row_length) +
           " positions with 32-bit indices";
  }
  bool ascending = layer.crow[0] == 0 && layer.crow[layer.rows] == layer.nnz;
  for (int64_t row = 0; row < layer.rows; ++row)
    ascending &= layer.crow[row] <= layer.crow[row + 1];
  if (!ascending) {
    return quoted(layer) +
           ": crow_indices do not rise from 0 to nnz = " + std::to_string(layer.nnz);
  }
  return {};
}

std::string describe_entry(const RewireLayer& layer, int64_t entry, double value) {
  const int64_t row =
      std::upper_bound(layer.crow, layer.crow + layer.rows + 1, entry) - layer.crow - 1;
  return quoted(layer) + ": the weight at row " + std::to_string(row) + ", column " +
         std::to_string(layer.col[entry]) + " is " + std::to_string(value) +
         "; nothing was rewired";
}

template <class T>
std::string find_keeper(const RewireLayer& layer, const T* values, RewireDecision& decision) {
  double largest = -1;
  for (int64_t i = 0; i < layer.nnz; ++i) {
    const double m = magnitude(values[i]);
    if (!(m <= std::numeric_limits<double>::max())) return describe_entry(layer, i, values[i]);
    if (m > largest) {
      largest = m;
      decision.keeper = i;
    }
  }
  return {};
}

// How many prunable entries of each layer are smaller than plan.cut and how many are equal to it.
struct Counts {
  std::vector<int64_t> less, equal;
};

Counts count_at_cut(const RewirePlan& plan) {
  Counts counts{std::vector<int64_t>(plan.layers.size()), std::vector<int64_t>(plan.layers.size())};
  const double cut = plan.cut;
  for_each_layer(plan, [&](int64_t l) {
    with_values(plan.layers[l], [&](const auto* values) {
      const int64_t keeper = plan.decisions[l].keeper;
      int64_t less = 0, equal = 0;
      for (int64_t i = 0; i < plan.layers[l].nnz; ++i) {
        less += magnitude(values[i]) < cut;
        equal += magnitude(values[i]) == cut;
      }
      if (keeper >= 0) {
        less -= magnitude(values[keeper]) < cut;
        equal -= magnitude(values[keeper]) == cut;
      }
      counts.less[l] = less;
      counts.equal[l] = equal;
    });
  });
  return counts;
}

// Prunes the last `ties` entries of cut magnitude over all layers, beside everything below it.
void prune_at_cut(RewirePlan& plan, const Counts& counts, int64_t ties) {
  for (int64_t l = static_cast<int64_t>(plan.layers.size()) - 1; l >= 0; --l) {
    RewireDecision& decision = plan.decisions[l];
    const int64_t mine = std::min(ties, counts.equal[l]);
    ties -= mine;
    decision.pruned = counts.less[l] + mine;
    decision.tie_start = plan.layers[l].nnz;
    with_values(plan.layers[l], [&](const auto* values) {
      for (int64_t left = mine; left > 0;) {
        const int64_t i = --decision.tie_start;
        left -= i != decision.keeper && magnitude(values[i]) == plan.cut;
      }
    });
  }
}

// How many entries of all layers fall into each bin; keepers do not count.
std::vector<int64_t> magnitude_histogram(const RewirePlan& plan) {
  std::vector<int64_t> bins(kBins * plan.threads);
  for_each_layer(plan, [&](int64_t l) {
    with_values(plan.layers[l], [&](const auto* values) {
      int64_t* mine = bins.data() + kBins * omp_get_thread_num();
      for (int64_t i = 0; i < plan.layers[l].nnz; ++i) ++mine[bin_of(magnitude(values[i]))];
      const int64_t keeper = plan.decisions[l].keeper;
      if (keeper >= 0) --mine[bin_of(magnitude(values[keeper]))];
    });
  });
  for (int64_t i = kBins; i < kBins * plan.threads; ++i) bins[i % kBins] += bins[i];
  bins.resize(kBins);
  return bins;
}

// Calls f(magnitude) for the layer's prunable entries in one bin.
template <class F>
void for_each_in_bin(const RewirePlan& plan, int64_t l, int64_t bin, F&& f) {
  with_values(plan.layers[l], [&](const auto* values) {
    for (int64_t i = 0; i < plan.layers[l].nnz; ++i) {
      const double m = magnitude(values[i]);
      if (bin_of(m) == bin && i != plan.decisions[l].keeper) f(m);
    }
  });
}

// The `rank`-th smallest prunable magnitude (from 0): its bin by histogram, then the bin's entries
// alone.
double select_magnitude(const RewirePlan& plan, int64_t rank) {
  const std::vector<int64_t> histogram = magnitude_histogram(plan);
  int64_t bin = 0;
  while (rank >= histogram[bin]) rank -= histogram[bin++];

  std::vector<int64_t> start(plan.layers.size() + 1);
  for_each_layer(plan, [&](int64_t l) {
    int64_t count = 0;
    for_each_in_bin(plan, l, bin, [&](double) { ++count; });
    start[l + 1] = count;
  });
  std::partial_sum(start.begin(), start.end(), start.begin());
  std::vector<double> candidates(start.back());
  for_each_layer(plan, [&](int64_t l) {
    double* next = candidates.data() + start[l];
    for_each_in_bin(plan, l, bin, [&](double m) { *next++ = m; });
  });
  std::nth_element(candidates.begin(), candidates.begin() + rank, candidates.end());
  return candidates[rank];
}

}  // namespace

int64_t RewirePlan::capacity(int64_t l) const {
  const RewireLayer& layer = layers[l];
  if (layer.nnz == 0) return 0;  // a share in proportion to its survivors is zero
  return std::min(layer.positions(), kMaxNnz) - layer.nnz;
}

Status rewire_open(RewirePlan& plan, int threads) {
  if (threads < 1)
    return Status::error("threads: expected at least 1, got " + std::to_string(threads));
  plan.threads = threads;
  const int64_t count = static_cast<int64_t>(plan.layers.size());
  plan.decisions.assign(count, {});
  plan.order.resize(count);
  std::iota(plan.order.begin(), plan.order.end(), 0);
  std::stable_sort(plan.order.begin(), plan.order.end(),
                   [&](int64_t a, int64_t b) { return plan.layers[a].nnz > plan.layers[b].nnz; });
  std::vector<std::string> errors(count);
  for_each_layer(plan, [&](int64_t l) {
    errors[l] = check_pattern(plan.layers[l]);
    if (!errors[l].empty()) return;
    with_values(plan.layers[l], [&](const auto* values) {
      errors[l] = find_keeper(plan.layers[l], values, plan.decisions[l]);
    });
  });
  plan.prunable = plan.room = 0;
  for (int64_t l = 0; l < count; ++l) {
    if (!errors[l].empty()) return Status::error(errors[l]);
    plan.prunable += std::max<int64_t>(plan.layers[l].nnz - 1, 0);
    plan.room += plan.capacity(l);
  }
  return Status::ok();
}

Status rewire_prune_below(RewirePlan& plan, double threshold) {
  if (!(threshold >= 0)) {
    return Status::error("threshold: expected a number >= 0, got " + std::to_string(threshold));
  }
  plan.cut = threshold;
  const Counts counts = count_at_cut(plan);
  plan.below = std::accumulate(counts.less.begin(), counts.less.end(), int64_t{0});
  if (plan.below > plan.room) return rewire_prune_smallest(plan, plan.room);
  prune_at_cut(plan, counts, 0);
  return Status::ok();
}

Status rewire_prune_smallest(RewirePlan& plan, int64_t count) {
  if (count < 0) return Status::error("count: expected >= 0, got " + std::to_string(count));
  count = std::min({count, plan.prunable, plan.room});
  plan.cut = count > 0 ? select_magnitude(plan, count - 1) : 0;
  const Counts counts = count_at_cut(plan);
  prune_at_cut(plan, counts,
               count - std::accumulate(counts.less.begin(), counts.less.end(), int64_t{0}));
  return Status::ok();
}

}  // namespace dsr::cpu
