// How one class of a GPU pass lies in shared memory (cuda/conv/slab.h), and what that costs.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "cuda/conv/limits.h"
#include "cuda/conv/plan/pass_shape.h"

namespace dsr::cuda {

inline constexpr int kBanks = 128 / kVectorBytes;  // columns of shared memory, wide as a vector

// One class's slab: see slab.h.
struct Layout {
  int64_t tile_cols, chunks;
  int64_t image_rows, slab_cols, phase_cols;
  int64_t pitch, plane;
  int64_t positions;
  int64_t tiles;
  double conflicts;  // wavefronts per wavefront's worth of data

  // Source pixels that are loaded for one tile and channel, margins included.
  int64_t pixels() const { return plane / pitch * slab_cols; }
};

// Wavefronts of filling a slab, whose vectors come image by image.
double fill_cost(const Layout& layout, int64_t channels, int element_size);

// Clocks that the filling warps alone take: to issue, or for what they have in flight.
double fill_clocks(const Layout& layout, int64_t channels, int element_size);

// Clocks that a filling warp takes, of which each lane brings so many vectors.
double vectors_clocks(double vectors, int element_size);

// The classes' cheapest layouts: few margins, full tiles, long lines, no bank conflicts. None at
// all if there are more positions than the kernels count. `served`: the non-zeros that use a vector
// of a tap, over a thread block's destination channels.
std::vector<Layout> possible_layouts(const PassShape& shape, int64_t images, int64_t tile,
                                     int element_size, double served);

// Those of chunks of `width` columns, one for each number of conflicts. steps: source rows and
// columns from one position to the next; groups: vectors of images.
std::vector<Layout> layouts_of(const PassClass& c, const std::array<int64_t, 2>& steps,
                               int64_t groups, int64_t tile, int64_t width);

// Wavefronts of a vector load by 8 lanes over whole tiles, 1.0 without bank conflicts.
double bank_conflicts(int64_t line_step, int64_t tile, int64_t width);

// Vectors of the classes' largest plane.
int64_t largest_plane(const std::vector<Layout>& layouts);

int64_t all_tiles(const std::vector<Layout>& layouts);

}  // namespace dsr::cuda
