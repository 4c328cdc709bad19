// A rewire of a few layers by the portable build: what must hold of its result, whatever was drawn.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "common/rewire/decide.h"
#include "cpu/rewire/rewire.h"
#include "cpu/rewire/sample.h"

namespace {

using namespace dsr;

struct Layer {
  int64_t rows, row_length;
  std::vector<int32_t> crow, col;
  std::vector<float> values;

  int64_t nnz() const { return static_cast<int64_t>(values.size()); }
};

bool failed(const Status& status) {
  if (!status.is_ok()) std::printf("  WRONG: %s\n", status.message.c_str());
  return !status.is_ok();
}

// Rows ascend strictly and stay within their length.
bool is_sound(const Layer& layer) {
  if (layer.crow.front() != 0 || layer.crow.back() != layer.nnz()) return false;
  for (int64_t r = 0; r < layer.rows; ++r) {
    for (int32_t k = layer.crow[r]; k < layer.crow[r + 1]; ++k) {
      const int32_t least = k > layer.crow[r] ? layer.col[k - 1] + 1 : 0;
      if (layer.col[k] < least || layer.col[k] >= layer.row_length) return false;
    }
  }
  return true;
}

float value_at(const Layer& layer, int64_t row, int32_t col) {
  const auto begin = layer.col.begin() + layer.crow[row],
             end = layer.col.begin() + layer.crow[row + 1];
  const auto at = std::lower_bound(begin, end, col);
  return at != end && *at == col ? layer.values[at - layer.col.begin()] : 0.0f;
}

// The layers after one rewire that prunes below the threshold; none where it fails.
std::vector<Layer> rewired(const std::vector<Layer>& before, double threshold, int threads) {
  cpu::RewirePlan plan;
  for (size_t l = 0; l < before.size(); ++l) {
    const Layer& layer = before[l];
    plan.layers.push_back({.name = "layer " + std::to_string(l),
                           .rows = layer.rows,
                           .row_length = layer.row_length,
                           .nnz = layer.nnz(),
                           .crow = layer.crow.data(),
                           .col = layer.col.data(),
                           .scores = layer.values.data(),
                           .type = ValueType::kFloat32,
                           .stream = static_cast<uint32_t>(l)});
  }
  if (failed(cpu::rewire_open(plan, threads)) || failed(cpu::rewire_prune_below(plan, threshold)) ||
      failed(rewire_grow_proportionally(plan)))
    return {};
  std::vector<Layer> after;
  std::vector<RewireOutput> outputs;
  for (size_t l = 0; l < before.size(); ++l) {
    const int64_t nnz = plan.nnz_after(static_cast<int64_t>(l));
    after.push_back({before[l].rows, before[l].row_length, std::vector<int32_t>(before[l].rows + 1),
                     std::vector<int32_t>(nnz), std::vector<float>(nnz)});
  }
  for (size_t l = 0; l < before.size(); ++l)
    outputs.push_back({.crow = after[l].crow.data(),
                       .col = after[l].col.data(),
                       .arrays = {{before[l].values.data(), after[l].values.data(), 4}},
                       .ranks = nullptr});
  if (failed(cpu::rewire_apply(plan, 11, 3, outputs))) return {};
  return after;
}

}  // namespace

bool check_rewire() {
  constexpr double kThreshold = 0.5;
  std::vector<Layer> before;
  const std::pair<int64_t, int64_t> sizes[] = {{7, 31}, {64, 200}, {1, 9}};
  for (const auto& [rows, length] : sizes) {
    const int64_t nnz = rows * length / 4;
    Layer layer{rows, length, std::vector<int32_t>(rows + 1), std::vector<int32_t>(nnz), {}};
    if (failed(cpu::sample_pattern(rows, length, nnz, 5, layer.crow.data(), layer.col.data())))
      return false;
    for (int64_t i = 0; i < nnz; ++i)
      layer.values.push_back(static_cast<float>(1.3 * std::sin(1.7 * static_cast<double>(i) + 1)));
    before.push_back(std::move(layer));
  }
  const std::vector<Layer> after = rewired(before, kThreshold, 1),
                           again = rewired(before, kThreshold, 3);
  if (after.empty() || again.empty()) return false;
  int64_t total_before = 0, total_after = 0, kept = 0, grown = 0;
  for (size_t l = 0; l < before.size(); ++l) {
    total_before += before[l].nnz();
    total_after += after[l].nnz();
    if (!is_sound(before[l]) || !is_sound(after[l])) return false;
    if (after[l].col != again[l].col || after[l].values != again[l].values) return false;
    for (int64_t r = 0; r < after[l].rows; ++r) {
      for (int32_t k = after[l].crow[r]; k < after[l].crow[r + 1]; ++k) {
        const float old = value_at(before[l], r, after[l].col[k]), now = after[l].values[k];
        const bool survives = std::abs(old) >= kThreshold;
        if (now != (survives ? old : 0.0f) || (!survives && old != 0)) return false;
        ++(survives ? kept : grown);
      }
    }
  }
  std::printf("rewire: %lld entries, %lld kept, %lld grown\n", static_cast<long long>(total_before),
              static_cast<long long>(kept), static_cast<long long>(grown));
  return total_before == total_after && kept > 0 && grown > 0;
}
