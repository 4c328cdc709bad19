// Where entries grow: their ranks among a layer's free positions, in ascending order.
#pragma once

#include "cuda/rewire/block.cuh"

namespace dsr::cuda {

// A block works on a chunk of ranks, and so do those below. Given ranks are checked: they have to
// be ascending already.
__global__ void __launch_bounds__(RewireConfig::kThreads)
    fill_ranks_kernel(RewireTables layers, MoveTables tables,
                      Word* ranks /* [grown of all layers] */) {
  const Chunk chunk = chunk_of(tables.rank_chunks, tables.layers);
  const LayerMove& move = tables.moves[chunk.layer];
  const int64_t end = chunk.end(move.grown);
  ranks += move.first_rank;
  if (move.ranks == nullptr) {
    for (int64_t i = chunk.begin + threadIdx.x; i < end; i += RewireConfig::kThreads) {
      ranks[i] = move.growth(static_cast<uint64_t>(i));
    }
    return;
  }
  const LayerView& layer = layers.views[chunk.layer];
  const int64_t free = layer.rows * layer.row_length - layer.nnz;
  bool fit = true;
  for (int64_t i = chunk.begin + threadIdx.x; i < end; i += RewireConfig::kThreads) {
    const int64_t rank = move.ranks[i];
    fit &= (i == 0 ? -1 : move.ranks[i - 1]) < rank && rank < free;
    ranks[i] = static_cast<Word>(rank);
  }
  if (!fit) atomicExch(&layers.findings[chunk.layer].misranked, 1u);
}

__device__ inline unsigned digit_of(Word rank, int shift) {
  return static_cast<unsigned>(rank >> shift) % RewireConfig::kDigits;
}

// The counts of a layer's chunks, digit by digit: scanned as they lie, they say where in the layer
// the ranks of a chunk with a certain digit begin.
struct DigitCounts {
  uint32_t* of_layer;  // [kDigits][chunks]
  int64_t chunks;

  __device__ DigitCounts(const MoveTables& tables, int layer)
      : of_layer(tables.digit_counts + tables.rank_chunks[layer] * RewireConfig::kDigits),
        chunks(tables.rank_chunks[layer + 1] - tables.rank_chunks[layer]) {}
  __device__ uint32_t& at(int digit, const Chunk& chunk) const {
    return of_layer[digit * chunks + chunk.begin / RewireConfig::kChunk];
  }
};

__global__ void __launch_bounds__(RewireConfig::kThreads)
    count_rank_digits_kernel(MoveTables tables, const Word* ranks /* [grown of all layers] */,
                             int shift) {
  DSR_SHARED(unsigned, counts, [RewireConfig::kDigits]);
  for (int digit = threadIdx.x; digit < RewireConfig::kDigits; digit += RewireConfig::kThreads) {
    counts[digit] = 0;
  }
  __syncthreads();
  const Chunk chunk = chunk_of(tables.rank_chunks, tables.layers);
  const LayerMove& move = tables.moves[chunk.layer];
  const int64_t end = chunk.end(move.grown);
  for (int64_t i = chunk.begin + threadIdx.x; i < end; i += RewireConfig::kThreads) {
    atomicAdd(&counts[digit_of(ranks[move.first_rank + i], shift)], 1u);
  }
  __syncthreads();
  const DigitCounts all(tables, chunk.layer);
  for (int digit = threadIdx.x; digit < RewireConfig::kDigits; digit += RewireConfig::kThreads) {
    all.at(digit, chunk) = counts[digit];
  }
}

// A block scans the counts of a layer.
__global__ void __launch_bounds__(RewireConfig::kThreads)
    scan_rank_digits_kernel(MoveTables tables) {
  const DigitCounts all(tables, static_cast<int>(blockIdx.x));
  scan_counts(all.of_layer, all.chunks * RewireConfig::kDigits);
}

// Moves a chunk's ranks where their digits belong, those of equal digits in the order they are in.
__global__ void __launch_bounds__(RewireConfig::kThreads)
    scatter_ranks_kernel(MoveTables tables, const Word* from, Word* to /* [grown of all layers] */,
                         int shift) {
  constexpr int kWarps = RewireConfig::kWarps;
  DSR_SHARED(unsigned, next, [kWarps][RewireConfig::kDigits]);  // where a warp puts its next rank
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const Chunk chunk = chunk_of(tables.rank_chunks, tables.layers);
  const LayerMove& move = tables.moves[chunk.layer];
  const WarpSpan span = warp_span(chunk, move.grown);
  from += move.first_rank;
  to += move.first_rank;
  for (int digit = lane; digit < RewireConfig::kDigits; digit += 32) next[warp][digit] = 0;
  __syncwarp();
  for (int64_t i = span.begin + lane; i < span.end; i += 32) {
    atomicAdd(&next[warp][digit_of(from[i], shift)], 1u);
  }
  __syncthreads();
  const DigitCounts all(tables, chunk.layer);
  for (int digit = threadIdx.x; digit < RewireConfig::kDigits; digit += RewireConfig::kThreads) {
    unsigned start = all.at(digit, chunk);
    for (int w = 0; w < kWarps; ++w) {
      const unsigned count = next[w][digit];
      next[w][digit] = start;
      start += count;
    }
  }
  __syncthreads();
  for (int64_t first = span.begin; first < span.end; first += 32) {
    const bool mine = first + lane < span.end;
    const Word rank = mine ? from[first + lane] : 0;
    const unsigned digit = digit_of(rank, shift);
    unsigned same = __ballot_sync(kAllLanes, mine);  // lanes with the same digit
    for (int bit = 0; bit < RewireConfig::kDigitBits; ++bit) {
      const unsigned set = __ballot_sync(kAllLanes, digit >> bit & 1);
      same &= digit >> bit & 1 ? set : ~set;
    }
    const unsigned before = same & lanes_before();
    if (mine) to[next[warp][digit] + __popc(before)] = rank;
    __syncwarp();  // all have read where theirs begin
    if (mine && before == 0) next[warp][digit] += __popc(same);
    __syncwarp();  // a ballot orders no memory
  }
}

}  // namespace dsr::cuda
