// The inner loop of forward and grad-input with lanes along rows: as in gather_tile.h, but the taps
// of one kernel column after the other, with the accumulators turned by the distance of the columns
// in between.
#pragma once

#include "cpu/isa/ahead.h"
#include "cpu/isa/tile_table.h"
#include "cpu/isa/turn.h"

namespace dsr::cpu::DSR_ISA {

struct RowTileJob {
  const float* packed;  // the tile's first vector in packed channel 0; its rows follow each other
  const int32_t* offsets;
  const float* values;
  const float* bias;      // of the first channel, or null
  const int32_t* bounds;  // [channels * frames + 1], into offsets; of blocks for every kBlockRows
  int64_t channels;
  const Walk* walk;
  bool first, last;  // of the blocks: start at the bias; turn back to where the lanes belong
  const float* accumulators;  // [channels][R][VW] vectors
  float* results;             // the same, or rows of the destination itself
  int64_t result_channel;     // scalars from one channel's results to the next
  bool streams;               // results go past the caches
  Ahead* ahead;
};

template <int R, int VW, int SV>
static void accumulate_row_tile(const RowTileJob& shared) {
  constexpr int V = kLanes<float>;
  const RowTileJob job = shared;
  const Walk& walk = *job.walk;
  const int frames = walk.frames;
  const int32_t* bounds = job.bounds;
  for (int64_t d = 0; d < job.channels; ++d, bounds += frames) {
    job.ahead->step();
    Vec<float> sum[R][VW];
    if (job.first) {
      const Vec<float> start = broadcast(job.bias ? job.bias[d] : 0.0f);
      DSR_UNROLL for (int t = 0; t < R * VW; ++t) sum[t / VW][t % VW] = start;
    } else {
      const float* from = job.accumulators + d * R * VW * V;
      DSR_UNROLL for (int t = 0; t < R * VW; ++t) sum[t / VW][t % VW] = load(from + t * V);
    }
#pragma GCC unroll 1
    for (int i = 0; i < frames; ++i) {
      if (i > 0) DSR_UNROLL for (int r = 0; r < R; ++r) turn_row<VW, SV>(sum[r], walk.turns[i]);
      LaneMask masks[SV];
      DSR_UNROLL for (int v = 0; v < SV; ++v) masks[v] = walk.masks[i][v];
      const int32_t end = bounds[walk.order[i] + 1];
#pragma GCC unroll 1
      for (int32_t k = bounds[walk.order[i]]; k < end; ++k) {
        const float* x = pinned(job.packed + job.offsets[k]);
        const Vec<float> value = broadcast(job.values[k]);
        DSR_UNROLL for (int t = 0; t < R * VW; ++t) sum[t / VW][t % VW] =
            add_product(sum[t / VW][t % VW], value, load(x + t * V), masks[t % VW % SV]);
      }
    }
    if (job.last && walk.turns[frames].amount != 0)
      DSR_UNROLL for (int r = 0; r < R; ++r) turn_row<VW, SV>(sum[r], walk.turns[frames]);
    float* to = job.results + d * job.result_channel;
    if (job.streams) {
      DSR_UNROLL for (int t = 0; t < R * VW; ++t) stream(to + t * V, sum[t / VW][t % VW]);
    } else {
      DSR_UNROLL for (int t = 0; t < R * VW; ++t) store(to + t * V, sum[t / VW][t % VW]);
    }
  }
}

using RowTileFunction = void (*)(const RowTileJob&);

// The kernel of every tile size.
struct RowTiles {
  template <int R, int VW, int SV>
  struct Kernel {
    static constexpr RowTileFunction run = accumulate_row_tile<R, VW, SV>;
  };
};
constexpr auto kRowTiles =
    RowTileTable<RowTileFunction, kLimits.row_tile_vectors>::of<RowTiles::Kernel>();

}  // namespace dsr::cpu::DSR_ISA
