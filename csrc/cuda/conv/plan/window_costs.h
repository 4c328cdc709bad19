// What tilings by windows have in common for the cost model: cuda/conv/window_list.h.
#pragma once

#include <cstdint>

#include "cuda/conv/limits.h"
#include "cuda/conv/plan/pass_shape.h"

namespace dsr::cuda {

// What things cost. None of it was measured.
// Wavefronts of a load of four matrices, or of as much word by word.
inline constexpr double kMatrices = 4;
// Wavefronts per wavefront's worth of entries, whose banks the list spreads.
inline constexpr double kSpreadConflicts = 1.1;
// Clocks of a matrix instruction on a multiprocessor: 1,024 products in each of 16 bits, 512 of
// TF32, of which an instruction has half as many.
inline constexpr double kMultiplyAdd = 2;

// Clocks of a warp to round what so many registers have of the slabs, to TF32.
double rounding_clocks(int64_t registers, int element_size);

// Whether there are enough destination channels: else a window is mostly empty.
bool windows_possible(const PassShape& shape, int element_size);

int64_t windows_of(const PassShape& shape);  // of a group

// How many rows of a block stay together in one window or slab: neither windows nor groups take
// them apart. Layers have whole blocks in each group, but the ops take any pattern.
int64_t whole_rows_of(const PassShape& shape, int64_t block_size);

// The share of a window's (source channel, tap) pairs at which it has a non-zero.
double entries_met(const PassShape& shape, double density, int64_t block_size);

// Whether a list of slabs of `channels` has about as many entries as there are, though segments
// fill up steps.
bool worth_a_list(const PassShape& shape, int64_t channels, double density, int64_t block_size);

}  // namespace dsr::cuda
