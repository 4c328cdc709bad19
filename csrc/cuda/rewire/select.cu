#include "cuda/rewire/select.cuh"

#include <algorithm>
#include <cmath>

#include "common/rewire/decide.h"
#include "common/rewire/errors.h"
#include "cuda/rewire/launches.h"
#include "cuda/rewire/rewire.h"

namespace dsr::cuda {
namespace {

constexpr int kMagnitudeBits = 63;
constexpr int kFloatZeros = 29;  // low bits of a float's magnitude as a double that are zero

Word bits_of(double magnitude) {
  Word bits;
  std::memcpy(&bits, &magnitude, sizeof(bits));
  return bits;
}

double value_of(Word bits) {
  double value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

void describe_layers(const RewirePlan& plan) {
  int64_t entries = 0;
  for (int l = 0; l < plan.host.layers; ++l) {
    const RewireLayer& layer = plan.layers[l];
    plan.host.findings[l] = {};
    plan.host.views[l] = {
        layer.crow,       layer.col, layer.scores, layer.rows,
        layer.row_length, layer.nnz, entries,      layer.type == ValueType::kFloat64};
    entries += layer.nnz;
  }
  std::fill_n(plan.host.selections, plan.host.most_scopes(), Selection{});
  count_chunks(plan.host.entry_chunks, plan.host.layers, [&](int l) { return plan.layers[l].nnz; });
  count_chunks(plan.host.row_chunks, plan.host.layers,
               [&](int l) { return plan.layers[l].rows + 1; });
}

Status not_finite_entry(const RewirePlan& plan, int64_t l, int64_t entry) {
  const RewireLayer& layer = plan.layers[l];
  const bool is_double = layer.type == ValueType::kFloat64;
  std::vector<int32_t> crow(layer.rows + 1);
  int32_t col = 0;
  float single = 0;
  double value = 0;
  const auto fetch = [&](void* to, const void* from, int64_t index, size_t size, int64_t count) {
    return copy_to_host(plan.queue, to, static_cast<const char*>(from) + index * size,
                        count * size);
  };
  Status status = fetch(crow.data(), layer.crow, 0, sizeof(int32_t), layer.rows + 1);
  if (status.is_ok()) status = fetch(&col, layer.col, entry, sizeof(col), 1);
  if (status.is_ok()) {
    status = is_double ? fetch(&value, layer.scores, entry, sizeof(value), 1)
                       : fetch(&single, layer.scores, entry, sizeof(single), 1);
  }
  if (status.is_ok()) status = synchronize(plan.queue);
  if (!status.is_ok()) return status;
  const int64_t row = std::upper_bound(crow.begin(), crow.end(), entry) - crow.begin() - 1;
  return Status::error(not_finite(layer, row, col, is_double ? value : single));
}

// Counts what is below the threshold and at it, and fetches that with all other findings.
Status fetch_counts(RewirePlan& plan, ThresholdCounts& counts) {
  const DeviceGuard guard(plan.queue.device);
  Launches launches(plan);
  const unsigned chunks = chunk_total(plan.host.entry_chunks, plan.host.layers);
  if (chunks > 0) {
    DSR_LAUNCH((count_at_threshold_kernel), chunks, RewireConfig::kThreads, 0, plan.queue.stream,
               plan.device);
    launches.check("count at the threshold");
  }
  if (plan.host.layers > 0) {
    DSR_LAUNCH((scan_chunks_kernel), plan.host.layers, RewireConfig::kThreads, 0, plan.queue.stream,
               plan.device);
    launches.check("scan the counts");
  }
  Status status = launches.status;
  if (status.is_ok()) status = fetch_findings(plan);
  if (!status.is_ok()) return status;
  for (size_t l = 0; l < plan.layers.size(); ++l) {
    const LayerFindings& found = plan.host.findings[l];
    if (found.broken != 0) return Status::error(broken_crow(plan.layers[l]));
    if (found.bad != LayerFindings::kNone) return not_finite_entry(plan, l, found.bad);
    counts.less.push_back(static_cast<int64_t>(found.less));
    counts.equal.push_back(static_cast<int64_t>(found.equal));
  }
  plan.counted = true;
  return Status::ok();
}

// Uploads the thresholds in plan.host.selections, of all layers together or of each.
Status set_thresholds(RewirePlan& plan, int scopes) {
  plan.host.scopes = plan.device.scopes = scopes;
  const DeviceGuard guard(plan.queue.device);
  return copy_to_device(plan.queue, plan.device.selections, plan.host.selections,
                        scopes * sizeof(Selection));
}

// The same, then finds on the device the magnitudes of their ranks.
Status select_thresholds(RewirePlan& plan, int scopes) {
  const Status status = set_thresholds(plan, scopes);
  const bool known = std::all_of(plan.host.selections, plan.host.selections + scopes,
                                 [](const Selection& s) { return s.rank == Selection::kNoRank; });
  if (!status.is_ok() || known) return status;
  const DeviceGuard guard(plan.queue.device);
  Launches launches(plan);
  DSR_LAUNCH((clear_histogram_kernel), scopes, RewireConfig::kThreads, 0, plan.queue.stream,
             plan.device);
  launches.check("clear the histograms");
  const unsigned chunks = chunk_total(plan.host.entry_chunks, plan.host.layers);
  const bool doubles =
      std::any_of(plan.layers.begin(), plan.layers.end(),
                  [](const RewireLayer& layer) { return layer.type == ValueType::kFloat64; });
  const int lowest = doubles ? 0 : kFloatZeros / RewireConfig::kDigitBits;
  for (int pass = (kMagnitudeBits - 1) / RewireConfig::kDigitBits; pass >= lowest; --pass) {
    const int shift = pass * RewireConfig::kDigitBits;
    DSR_LAUNCH((count_digits_kernel), chunks, RewireConfig::kThreads, 0, plan.queue.stream,
               plan.device, shift);
    launches.check("count the digits of magnitudes");
    DSR_LAUNCH((pick_digit_kernel), scopes, RewireConfig::kThreads, 0, plan.queue.stream,
               plan.device, shift);
    launches.check("pick a digit of the threshold");
  }
  return launches.status;
}

// Selects the `count` smallest magnitudes: the threshold is the last of them.
Selection smallest(int64_t count) {
  return {0, count > 0 ? static_cast<Word>(count - 1) : Selection::kNoRank};
}

}  // namespace

Status rewire_open(RewirePlan& plan) {
  for (const RewireLayer& layer : plan.layers) {
    const std::string error = misfit(layer);
    if (!error.empty()) return Status::error(error);
  }
  plan.decisions.assign(plan.layers.size(), {});
  plan.set_threshold(0);
  plan.below_each.assign(plan.layers.size(), 0);
  count_entries(plan);

  plan.host.layers = plan.device.layers = static_cast<int>(plan.layers.size());
  Carver size;
  plan.host.carve(size);
  plan.image.resize(size.bytes());
  Carver image(plan.image.data());
  plan.host.carve(image);
  describe_layers(plan);
  const unsigned entry_chunks = chunk_total(plan.host.entry_chunks, plan.host.layers);
  const unsigned row_chunks = chunk_total(plan.host.row_chunks, plan.host.layers);
  plan.device.carve_scratch(size, entry_chunks);
  Carver memory(plan.allocate(size.bytes()));
  plan.device.carve(memory);
  plan.device.carve_scratch(memory, entry_chunks);

  const DeviceGuard guard(plan.queue.device);
  const Status status =
      copy_to_device(plan.queue, plan.device.selections, plan.image.data(), plan.image.size());
  if (!status.is_ok()) return status;
  Launches launches(plan);
  if (row_chunks > 0) {
    DSR_LAUNCH((check_crow_kernel), row_chunks, RewireConfig::kThreads, 0, plan.queue.stream,
               plan.device);
    launches.check("check crow_indices");
  }
  if (entry_chunks > 0) {
    DSR_LAUNCH((find_largest_kernel), entry_chunks, RewireConfig::kThreads, 0, plan.queue.stream,
               plan.device);
    launches.check("find the largest weights");
    DSR_LAUNCH((find_largest_entry_kernel), entry_chunks, RewireConfig::kThreads, 0,
               plan.queue.stream, plan.device);
    launches.check("find the largest entries");
  }
  return launches.status;
}

Status rewire_prune_below(RewirePlan& plan, double threshold) {
  const std::string error = check_threshold(threshold);
  if (!error.empty()) return Status::error(error);
  *plan.host.selections = {bits_of(std::fabs(threshold)), Selection::kNoRank};
  ThresholdCounts counts;
  Status status = set_thresholds(plan, 1);
  if (status.is_ok()) status = fetch_counts(plan, counts);
  if (!status.is_ok()) return status;
  plan.set_threshold(threshold);
  plan.below_each = counts.less;
  plan.below = counts.all_less();
  if (plan.below > plan.total_capacity)
    return rewire_prune_smallest(plan, plan.total_capacity, true);
  decide_at_threshold(plan, counts, 0);
  return Status::ok();
}

Status rewire_prune_smallest(RewirePlan& plan, int64_t count, bool regrown) {
  const std::string error = check_count(count);
  if (!error.empty()) return Status::error(error);
  count = std::min(count, plan.prunable);
  if (regrown) count = std::min(count, plan.total_capacity);
  *plan.host.selections = smallest(count);
  ThresholdCounts counts;
  Status status = select_thresholds(plan, 1);
  if (status.is_ok()) status = fetch_counts(plan, counts);
  if (!status.is_ok()) return status;
  plan.set_threshold(value_of(plan.host.selections->bits));
  decide_at_threshold(plan, counts, count - counts.all_less());
  return Status::ok();
}

Status rewire_prune_smallest_each(RewirePlan& plan, const std::vector<int64_t>& counts) {
  const std::string error = check_counts(plan, counts);
  if (!error.empty()) return Status::error(error);
  const std::vector<int64_t> wanted = limit_to_prunable(plan, counts);
  std::transform(wanted.begin(), wanted.end(), plan.host.selections, smallest);
  ThresholdCounts at_thresholds;
  Status status = select_thresholds(plan, plan.host.layers);
  if (status.is_ok()) status = fetch_counts(plan, at_thresholds);
  if (!status.is_ok()) return status;
  for (int l = 0; l < plan.host.layers; ++l) {
    plan.thresholds[l] = value_of(plan.host.selections[l].bits);
  }
  decide_at_thresholds(plan, at_thresholds, wanted);
  return Status::ok();
}

}  // namespace dsr::cuda
