// The inner loops where B output channels share their positions (GatherPlan::block_rows), so that
// what is loaded once is multiplied B times.
//
// Forward: the sums of B channels x C vectors stay in registers, as in gather_tile.h; each step
// loads C operands. Grad-input: the vectors of a group, B source channels x C, stay in registers;
// each step adds its B products to C sums of one destination channel, which are in L1.
#pragma once

#include "cpu/isa/gather_tile.h"

namespace dsr::cpu::DSR_ISA {

template <typename S, int B, int C>
static void accumulate_block_tile(const TileJob<S>& shared) {
  constexpr int V = kLanes<S>;
  const TileJob<S> job = shared;  // a copy, which stores to memory cannot change
  const bool in_place = job.results == job.accumulators;
  const int32_t* bounds = job.bounds;
  for (int64_t d = 0; d < job.channels; d += B, ++bounds) {
    job.ahead->step();
    const int32_t begin = bounds[0], end = bounds[1];
    if (begin == end && !job.first && in_place) continue;
    Vec<S> sum[B][C];
    const S* from = job.accumulators + d * job.channel_step;
    DSR_UNROLL for (int b = 0; b < B; ++b, from = pinned(from + job.channel_step)) {
      const S* at = from;
      if (job.first) {
        const Vec<S> start = broadcast(job.bias ? job.bias[d + b] : S{0});
        DSR_UNROLL for (int c = 0; c < C; ++c) sum[b][c] = start;
      } else {
        DSR_UNROLL for (int c = 0; c < C; ++c, at = pinned(at + job.col_step)) sum[b][c] = load(at);
      }
    }
    const S* value = job.values + static_cast<int64_t>(begin) * B;
#pragma GCC unroll 1
    for (int32_t k = begin; k < end; ++k, value += B) {
      const S* x = job.packed + job.offsets[k];
      Vec<S> operand[C];
      DSR_UNROLL for (int c = 0; c < C; ++c) operand[c] = load(x + c * V);
      DSR_UNROLL for (int b = 0; b < B; ++b) {
        const Vec<S> of_row = broadcast(value[b]);
        DSR_UNROLL for (int c = 0; c < C; ++c) sum[b][c] += of_row * operand[c];
      }
    }
    S* to = job.results + d * job.result_channel;
    DSR_UNROLL for (int b = 0; b < B; ++b, to = pinned(to + job.result_channel)) {
      S* at = to;
      if (job.streams) {
        DSR_UNROLL for (int c = 0; c < C; ++c, at = pinned(at + job.col_step))
            stream(at, sum[b][c]);
      } else {
        DSR_UNROLL for (int c = 0; c < C; ++c, at = pinned(at + job.col_step)) store(at, sum[b][c]);
      }
    }
  }
}

// accumulators[d] = sum over the groups [first, last) and their steps to d of values * packed
template <typename S>
struct GroupJob {
  const S* packed;         // the tile's first vector in packed channel 0
  int64_t packed_channel;  // scalars from one source channel to the next
  const GatherPlan::Group* first;
  const GatherPlan::Group* last;
  const int32_t* targets;  // of the whole plan's steps: destination channel in the strip
  const S* values;         // [steps][B]
  S* accumulators;         // the tile's first vector in the strip's first channel
  int64_t channels;        // of the strip
  int64_t channel_step, col_step;
  Ahead* ahead;
};

template <typename S, int B, int C>
static void accumulate_groups(const GroupJob<S>& shared) {
  constexpr int V = kLanes<S>;
  const GroupJob<S> job = shared;
  for (int64_t d = 0; d < job.channels; ++d) {
    S* at = job.accumulators + d * job.channel_step;
    DSR_UNROLL for (int c = 0; c < C; ++c) store(at + c * job.col_step, Vec<S>{});
  }
  for (const GatherPlan::Group* group = job.first; group < job.last; ++group) {
    job.ahead->step();
    Vec<S> source[B][C];
    const S* from = job.packed + group->offset;
    DSR_UNROLL for (int b = 0; b < B; ++b, from = pinned(from + job.packed_channel))
        DSR_UNROLL for (int c = 0; c < C; ++c) source[b][c] = load(from + c * V);
    const int32_t begin = group->begin, end = group[1].begin;
    const S* value = job.values + static_cast<int64_t>(begin) * B;
#pragma GCC unroll 1
    for (int32_t k = begin; k < end; ++k, value += B) {
      S* at = job.accumulators + job.targets[k] * job.channel_step;
      Vec<S> sum[C];
      DSR_UNROLL for (int c = 0; c < C; ++c) sum[c] = load(at + c * job.col_step);
      DSR_UNROLL for (int b = 0; b < B; ++b) {
        const Vec<S> of_channel = broadcast(value[b]);
        DSR_UNROLL for (int c = 0; c < C; ++c) sum[c] += of_channel * source[b][c];
      }
      DSR_UNROLL for (int c = 0; c < C; ++c) store(at + c * job.col_step, sum[c]);
    }
  }
}

template <typename S>
using GroupFunction = void (*)(const GroupJob<S>&);

// The inner loops for every width of a tile, [C - 1].
template <typename S, int B>
struct BlockTiles {
  static constexpr int kMost = kLimits.block_vectors * kLimits.block_rows / B;
  TileFunction<S> tiles[kMost];
  GroupFunction<S> groups[kMost];

  template <int... C>
  static constexpr BlockTiles of(std::integer_sequence<int, C...>) {
    return {{accumulate_block_tile<S, B, C + 1>...}, {accumulate_groups<S, B, C + 1>...}};
  }
};
template <typename S, int B>
constexpr auto kBlockTiles =
    BlockTiles<S, B>::of(std::make_integer_sequence<int, BlockTiles<S, B>::kMost>{});

// The inner loop of forward, and of grad-input without groups.
template <typename S>
static TileFunction<S> gather_tile(const GatherPlan& plan, int64_t rows, int64_t cols) {
  if (plan.block_rows == 4) return kBlockTiles<S, 4>.tiles[cols - 1];
  if constexpr (kLimits.block_rows == 8) {
    if (plan.block_rows == 8) return kBlockTiles<S, 8>.tiles[cols - 1];
  }
  return kGatherTiles<S>.at(rows, cols);
}

template <typename S>
static GroupFunction<S> group_tile(const GatherPlan& plan, int64_t cols) {
  if constexpr (kLimits.block_rows == 8) {
    if (plan.block_rows == 8) return kBlockTiles<S, 8>.groups[cols - 1];
  }
  return kBlockTiles<S, 4>.groups[cols - 1];
}

}  // namespace dsr::cpu::DSR_ISA
