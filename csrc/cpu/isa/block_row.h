// The inner loops where kBlockRows output channels share their positions, lanes along rows: as in
// block_tile.h and, between frames, in row_tile.h. In grad-input the sums that are turned are those
// of a whole strip.
#pragma once

#include "cpu/isa/block_tile.h"
#include "cpu/isa/row_tile.h"

namespace dsr::cpu::DSR_ISA {

template <int R, int VW, int SV>
static void accumulate_row_block(const RowTileJob& shared) {
  constexpr int V = kLanes<float>, B = kBlockRows, T = R * VW;
  const RowTileJob job = shared;
  const Walk& walk = *job.walk;
  const int frames = walk.frames;
  const int32_t* bounds = job.bounds;
  for (int64_t d = 0; d < job.channels; d += B, bounds += frames) {
    job.ahead->step();
    Vec<float> sum[B][T];
    DSR_UNROLL for (int b = 0; b < B; ++b) {
      const float* from = job.accumulators + (d + b) * T * V;
      const Vec<float> start = broadcast(job.first && job.bias ? job.bias[d + b] : 0.0f);
      DSR_UNROLL for (int t = 0; t < T; ++t) sum[b][t] = job.first ? start : load(from + t * V);
    }
#pragma GCC unroll 1
    for (int i = 0; i < frames; ++i) {
      if (i > 0)
        DSR_UNROLL for (int b = 0; b < B; ++b) DSR_UNROLL for (int r = 0; r < R; ++r)
            turn_row<VW, SV>(sum[b] + r * VW, walk.turns[i]);
      LaneMask masks[SV];
      DSR_UNROLL for (int v = 0; v < SV; ++v) masks[v] = walk.masks[i][v];
      const int32_t end = bounds[walk.order[i] + 1];
#pragma GCC unroll 1
      for (int32_t k = bounds[walk.order[i]]; k < end; ++k) {
        const float* x = pinned(job.packed + job.offsets[k]);
        const StepValues<float> values(job.values + static_cast<int64_t>(k) * B);
        DSR_UNROLL for (int t = 0; t < T; ++t) {
          const Vec<float> operand = load(x + t * V);
          DSR_UNROLL for (int b = 0; b < B; ++b) sum[b][t] =
              add_product(sum[b][t], values.of_row[b], operand, masks[t % VW % SV]);
        }
      }
    }
    if (job.last && walk.turns[frames].amount != 0)
      DSR_UNROLL for (int b = 0; b < B; ++b) DSR_UNROLL for (int r = 0; r < R; ++r)
          turn_row<VW, SV>(sum[b] + r * VW, walk.turns[frames]);
    DSR_UNROLL for (int b = 0; b < B; ++b) {
      float* to = job.results + (d + b) * job.result_channel;
      if (job.streams) {
        DSR_UNROLL for (int t = 0; t < T; ++t) stream(to + t * V, sum[b][t]);
      } else {
        DSR_UNROLL for (int t = 0; t < T; ++t) store(to + t * V, sum[b][t]);
      }
    }
  }
}

struct RowGroupJob {
  GroupJob<float> groups;  // frame by frame
  const Walk* walk;        // upwards
};

// Turns the sums of a strip by one step of the walk.
template <int R, int VW, int SV>
DSR_INLINE void turn_strip(const GroupJob<float>& job, const Turn& turn) {
  constexpr int V = kLanes<float>;
  for (int64_t row = 0; row < job.channels * R; ++row) {
    float* at = job.accumulators + row * VW * V;
    Vec<float> sum[VW];
    DSR_UNROLL for (int v = 0; v < VW; ++v) sum[v] = load(at + v * V);
    turn_row<VW, SV>(sum, turn);
    DSR_UNROLL for (int v = 0; v < VW; ++v) store(at + v * V, sum[v]);
  }
}

// The lanes that the turn has not wrapped around get the product alone, as in row_tile.h.
template <int T>
struct AddUnwrapped {
  LaneMask masks[T];
  DSR_INLINE_MEMBER Vec<float> operator()(Vec<float> sum, Vec<float> value, Vec<float> x,
                                          int t) const {
    return add_product(sum, value, x, masks[t]);
  }
};

template <int R, int VW, int SV>
static void accumulate_row_groups(const RowGroupJob& shared) {
  constexpr int V = kLanes<float>, T = R * VW;
  const RowGroupJob job = shared;
  const Walk& walk = *job.walk;
  clear_strip<float, T>(job.groups);
  const GatherPlan::Group* group = job.groups.first;
  for (int f = 0; f < walk.frames; ++f) {
    if (f > 0) turn_strip<R, VW, SV>(job.groups, walk.turns[f]);
    AddUnwrapped<T> add;
    DSR_UNROLL for (int t = 0; t < T; ++t) add.masks[t] = walk.masks[f][t % VW % SV];
    for (; group < job.groups.last && group->frame == f; ++group) {
      job.groups.ahead->step();
      Vec<float> source[kBlockRows][T];
      const float* from = job.groups.packed + group->offset;
      DSR_UNROLL for (int b = 0; b < kBlockRows;
                      ++b, from = pinned(from + job.groups.packed_channel))
          DSR_UNROLL for (int t = 0; t < T; ++t) source[b][t] = load(from + t * V);
      add_group<float, T>(job.groups, group, source, add);
    }
  }
  if (walk.turns[walk.frames].amount != 0)
    turn_strip<R, VW, SV>(job.groups, walk.turns[walk.frames]);
}

using RowGroupFunction = void (*)(const RowGroupJob&);

// The kernels of every tile size.
struct RowBlocks {
  template <int R, int VW, int SV>
  struct Kernel {
    static constexpr RowTileFunction run = accumulate_row_block<R, VW, SV>;
  };
};
struct RowGroups {
  template <int R, int VW, int SV>
  struct Kernel {
    static constexpr RowGroupFunction run = accumulate_row_groups<R, VW, SV>;
  };
};
constexpr auto kRowBlocks =
    RowTileTable<RowTileFunction, kLimits.block_vectors>::of<RowBlocks::Kernel>();
constexpr auto kRowGroups =
    RowTileTable<RowGroupFunction, kLimits.block_vectors>::of<RowGroups::Kernel>();

}  // namespace dsr::cpu::DSR_ISA
