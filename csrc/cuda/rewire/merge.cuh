// The new patterns and arrays: survivors and grown positions, each put where it belongs.
#pragma once

#include "cuda/rewire/block.cuh"

namespace dsr::cuda {

// The row of an entry, which is in [first, last].
__device__ inline int64_t row_of(const int32_t* crow /* [rows + 1] */, int64_t first, int64_t last,
                                 int64_t entry) {
  const auto end_of = [=](int64_t i) { return int64_t{crow[first + i + 1]}; };
  return first + count_below<true>(end_of, last - first, entry);
}

template <class Unit>
__device__ void put(const ArrayMove& array, int64_t to, int64_t from) {
  static_cast<Unit*>(array.to)[to] =
      from < 0 ? Unit{0} : static_cast<const Unit*>(array.from)[from];
}

// The same for an item of several units. Not unrolled: the registers are needed elsewhere.
template <class Unit>
__device__ void put_block(const ArrayMove& array, int64_t to, int64_t from) {
  Unit* target = static_cast<Unit*>(array.to) + to * array.units;
  const Unit* source = static_cast<const Unit*>(array.from) + (from < 0 ? 0 : from * array.units);
#pragma unroll 1
  for (int64_t left = array.units; left > 0; --left, ++target, ++source) {
    *target = from < 0 ? Unit{0} : *source;
  }
}

// Writes entry `to` of a layer's arrays: its entry `from` before, or zero where that is negative.
// All-zero bits are zero in every floating-point type.
__device__ inline void put_items(const MoveTables& tables, const LayerMove& move, int64_t to,
                                 int64_t from) {
  for (int64_t a = 0; a < move.arrays; ++a) {
    const ArrayMove& array = tables.arrays[move.first_array + a];
    if (array.units > 1) {
      array.unit_size == 4 ? put_block<uint32_t>(array, to, from)
                           : put_block<uint8_t>(array, to, from);
      continue;
    }
    switch (array.unit_size) {
      case 1:
        put<uint8_t>(array, to, from);
        break;
      case 2:
        put<uint16_t>(array, to, from);
        break;
      case 4:
        put<uint32_t>(array, to, from);
        break;
      default:
        put<uint64_t>(array, to, from);
    }
  }
}

// Whether something is written: not for a layer that stays as it is, nor where given ranks do not
// fit.
__device__ inline bool is_moved(const LayerMove& move, const LayerFindings& findings) {
  return move.crow != nullptr && findings.misranked == 0;
}

// A block works on a chunk of entries. It moves survivors to their new places and counts the
// survivors before every entry.
__global__ void __launch_bounds__(RewireConfig::kThreads, 10)  // else ptxas spills for 12 blocks
    move_survivors_kernel(RewireTables tables, MoveTables to, const Word* ranks) {
  DSR_SHARED(Word, warp_counts, [RewireConfig::kWarps]);
  DSR_SHARED(int64_t, end_rows, [2]);  // of the chunk's first and last entry
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const Chunk chunk = chunk_of(tables.entry_chunks, tables.layers);
  const LayerView& layer = tables.views[chunk.layer];
  const LayerMove& move = to.moves[chunk.layer];
  LayerFindings& findings = tables.findings[chunk.layer];
  if (!is_moved(move, findings)) return;
  const uint32_t largest_entry = findings.largest_entry;
  const Word threshold = tables.selections[tables.scope_of(chunk.layer)].bits;
  const WarpSpan span = warp_span(chunk, layer.nnz);
  const Word mine = count_span(layer, largest_entry, threshold, span);
  if (lane == 0) warp_counts[warp] = mine;
  if (threadIdx.x < 2) {
    const int64_t entry = threadIdx.x == 0 ? chunk.begin : chunk.end(layer.nnz) - 1;
    end_rows[threadIdx.x] = row_of(layer.crow, 0, layer.rows - 1, entry);
  }
  __syncthreads();
  // Entries below the threshold and at it, before the warp's span.
  Word before = tables.chunk_counts[blockIdx.x];
  Word after = before;  // and before the next chunk
  for (int w = 0; w < RewireConfig::kWarps; ++w) {
    if (w < warp) before += warp_counts[w];
    after += warp_counts[w];
  }
  const bool last = chunk.begin + RewireConfig::kChunk >= layer.nnz;
  const Word expected =
      last ? pack_counts(findings.less, findings.equal) : tables.chunk_counts[blockIdx.x + 1];
  if (after != expected) {  // the scores have changed: what would be written might have no place
    if (threadIdx.x == 0) atomicExch(&findings.unplaced, 1u);
    return;
  }
  ranks += move.first_rank;
  const auto rank = [=](int64_t i) { return static_cast<int64_t>(ranks[i]); };
  bool ascending = true;
  for (int64_t first = span.begin; first < span.end; first += 32) {
    const int64_t i = first + lane;
    const AtThreshold at = at_threshold(layer, largest_entry, threshold, i, span.end);
    if (i < span.end) {
      const int64_t ties = equal_of(before) + __popc(at.equal & lanes_before());
      const int64_t less = less_of(before) + __popc(at.less & lanes_before());
      const int64_t kept = i - less - (ties > move.kept_ties ? ties - move.kept_ties : 0);
      to.kept_before[layer.first_entry + i] = static_cast<int32_t>(kept);
      const int64_t row = row_of(layer.crow, end_rows[0], end_rows[1], i);
      const int64_t col = layer.col[i];
      const int64_t previous = i == layer.crow[row] ? -1 : layer.col[i - 1];
      ascending &= previous < col && col < layer.row_length;
      const bool pruned =
          (at.less >> lane & 1) || ((at.equal >> lane & 1) && ties >= move.kept_ties);
      if (!pruned) {
        const int64_t free = row * layer.row_length + col - i;  // free positions before it
        const int64_t place = kept + count_below<false>(rank, move.grown, free);
        move.col[place] = static_cast<int32_t>(col);
        put_items(to, move, place, i);
      }
    }
    before += at.counts();
  }
  if (!ascending) atomicExch(&findings.unplaced, 1u);
}

// Survivors before entry `i` of a layer, which may be behind the last one.
__device__ inline int64_t kept_before(const MoveTables& tables, const LayerView& layer,
                                      const LayerMove& move, int64_t i) {
  return i < layer.nnz ? tables.kept_before[layer.first_entry + i] : move.kept;
}

// A block works on a chunk of ranks. Before the first entry of a row there are as many free
// positions as positions less entries.
__global__ void __launch_bounds__(RewireConfig::kThreads)
    place_grown_kernel(RewireTables tables, MoveTables to, const Word* ranks) {
  const Chunk chunk = chunk_of(to.rank_chunks, to.layers);
  const LayerFindings& findings = tables.findings[chunk.layer];
  const LayerMove& move = to.moves[chunk.layer];
  if (!is_moved(move, findings) || findings.unplaced != 0) return;
  const LayerView layer = tables.views[chunk.layer];
  const int64_t end = chunk.end(move.grown);
  for (int64_t i = chunk.begin + threadIdx.x; i < end; i += RewireConfig::kThreads) {
    const int64_t rank = static_cast<int64_t>(ranks[move.first_rank + i]);
    const auto free_before_row = [&](int64_t row) {
      return row * layer.row_length - layer.crow[row];
    };
    const int64_t row = count_below<true>(free_before_row, layer.rows, rank) - 1;
    const int64_t first = layer.crow[row], row_start = row * layer.row_length;
    const auto free_before_entry = [&](int64_t j) {
      return row_start + layer.col[first + j] - (first + j);
    };
    const int64_t entry =
        first + count_below<true>(free_before_entry, layer.crow[row + 1] - first, rank);
    const int64_t place = i + kept_before(to, layer, move, entry);
    move.col[place] = static_cast<int32_t>(rank + entry - row_start);
    put_items(to, move, place, -1);
  }
}

// A block works on a chunk of crow's rows + 1 elements.
__global__ void __launch_bounds__(RewireConfig::kThreads)
    write_crow_kernel(RewireTables tables, MoveTables to, const Word* ranks) {
  const Chunk chunk = chunk_of(tables.row_chunks, tables.layers);
  const LayerFindings& findings = tables.findings[chunk.layer];
  const LayerMove& move = to.moves[chunk.layer];
  if (!is_moved(move, findings) || findings.unplaced != 0) return;
  const LayerView layer = tables.views[chunk.layer];
  ranks += move.first_rank;
  const auto rank = [=](int64_t i) { return static_cast<int64_t>(ranks[i]); };
  const int64_t end = chunk.end(layer.rows + 1);
  for (int64_t row = chunk.begin + threadIdx.x; row < end; row += RewireConfig::kThreads) {
    const int64_t entry = layer.crow[row];
    const int64_t grown = count_below<false>(rank, move.grown, row * layer.row_length - entry);
    move.crow[row] = static_cast<int32_t>(kept_before(to, layer, move, entry) + grown);
  }
}

}  // namespace dsr::cuda
