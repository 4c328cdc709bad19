#include "cuda/conv/plan/layout.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <tuple>

#include "cuda/conv/plan/arithmetic.h"
#include "cuda/conv/plan/costs.h"

namespace dsr::cuda {
namespace {

constexpr int64_t kChunkCols[] = {4,  7,  8,  10, 12, 14, 16, 20, 24,
                                  28, 32, 40, 48, 56, 64, 96, 128};  // at most

// Slab rows of the tile that spans most of them; `images`: with their chunks.
int64_t most_rows(const PassClass& c, int64_t row_step, int64_t image_rows, int64_t tile,
                  int64_t width, int64_t images) {
  const int64_t lines = images * c.rows;
  const bool whole = tile % width == 0;
  const int64_t stride = whole ? tile / width : 1;
  const int64_t spanned = std::min(whole ? tile / width : (tile - 1) / width + 2, lines);
  const auto slab_row = [&](int64_t line) {
    return line / c.rows * image_rows + line % c.rows * row_step;
  };
  int64_t most = 0;
  for (int64_t line = 0; line < std::lcm(c.rows, stride); line += stride)
    most = std::max(most, slab_row(line + spanned - 1) - slab_row(line));
  return std::min(most, slab_row(lines - 1)) + c.reach_h() + 1;
}

double count_conflicts(int64_t line_step, int64_t tile, int64_t width) {
  const int64_t all = std::lcm(std::lcm(tile, width), int64_t{kBanks});
  const int64_t size = std::min<int64_t>(all, 4096) / kBanks;
  int64_t wavefronts = 0;
  for (int64_t first = 0; first < size * kBanks; first += kBanks) {
    int64_t banks[kBanks] = {};
    for (int64_t position = first; position < first + kBanks; ++position)
      ++banks[(position / width * line_step + position % width) % kBanks];
    wavefronts += *std::max_element(banks, banks + kBanks);
  }
  return static_cast<double>(wavefronts) / static_cast<double>(size);
}

Layout cheapest(const PassClass& c, const std::array<int64_t, 2>& steps, int64_t groups,
                int64_t tile, int element_size, double served) {
  const double uses = served * std::max<double>(1, c.taps.size());
  std::vector<int64_t> widths;
  for (const int64_t most : kChunkCols) widths.push_back(ceil_div(c.cols, ceil_div(c.cols, most)));
  Layout best{};
  double least = 0;
  for (const int64_t width : distinct(widths)) {
    for (const Layout& layout : layouts_of(c, steps, groups, tile, width)) {
      const double computed = uses * tile / 32 * 4 * layout.conflicts;
      const double cost = layout.tiles * (computed + fill_cost(layout, 1, element_size));
      if (best.tiles == 0 || cost < least) best = layout, least = cost;
    }
  }
  return best;
}

}  // namespace

double fill_cost(const Layout& layout, int64_t channels, int element_size) {
  // Four-byte elements are stored one by one, four lanes to a bank; smaller ones as whole vectors.
  const double images = static_cast<double>(kVectorBytes) / element_size;
  // Lines of memory that 32 lanes touch in one image. Columns of one pixel lie side by side.
  const double touched = layout.slab_cols > 1 ? std::max(1.0, 32.0 / layout.slab_cols) : 1.0;
  const double lines = 0.5 + touched;
  const double stores = element_size == 4 ? 4 * images : 4;
  return ceil_div(layout.pixels(), 32) * channels * (stores + lines * images);
}

double fill_clocks(const Layout& layout, int64_t channels, int element_size) {
  const double vectors = ceil_div(layout.pixels(), 32) * channels;
  return vectors_clocks(vectors / kFillWarps, element_size);
}

double vectors_clocks(double vectors, int element_size) {
  if (element_size == 4) return vectors * 60 + kLatencyClocks;
  return vectors / kFillBatch * kLatencyClocks;
}

std::vector<Layout> possible_layouts(const PassShape& shape, int64_t images, int64_t tile,
                                     int element_size, double served) {
  const int64_t groups = ceil_div(images, kVectorBytes / element_size);
  const std::array<int64_t, 2> steps{shape.row_step, shape.col_step};
  for (const PassClass& c : shape.classes) {
    const double rows = static_cast<double>(c.rows - 1) * steps[0] + c.reach_h() + 1;
    // In floating point, for it may be beyond 64 bits: below 2^31 it is exact.
    if (2.0 * groups * c.cols * rows >= 0x1p31) return {};
  }
  std::vector<Layout> found;
  for (const PassClass& c : shape.classes)
    found.push_back(cheapest(c, steps, groups, tile, element_size, served));
  return found;
}

std::vector<Layout> layouts_of(const PassClass& c, const std::array<int64_t, 2>& steps,
                               int64_t groups, int64_t tile, int64_t width) {
  Layout layout{};
  layout.tile_cols = width;
  layout.chunks = ceil_div(c.cols, width);
  layout.image_rows = (c.rows - 1) * steps[0] + c.reach_h() + 1;
  layout.slab_cols = (width - 1) * steps[1] + c.reach_w() + 1;
  layout.phase_cols = ceil_div(layout.slab_cols, steps[1]);
  layout.positions = groups * layout.chunks * c.rows * width;
  layout.tiles = ceil_div(layout.positions, tile);
  const int64_t rows =
      most_rows(c, steps[0], layout.image_rows, tile, width, groups * layout.chunks);
  const int64_t narrowest = std::min(steps[1], layout.slab_cols) * layout.phase_cols;
  std::vector<Layout> found;
  for (int64_t pitch = narrowest; pitch < narrowest + kBanks; ++pitch) {
    layout.conflicts = bank_conflicts(pitch * steps[0], tile, width);
    const auto as_many = [&](const Layout& other) { return other.conflicts == layout.conflicts; };
    if (std::any_of(found.begin(), found.end(), as_many)) continue;
    layout.pitch = pitch;
    layout.plane = rows * pitch | 1;  // odd: channels side by side fall into different banks
    found.push_back(layout);
  }
  return found;
}

double bank_conflicts(int64_t line_step, int64_t tile, int64_t width) {
  // There are few kinds of them, and each takes thousands of steps to count.
  thread_local std::map<std::tuple<int64_t, int64_t, int64_t>, double> known;
  const auto [at, is_new] = known.try_emplace({line_step % kBanks, tile, width});
  if (is_new) at->second = count_conflicts(line_step % kBanks, tile, width);
  return at->second;
}

int64_t largest_plane(const std::vector<Layout>& layouts) {
  int64_t most = 0;
  for (const Layout& layout : layouts) most = std::max(most, layout.plane);
  return most;
}

int64_t all_tiles(const std::vector<Layout>& layouts) {
  int64_t tiles = 0;
  for (const Layout& layout : layouts) tiles += layout.tiles;
  return tiles;
}

}  // namespace dsr::cuda
