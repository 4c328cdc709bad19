// The inner loop of forward and grad-input. A tile of R x C vectors stays in registers while the
// non-zeros of a segment stream past: one broadcast, one offset, R * C multiply-adds that take
// their operand from L1. (Lanes along rows have a loop of their own: row_tile.h.)
#pragma once

#include "cpu/isa/ahead.h"
#include "cpu/isa/tile_table.h"

namespace dsr::cpu::DSR_ISA {

// destination[d] += sum over the non-zeros of segment d of value * packed[offset ...]
template <typename S>
struct TileJob {
  const S* packed;         // the tile's first vector in packed channel 0
  int64_t packed_row;      // scalars from one row of the tile to the next
  const int32_t* offsets;  // of the whole plan
  const S* values;
  const S* bias;          // of the first channel, or null
  const int32_t* bounds;  // [channels + 1], into offsets
  int64_t channels;
  bool first;  // of the blocks: accumulators start at the bias instead of where they were
  const S* accumulators;                     // the tile's first vector in the first channel's
  int64_t channel_step, row_step, col_step;  // scalars between accumulators
  S* results;                                // the same, or the destination itself
  int64_t result_channel;                    // scalars from one channel's results to the next
  bool streams;                              // results go past the caches
  Ahead* ahead;
};

template <typename S, int R, int C>
static void accumulate_tile(const TileJob<S>& shared) {
  constexpr int V = kLanes<S>;
  const TileJob<S> job = shared;  // a copy, which stores to memory cannot change
  const bool in_place = job.results == job.accumulators;
  for (int64_t d = 0; d < job.channels; ++d) {
    job.ahead->step();
    const int32_t begin = job.bounds[d], end = job.bounds[d + 1];
    if (begin == end && !job.first && in_place) continue;
    Vec<S> sum[R][C];
    if (job.first) {
      const Vec<S> start = broadcast(job.bias ? job.bias[d] : S{0});
      DSR_UNROLL for (int r = 0; r < R; ++r) DSR_UNROLL for (int c = 0; c < C; ++c) sum[r][c] =
          start;
    } else {
      const S* row = job.accumulators + d * job.channel_step;
      DSR_UNROLL for (int r = 0; r < R; ++r, row = pinned(row + job.row_step)) {
        const S* at = row;
        DSR_UNROLL for (int c = 0; c < C; ++c, at = pinned(at + job.col_step)) sum[r][c] = load(at);
      }
    }
#pragma GCC unroll 1
    for (int32_t k = begin; k < end; ++k) {
      const S* x = job.packed + job.offsets[k];
      const Vec<S> value = broadcast(job.values[k]);
      DSR_UNROLL for (int r = 0; r < R; ++r, x = pinned(x + job.packed_row))
          DSR_UNROLL for (int c = 0; c < C; ++c) sum[r][c] += value * load(x + c * V);
    }
    S* row = job.results + d * job.result_channel;
    DSR_UNROLL for (int r = 0; r < R; ++r, row = pinned(row + job.row_step)) {
      S* at = row;
      if (job.streams) {
        DSR_UNROLL for (int c = 0; c < C; ++c, at = pinned(at + job.col_step))
            stream(at, sum[r][c]);
      } else {
        DSR_UNROLL for (int c = 0; c < C; ++c, at = pinned(at + job.col_step)) store(at, sum[r][c]);
      }
    }
  }
}

template <typename S>
using TileFunction = void (*)(const TileJob<S>&);

// The kernel of every tile size.
template <typename S>
struct GatherTiles {
  template <int R, int C>
  struct Kernel {
    static constexpr TileFunction<S> run = accumulate_tile<S, R, C>;
  };
};

// The inner loop for every size of a tile.
template <typename S>
constexpr auto kGatherTiles =
    TileTable<TileFunction<S>,
              kLimits.tile_vectors>::template of<GatherTiles<S>::template Kernel>();

}  // namespace dsr::cpu::DSR_ISA
