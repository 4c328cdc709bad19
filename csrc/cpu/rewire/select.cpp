// Which entries are pruned. Magnitudes of either type are compared as doubles, which hold every
// float exactly.
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "common/rewire/decide.h"
#include "common/rewire/errors.h"
#include "cpu/rewire/rewire.h"

namespace dsr::cpu {
namespace {

// Sign-free bits of a double that number its histogram bin: the exponent and 4 of the mantissa.
constexpr int kBinBits = 15;
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

std::string check_pattern(const RewireLayer& layer) {
  const std::string error = misfit(layer);
  if (!error.empty()) return error;
  bool ascending = layer.crow[0] == 0 && layer.crow[layer.rows] == layer.nnz;
  for (int64_t row = 0; row < layer.rows; ++row)
    ascending &= layer.crow[row] <= layer.crow[row + 1];
  return ascending ? std::string() : broken_crow(layer);
}

std::string not_finite_entry(const RewireLayer& layer, int64_t entry, double value) {
  const int64_t row =
      std::upper_bound(layer.crow, layer.crow + layer.rows + 1, entry) - layer.crow - 1;
  return not_finite(layer, row, layer.col[entry], value);
}

template <class T>
std::string find_largest_entry(const RewireLayer& layer, const T* scores, int64_t& largest_entry) {
  double largest = -1;
  for (int64_t i = 0; i < layer.nnz; ++i) {
    const double m = magnitude(scores[i]);
    if (!(m <= std::numeric_limits<double>::max())) return not_finite_entry(layer, i, scores[i]);
    if (m > largest) {
      largest = m;
      largest_entry = i;
    }
  }
  return {};
}

ThresholdCounts count_at_threshold(const RewirePlan& plan) {
  ThresholdCounts counts{std::vector<int64_t>(plan.layers.size()),
                         std::vector<int64_t>(plan.layers.size())};
  for_each_layer(plan, [&](int64_t l) {
    with_scores(plan.layers[l], [&](const auto* scores) {
      const double threshold = plan.thresholds[l];
      const int64_t largest_entry = plan.largest_entry[l];
      int64_t less = 0, equal = 0;
      for (int64_t i = 0; i < plan.layers[l].nnz; ++i) {
        less += magnitude(scores[i]) < threshold;
        equal += magnitude(scores[i]) == threshold;
      }
      if (largest_entry >= 0) {
        less -= magnitude(scores[largest_entry]) < threshold;
        equal -= magnitude(scores[largest_entry]) == threshold;
      }
      counts.less[l] = less;
      counts.equal[l] = equal;
    });
  });
  return counts;
}

// Finds where the pruned entries at the threshold begin: they are the layer's last ones. (Here and
// below, scores that another thread changes meanwhile lead to numbers that rewire_apply refuses,
// never out of an array.)
void find_ties(RewirePlan& plan) {
  for_each_layer(plan, [&](int64_t l) {
    with_scores(plan.layers[l], [&](const auto* scores) {
      int64_t i = plan.layers[l].nnz;
      for (int64_t left = plan.decisions[l].ties; left > 0 && i > 0;) {
        --i;
        left -= i != plan.largest_entry[l] && magnitude(scores[i]) == plan.thresholds[l];
      }
      plan.tie_start[l] = i;
    });
  });
}

// How many entries of all layers fall into each bin; a layer's largest entry does not count.
std::vector<int64_t> magnitude_histogram(const RewirePlan& plan) {
  std::vector<int64_t> bins(kBins * plan.threads);
  for_each_layer(plan, [&](int64_t l) {
    with_scores(plan.layers[l], [&](const auto* scores) {
      int64_t* mine = bins.data() + kBins * omp_get_thread_num();
      for (int64_t i = 0; i < plan.layers[l].nnz; ++i) ++mine[bin_of(magnitude(scores[i]))];
      const int64_t largest_entry = plan.largest_entry[l];
      if (largest_entry >= 0) --mine[bin_of(magnitude(scores[largest_entry]))];
    });
  });
  for (int64_t i = kBins; i < kBins * plan.threads; ++i) bins[i % kBins] += bins[i];
  bins.resize(kBins);
  return bins;
}

// Calls f(magnitude) for the layer's prunable entries in one bin.
template <class F>
void for_each_in_bin(const RewirePlan& plan, int64_t l, int64_t bin, F&& f) {
  with_scores(plan.layers[l], [&](const auto* scores) {
    for (int64_t i = 0; i < plan.layers[l].nnz; ++i) {
      const double m = magnitude(scores[i]);
      if (bin_of(m) == bin && i != plan.largest_entry[l]) f(m);
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
    const double* end = candidates.data() + start[l + 1];
    for_each_in_bin(plan, l, bin, [&](double m) {
      if (next < end) *next++ = m;
    });
  });
  if (rank >= start.back()) return 0;
  std::nth_element(candidates.begin(), candidates.begin() + rank, candidates.end());
  return candidates[rank];
}

// The `rank`-th smallest prunable magnitude of one layer (from 0).
double select_in_layer(const RewirePlan& plan, int64_t l, int64_t rank) {
  std::vector<double> magnitudes(plan.layers[l].nnz);
  with_scores(plan.layers[l], [&](const auto* scores) {
    // NaN has no order: with it nth_element would leave the array.
    std::transform(scores, scores + magnitudes.size(), magnitudes.begin(), [](auto value) {
      const double m = magnitude(value);
      return m == m ? m : std::numeric_limits<double>::infinity();
    });
  });
  magnitudes.erase(magnitudes.begin() + plan.largest_entry[l]);
  std::nth_element(magnitudes.begin(), magnitudes.begin() + rank, magnitudes.end());
  return magnitudes[rank];
}

}  // namespace

Status rewire_open(RewirePlan& plan, int threads) {
  if (threads < 1)
    return Status::error("threads: expected at least 1, got " + std::to_string(threads));
  plan.threads = threads;
  const int64_t count = static_cast<int64_t>(plan.layers.size());
  plan.decisions.assign(count, {});
  plan.largest_entry.assign(count, -1);
  plan.tie_start.assign(count, 0);
  plan.set_threshold(0);
  plan.below_each.assign(count, 0);
  plan.order.resize(count);
  std::iota(plan.order.begin(), plan.order.end(), 0);
  std::stable_sort(plan.order.begin(), plan.order.end(),
                   [&](int64_t a, int64_t b) { return plan.layers[a].nnz > plan.layers[b].nnz; });
  std::vector<std::string> errors(count);
  for_each_layer(plan, [&](int64_t l) {
    errors[l] = check_pattern(plan.layers[l]);
    if (!errors[l].empty()) return;
    with_scores(plan.layers[l], [&](const auto* scores) {
      errors[l] = find_largest_entry(plan.layers[l], scores, plan.largest_entry[l]);
    });
  });
  for (const std::string& error : errors) {
    if (!error.empty()) return Status::error(error);
  }
  count_entries(plan);
  return Status::ok();
}

Status rewire_prune_below(RewirePlan& plan, double threshold) {
  const std::string error = check_threshold(threshold);
  if (!error.empty()) return Status::error(error);
  plan.set_threshold(threshold);
  const ThresholdCounts counts = count_at_threshold(plan);
  plan.below_each = counts.less;
  plan.below = counts.all_less();
  if (plan.below > plan.total_capacity)
    return rewire_prune_smallest(plan, plan.total_capacity, true);
  decide_at_threshold(plan, counts, 0);
  find_ties(plan);
  return Status::ok();
}

Status rewire_prune_smallest(RewirePlan& plan, int64_t count, bool regrown) {
  const std::string error = check_count(count);
  if (!error.empty()) return Status::error(error);
  count = std::min(count, plan.prunable);
  if (regrown) count = std::min(count, plan.total_capacity);
  plan.set_threshold(count > 0 ? select_magnitude(plan, count - 1) : 0);
  const ThresholdCounts counts = count_at_threshold(plan);
  decide_at_threshold(plan, counts, count - counts.all_less());
  find_ties(plan);
  return Status::ok();
}

Status rewire_prune_smallest_each(RewirePlan& plan, const std::vector<int64_t>& counts) {
  const std::string error = check_counts(plan, counts);
  if (!error.empty()) return Status::error(error);
  const std::vector<int64_t> wanted = limit_to_prunable(plan, counts);
  plan.set_threshold(0);
  for_each_layer(plan, [&](int64_t l) {
    if (wanted[l] > 0) plan.thresholds[l] = select_in_layer(plan, l, wanted[l] - 1);
  });
  decide_at_thresholds(plan, count_at_threshold(plan), wanted);
  find_ties(plan);
  return Status::ok();
}

}  // namespace dsr::cpu
