// The inner loops where B output channels share their positions (GatherPlan::block_rows), so that
// what is loaded once is multiplied B times. (Lanes along rows have loops of their own:
// block_row.h.)
//
// Forward: the sums of B channels x C vectors stay in registers, as in gather_tile.h; each step
// loads C operands. Grad-input: the vectors of a group, B source channels x C, stay in registers;
// each step adds its B products to C sums of one destination channel, which are in L1.
#pragma once

#include "cpu/isa/gather_tile.h"

namespace dsr::cpu::DSR_ISA {

// The values of one step.
template <typename S>
struct StepValues {
  Vec<S> of_row[kBlockRows];
  DSR_INLINE_MEMBER explicit StepValues(const S* values) {
    DSR_UNROLL for (int b = 0; b < kBlockRows; ++b) of_row[b] = broadcast(values[b]);
  }
};

template <typename S, int C>
static void accumulate_block_tile(const TileJob<S>& shared) {
  constexpr int V = kLanes<S>, B = kBlockRows;
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
#pragma GCC unroll 1
    for (int32_t k = begin; k < end; ++k) {
      const S* x = pinned(job.packed + job.offsets[k]);
      const StepValues<S> values(job.values + static_cast<int64_t>(k) * B);
      DSR_UNROLL for (int c = 0; c < C; ++c) {
        const Vec<S> operand = load(x + c * V);
        DSR_UNROLL for (int b = 0; b < B; ++b) sum[b][c] += values.of_row[b] * operand;
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

// sum + value * x, for vector c of a tile.
template <typename S>
struct AddProducts {
  DSR_INLINE_MEMBER Vec<S> operator()(Vec<S> sum, Vec<S> value, Vec<S> x, int) const {
    return sum + value * x;
  }
};

// The steps of one group, whose C vectors of each channel are `source`.
template <typename S, int C, typename Add>
DSR_INLINE void add_group(const GroupJob<S>& job, const GatherPlan::Group* group,
                          const Vec<S> (&source)[kBlockRows][C], const Add& add) {
#pragma GCC unroll 1
  for (int32_t k = group->begin; k < group[1].begin; ++k) {
    S* at = job.accumulators + job.targets[k] * job.channel_step;
    const StepValues<S> values(job.values + static_cast<int64_t>(k) * kBlockRows);
    DSR_UNROLL for (int c = 0; c < C; ++c, at = pinned(at + job.col_step)) {
      Vec<S> sum = load(at);
      DSR_UNROLL for (int b = 0; b < kBlockRows; ++b) sum =
          add(sum, values.of_row[b], source[b][c], c);
      store(at, sum);
    }
  }
}

// The sums of a strip begin at zero.
template <typename S, int C>
DSR_INLINE void clear_strip(const GroupJob<S>& job) {
  for (int64_t d = 0; d < job.channels; ++d) {
    S* at = job.accumulators + d * job.channel_step;
    DSR_UNROLL for (int c = 0; c < C; ++c) store(at + c * job.col_step, Vec<S>{});
  }
}

template <typename S, int C>
static void accumulate_groups(const GroupJob<S>& shared) {
  const GroupJob<S> job = shared;
  clear_strip<S, C>(job);
  for (const GatherPlan::Group* group = job.first; group < job.last; ++group) {
    job.ahead->step();
    Vec<S> source[kBlockRows][C];
    const S* from = job.packed + group->offset;
    DSR_UNROLL for (int b = 0; b < kBlockRows; ++b, from = pinned(from + job.packed_channel))
        DSR_UNROLL for (int c = 0; c < C; ++c) source[b][c] = load(from + c * kLanes<S>);
    add_group<S, C>(job, group, source, AddProducts<S>{});
  }
}

template <typename S>
using GroupFunction = void (*)(const GroupJob<S>&);

// The inner loops for every width of a tile, [C - 1].
template <typename S>
struct BlockTiles {
  TileFunction<S> tiles[kLimits.block_vectors];
  GroupFunction<S> groups[kLimits.block_vectors];

  template <int... C>
  static constexpr BlockTiles of(std::integer_sequence<int, C...>) {
    return {{accumulate_block_tile<S, C + 1>...}, {accumulate_groups<S, C + 1>...}};
  }
};
template <typename S>
constexpr auto kBlockTiles =
    BlockTiles<S>::of(std::make_integer_sequence<int, kLimits.block_vectors>{});

// The inner loop of forward, and of grad-input without groups.
template <typename S>
static TileFunction<S> gather_tile(const GatherPlan& plan, int64_t rows, int64_t cols) {
  return plan.block_rows > 1 ? kBlockTiles<S>.tiles[cols - 1] : kGatherTiles<S>.at(rows, cols);
}

template <typename S>
static GroupFunction<S> group_tile(int64_t cols) {
  return kBlockTiles<S>.groups[cols - 1];
}

}  // namespace dsr::cpu::DSR_ISA
