#include "cpu/conv/matrix_plan.h"

#include <omp.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "cpu/conv/workspace.h"
#include "cpu/dispatch.h"

namespace dsr::cpu {
namespace {

constexpr int64_t kTileHalves = kMatrixRows * kMatrixDepth;

// To the nearest, ties to even, NaN to the quiet NaN.
uint16_t bfloat16_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return static_cast<uint16_t>(value != value ? 0x7fc0
                                              : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

int64_t tiles_of(int64_t steps) { return ceil_div(steps, kMatrixDepth); }

}  // namespace

void choose_matrix_tile(int64_t steps, const Pass& pass, GatherPlan* plan) {
  constexpr double kL1Share = 0.8;
  constexpr int64_t kGathered = 8 << 10;  // bytes of L1 that the tiles under way take
  constexpr double kCycles = 0.25;        // of 16 pixels and one non-zero: an estimate
  const PackLayout& l = plan->source;
  const int64_t channels = l.channels, phases = static_cast<int64_t>(l.phases.size());
  plan->tile.rows = 1;
  plan->tile.cols = pass.sign > 0 ? 4 : 2;
  plan->block.channels = channels;
  plan->block.count = 1;
  const int64_t pixels = plan->tile.cols * kMatrixRows + l.halo_rows * l.pitch + l.halo_cols;
  const double room = kL1Share * static_cast<double>(caches().l1) - kGathered;
  const int64_t fitting =
      std::max<int64_t>(1, static_cast<int64_t>(room) / (pixels * phases * kBFloat16Bytes));
  // A segment fills two tiles of weights, at least.
  const int64_t rows = std::max<int64_t>(1, plan->destination.channels / plan->block_rows);
  const int64_t most = std::max<int64_t>(1, steps / (rows * 2 * kMatrixDepth));
  plan->block.count = std::min(ceil_div(channels, fitting), most);
  plan->block.channels = ceil_div(channels, plan->block.count);
  plan->block.count = ceil_div(channels, plan->block.channels);
  plan->cycles_per_fma = kCycles;
  const GatherPlan::Destination& d = plan->destination;
  const DestinationClass& k = d.classes[0];
  const bool margins = l.pitch > k.cols || l.image_rows > k.rows;  // else the plane has no gaps
  const int64_t cols = margins && d.step_h * d.step_w == 1 ? k.cols : 0;
  plan->row.halves = cols == kMatrixRows && k.rows > 1;
  plan->row.pieces = plan->row.halves ? 1 : cols % kMatrixPixels == 0 ? cols / kMatrixPixels : 0;
}

int64_t matrix_strip(int64_t steps, const Pass& pass, const GatherPlan& plan) {
  constexpr int64_t kStreams = 64;  // of stores
  const int64_t channels = plan.destination.channels;
  if (pass.sign > 0) {
    const int64_t most = std::min(kStreams, channels);
    return ceil_div(ceil_div(channels, ceil_div(channels, most)), kMatrixRows) * kMatrixRows;
  }
  // As many as fill the rows of a tile, of which each has one of two blocks or both.
  const auto taps = static_cast<int64_t>(pass.rows.size() * pass.cols.size());
  const double places =
      static_cast<double>(channels * taps) * std::max<double>(1, plan.source.channels / 16.0);
  const double density = std::min(1.0, static_cast<double>(steps) / places);
  const double in_row = 1 - (1 - density) * (1 - density);
  const auto most = static_cast<int64_t>(kMatrixRows / std::max(in_row, 0.05));
  return ceil_div(channels, ceil_div(channels, std::clamp<int64_t>(most, kMatrixRows, 192)));
}

void place_weight_tiles(GatherPlan* plan) {
  plan->first_tiles.assign(plan->bounds.size(), 0);
  int64_t tiles = 0;
  for (size_t i = 0; i + 1 < plan->bounds.size(); ++i) {
    plan->first_tiles[i] = static_cast<int32_t>(tiles);
    tiles += tiles_of(plan->bounds[i + 1] - plan->bounds[i]);
  }
  if (!plan->bounds.empty()) plan->first_tiles.back() = static_cast<int32_t>(tiles);
}

// Rows from `first` on, of which those before `upper_begin` have no upper block and those from
// `lower_end` on no lower one, in tiles; the last is filled up.
static void cut_group(int32_t offset, size_t first, size_t lower_end, size_t upper_begin,
                      GatherPlan* plan) {
  const size_t end = plan->row_targets.size();
  while (plan->row_targets.size() % kMatrixRows != 0) plan->row_targets.push_back(-1);
  for (size_t row = first; row < end; row += kMatrixRows) {
    const auto within = [row](size_t at) {
      return static_cast<int32_t>(std::clamp(at, row, row + kMatrixRows));
    };
    plan->groups.push_back({offset, 0, static_cast<int32_t>(row), within(lower_end),
                            within(upper_begin), within(end)});
  }
}

void place_group_rows(GatherPlan* plan) {
  constexpr int kLower = 1, kUpper = 2, kBoth = 3;
  const std::vector<GatherPlan::Group> groups = std::move(plan->groups);
  std::vector<int32_t> row_of(plan->strip.channels), tiles_before(groups.size());
  std::vector<int> blocks_of(plan->strip.channels);
  std::vector<int32_t>& targets = plan->row_targets;
  plan->groups.clear();
  for (size_t g = 0; g + 1 < groups.size(); ++g) {
    tiles_before[g] = static_cast<int32_t>(plan->groups.size());
    std::fill(blocks_of.begin(), blocks_of.end(), 0);
    for (int32_t k = groups[g].begin; k < groups[g + 1].begin; ++k)
      blocks_of[plan->offsets[k] / 2] |= plan->offsets[k] % 2 ? kUpper : kLower;
    const size_t first = targets.size();
    const auto place = [&](int blocks) {
      for (int32_t target = 0; target < plan->strip.channels; ++target) {
        if (blocks_of[target] != blocks) continue;
        row_of[target] = static_cast<int32_t>(targets.size());
        targets.push_back(target);
      }
      return targets.size();
    };
    const size_t upper_begin = place(kLower), lower_end = place(kBoth);
    place(kUpper);
    for (int32_t k = groups[g].begin; k < groups[g + 1].begin; ++k)
      plan->offsets[k] = 2 * row_of[plan->offsets[k] / 2] + plan->offsets[k] % 2;
    cut_group(groups[g].offset, first, lower_end, upper_begin, plan);
  }
  tiles_before.back() = static_cast<int32_t>(plan->groups.size());
  plan->groups.push_back({0, 0, static_cast<int32_t>(targets.size()), 0, 0, 0});
  for (int32_t& bound : plan->bounds) bound = tiles_before[bound];
}

int64_t tile_values_bytes(const GatherPlan& plan) {
  const int64_t rows = static_cast<int64_t>(plan.row_targets.size());
  if (plan.has_groups()) return part_bytes(rows * kMatrixDepth * kBFloat16Bytes);
  const int64_t tiles = plan.first_tiles.empty() ? 0 : plan.first_tiles.back();
  return part_bytes(tiles * kTileHalves * kBFloat16Bytes);
}

void order_tile_values(const GatherPlan& plan, const float* values, int threads, void* to) {
  constexpr int64_t kWorthThreads = 8192;
  uint16_t* halves = static_cast<uint16_t*>(to);
  const int32_t* index = plan.value_index.data();
  if (plan.has_groups()) {
#pragma omp parallel for num_threads(threads) if (plan.nnz() > kWorthThreads)
    for (int64_t row = 0; row < static_cast<int64_t>(plan.row_targets.size()); ++row)
      std::memset(halves + row * kMatrixDepth, 0, kMatrixDepth * kBFloat16Bytes);
#pragma omp parallel for num_threads(threads) if (plan.nnz() > kWorthThreads)
    for (int64_t k = 0; k < plan.steps(); ++k) {
      const float* from = values + index[k * kMatrixRows];
      for (int64_t r = 0; r < kMatrixRows; ++r)
        halves[int64_t{plan.offsets[k]} * kMatrixRows + r] = bfloat16_of(from[r]);
    }
    return;
  }
  const int64_t segments = static_cast<int64_t>(plan.bounds.size()) - 1;
#pragma omp parallel for num_threads(threads) if (plan.nnz() > kWorthThreads)
  for (int64_t i = 0; i < segments; ++i) {
    const int64_t begin = plan.bounds[i], end = plan.bounds[i + 1];
    uint16_t* tile = halves + plan.first_tiles[i] * kTileHalves;
    std::memset(tile, 0, tiles_of(end - begin) * kTileHalves * kBFloat16Bytes);
    for (int64_t k = begin; k < end; ++k) {
      const int64_t at = (k - begin) / kMatrixDepth * kTileHalves + (k - begin) % kMatrixDepth;
      // The values of one position lie side by side.
      const float* from = values + index[k * kMatrixRows];
      for (int64_t r = 0; r < kMatrixRows; ++r) tile[at + r * kMatrixDepth] = bfloat16_of(from[r]);
    }
  }
}

}  // namespace dsr::cpu
