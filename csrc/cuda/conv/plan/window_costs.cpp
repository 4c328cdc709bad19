#include "cuda/conv/plan/window_costs.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "cuda/conv/plan/arithmetic.h"

namespace dsr::cuda {
namespace {

constexpr int64_t kFewestRows = 8;  // destination channels of a group
constexpr double kRound = 2;        // clocks of a warp to round a register to TF32

}  // namespace

double rounding_clocks(int64_t registers, int element_size) {
  return element_size == 4 ? registers * kRound : 0.0;
}

bool windows_possible(const PassShape& shape, int element_size) {
  return element_size <= 4 && shape.dest_channels >= kFewestRows;
}

int64_t windows_of(const PassShape& shape) { return ceil_div(shape.dest_channels, kWindowRows); }

int64_t whole_rows_of(const PassShape& shape, int64_t block_size) {
  const int64_t rows = shape.transposed ? shape.source_channels : shape.dest_channels;
  return std::gcd(std::gcd(block_size, int64_t{kWindowRows}), rows);
}

double entries_met(const PassShape& shape, double density, int64_t block_size) {
  int64_t rows = std::min<int64_t>(kWindowRows, shape.dest_channels);
  // Of a transposed pattern, blocks lie along source channels.
  if (!shape.transposed) rows = ceil_div(rows, whole_rows_of(shape, block_size));
  return 1 - std::pow(1 - density, static_cast<double>(rows));
}

bool worth_a_list(const PassShape& shape, int64_t channels, double density, int64_t block_size) {
  if (channels == shape.source_channels) return true;
  return channels * shape.taps * entries_met(shape, density, block_size) >= kStepEntries / 2.0;
}

}  // namespace dsr::cuda
