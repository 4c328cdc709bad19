#include "cpu/conv/plane_length.h"

#include <algorithm>
#include <limits>

#include "cpu/conv/matrix_plan.h"
#include "cpu/conv/workspace.h"
#include "cpu/dispatch.h"

namespace dsr::cpu {
namespace {

// The rows (or columns) of a phase that a tile of `size` of them reads, from `first` on.
std::vector<int64_t> rows_read(const std::vector<Tap>& taps, int64_t sign, int64_t first,
                               int64_t size) {
  std::vector<int64_t> read;
  for (const Tap& tap : taps)
    for (int64_t i = 0; i < size; ++i) read.push_back(sign * tap.quotient - first + i);
  std::sort(read.begin(), read.end());
  read.erase(std::unique(read.begin(), read.end()), read.end());
  return read;
}

// How unevenly the block of one tile falls on the sets of L1, if channels are `plane` elements
// apart: lines beyond what a set holds beside the accumulators passing through.
int64_t overfull(const GatherPlan& plan, const Pass& pass, int64_t plane, int64_t element_bytes) {
  const PackLayout& l = plan.source;
  const auto rows = rows_read(pass.rows, pass.sign, l.first_row, plan.tile.rows),
             cols = rows_read(pass.cols, pass.sign, l.first_col, plan.tile.cols);
  int64_t sets[kCacheSets] = {}, over = 0;
  const int64_t phases = static_cast<int64_t>(l.phases.size());
  for (int64_t c = 0; c < std::min<int64_t>(64, plan.block.channels) * phases; ++c)
    for (const int64_t r : rows)
      for (const int64_t q : cols)
        ++sets[(c * plane + r * l.pitch + q) * element_bytes / kCacheLine % kCacheSets];
  for (int64_t lines : sets) over += std::max<int64_t>(0, lines - kCacheWays);
  return over;
}

}  // namespace

void choose_plane(const Pass& pass, int element_size, GatherPlan* plan) {
  PackLayout& l = plan->source;
  const int64_t stacked = plan->lanes == Lanes::kRow ? 0 : (plan->unit.images - 1) * l.image_rows;
  // A matrix unit reads whole pieces: beyond the last pixel lie zeros, not the next channel.
  const int64_t beyond = plan->lanes == Lanes::kMatrix ? kMatrixPixels : l.tail;
  const int64_t stored = (stacked + plan->unit.band_rows + l.halo_rows) * l.pitch + beyond;
  if (plan->lanes != Lanes::kBatch) {
    // Whole cache lines, an odd number of them, so that the channels of a tile do not fall on the
    // same cache sets.
    const int64_t line = kCacheLine / element_size;
    l.plane = (ceil_div(stored, line) | 1) * line;
    return;
  }
  // One element more than is stored: what no tap reads is packed there.
  int64_t least = std::numeric_limits<int64_t>::max();
  for (int64_t plane = (stored + 1) | 1, tries = 0; tries < 8 && least > 0; plane += 2, ++tries) {
    const int64_t over = overfull(*plan, pass, plane, kernels().limits.vector_bytes);
    if (over < least) {
      least = over;
      l.plane = plane;
    }
  }
}

}  // namespace dsr::cpu
