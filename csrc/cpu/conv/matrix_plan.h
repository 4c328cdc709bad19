// What plans for matrix units have of their own (Lanes::kMatrix).
#pragma once

#include "cpu/conv/layout.h"
#include "cpu/isa/limits.h"

namespace dsr::cpu {

// Whether blocks are as tall as a matrix unit's tiles, or taller by a whole number.
inline bool fits_matrix_unit(int64_t block_size) {
  return block_size > 0 && block_size % kMatrixRows == 0;
}

// Fills tile and block: how many pixels are summed at once, and how many source channels of them
// stay in L1. `steps` are those of the whole plan.
void choose_matrix_tile(int64_t steps, const Pass& pass, GatherPlan* plan);

// Destination channels whose sums are kept, and stored, together.
int64_t matrix_strip(int64_t steps, const Pass& pass, const GatherPlan& plan);

// Fills first_tiles: 32 steps of a segment are a tile of weights, of which its last may have fewer.
void place_weight_tiles(GatherPlan* plan);

// Cuts the groups of grad-input into tiles of rows: the destination channels that a group serves.
void place_group_rows(GatherPlan* plan);

// The values in the order and type that matrix units take them: in forward tiles [16][32], in
// grad-input [rows][32], as bfloat16.
int64_t tile_values_bytes(const GatherPlan& plan);
void order_tile_values(const GatherPlan& plan, const float* values, int threads, void* to);

}  // namespace dsr::cpu
