// Which entries are pruned: checks, the largest entries, the threshold, and counts below and at it.
#pragma once

#include "cuda/rewire/block.cuh"

namespace dsr::cuda {

// A block works on a chunk of crow's rows + 1 elements.
__global__ void __launch_bounds__(RewireConfig::kThreads) check_crow_kernel(RewireTables tables) {
  const Chunk chunk = chunk_of(tables.row_chunks, tables.layers);
  const LayerView layer = tables.views[chunk.layer];
  const int64_t end = chunk.end(layer.rows + 1);
  bool broken = false;
  for (int64_t row = chunk.begin + threadIdx.x; row < end; row += RewireConfig::kThreads) {
    const int64_t start = layer.crow[row];
    broken |= row == 0 && start != 0;
    broken |= row < layer.rows ? start > layer.crow[row + 1] : start != layer.nnz;
  }
  if (broken) atomicExch(&tables.findings[chunk.layer].broken, 1u);
}

// A block works on a chunk of entries, and so do those below.
__global__ void __launch_bounds__(RewireConfig::kThreads) find_largest_kernel(RewireTables tables) {
  constexpr Word kInfinity = Word{0x7ff} << 52;  // NaNs are above it
  const Chunk chunk = chunk_of(tables.entry_chunks, tables.layers);
  const LayerView layer = tables.views[chunk.layer];
  const WarpSpan span = warp_span(chunk, layer.nnz);
  Word largest = 0;
  uint32_t bad = LayerFindings::kNone;
  for (int64_t i = span.begin + threadIdx.x % 32; i < span.end; i += 32) {
    const Word magnitude = magnitude_bits(layer, i);
    if (magnitude > largest) largest = magnitude;
    if (magnitude >= kInfinity && bad == LayerFindings::kNone) bad = static_cast<uint32_t>(i);
  }
  for (int distance = 16; distance > 0; distance /= 2) {
    const Word other = __shfl_xor_sync(kAllLanes, largest, distance);
    if (other > largest) largest = other;
  }
  LayerFindings& findings = tables.findings[chunk.layer];
  if (threadIdx.x % 32 == 0) atomicMax(&findings.largest, largest);
  if (bad != LayerFindings::kNone) atomicMin(&findings.bad, bad);
}

__global__ void __launch_bounds__(RewireConfig::kThreads)
    find_largest_entry_kernel(RewireTables tables) {
  const Chunk chunk = chunk_of(tables.entry_chunks, tables.layers);
  const LayerView layer = tables.views[chunk.layer];
  LayerFindings& findings = tables.findings[chunk.layer];
  const WarpSpan span = warp_span(chunk, layer.nnz);
  for (int64_t first = span.begin; first < span.end; first += 32) {
    const int64_t i = first + threadIdx.x % 32;
    const unsigned largest =
        __ballot_sync(kAllLanes, i < span.end && magnitude_bits(layer, i) == findings.largest);
    if (largest != 0) {  // the first 32 entries with a candidate hold the warp's first one
      if (threadIdx.x % 32 == 0) {
        atomicMin(&findings.largest_entry, static_cast<uint32_t>(first + __ffs(largest) - 1));
      }
      break;
    }
  }
}

__device__ inline Word* histogram_of(const RewireTables& tables, int scope) {
  return tables.histograms + scope * RewireConfig::kDigits;
}

// A block for each scope.
__global__ void __launch_bounds__(RewireConfig::kThreads)
    clear_histogram_kernel(RewireTables tables) {
  Word* const histogram = histogram_of(tables, static_cast<int>(blockIdx.x));
  for (int digit = threadIdx.x; digit < RewireConfig::kDigits; digit += RewireConfig::kThreads) {
    histogram[digit] = 0;
  }
}

// Counts the digits of a scope's prunable entries, among those that agree with its threshold above
// that digit.
__global__ void __launch_bounds__(RewireConfig::kThreads)
    count_digits_kernel(RewireTables tables, int shift) {
  DSR_SHARED(unsigned, counts, [RewireConfig::kDigits]);
  const Chunk chunk = chunk_of(tables.entry_chunks, tables.layers);
  const int scope = tables.scope_of(chunk.layer);
  const Selection selection = tables.selections[scope];
  if (selection.rank == Selection::kNoRank) return;
  for (int digit = threadIdx.x; digit < RewireConfig::kDigits; digit += RewireConfig::kThreads) {
    counts[digit] = 0;
  }
  __syncthreads();
  const LayerView layer = tables.views[chunk.layer];
  const uint32_t largest_entry = tables.findings[chunk.layer].largest_entry;
  const Word above = selection.bits >> shift >> RewireConfig::kDigitBits;
  const int64_t end = chunk.end(layer.nnz);
  for (int64_t i = chunk.begin + threadIdx.x; i < end; i += RewireConfig::kThreads) {
    const Word digits = magnitude_bits(layer, i) >> shift;
    if (digits >> RewireConfig::kDigitBits == above && i != largest_entry) {
      atomicAdd(&counts[digits % RewireConfig::kDigits], 1u);
    }
  }
  __syncthreads();
  Word* const histogram = histogram_of(tables, scope);
  for (int digit = threadIdx.x; digit < RewireConfig::kDigits; digit += RewireConfig::kThreads) {
    if (counts[digit] != 0) atomicAdd(&histogram[digit], Word{counts[digit]});
  }
}

// A block for each scope finds the digit of its threshold: that in which the rank falls, if there
// is one. Leaves the histogram at zero.
__global__ void __launch_bounds__(RewireConfig::kThreads)
    pick_digit_kernel(RewireTables tables, int shift) {
  constexpr int kMine = RewireConfig::kDigits / RewireConfig::kThreads;
  Selection& selection = tables.selections[blockIdx.x];
  Word* const histogram = histogram_of(tables, static_cast<int>(blockIdx.x));
  const Word rank = selection.rank;
  Word counts[kMine];
  Word sum = 0;
#pragma unroll
  for (int i = 0; i < kMine; ++i) {
    Word& count = histogram[threadIdx.x * kMine + i];
    counts[i] = count;
    count = 0;
    sum += counts[i];
  }
  Word total;
  Word before = sum_before(sum, total);  // its barriers also let every thread read the rank first
#pragma unroll
  for (int i = 0; i < kMine; ++i) {
    if (before <= rank && rank < before + counts[i]) {
      selection.bits |= Word{threadIdx.x * kMine + i} << shift;
      selection.rank = rank - before;
    }
    before += counts[i];
  }
}

__global__ void __launch_bounds__(RewireConfig::kThreads)
    count_at_threshold_kernel(RewireTables tables) {
  DSR_SHARED(Word, warp_counts, [RewireConfig::kWarps]);
  const Chunk chunk = chunk_of(tables.entry_chunks, tables.layers);
  const LayerView layer = tables.views[chunk.layer];
  const Word threshold = tables.selections[tables.scope_of(chunk.layer)].bits;
  const Word counts = count_span(layer, tables.findings[chunk.layer].largest_entry, threshold,
                                 warp_span(chunk, layer.nnz));
  if (threadIdx.x % 32 == 0) warp_counts[threadIdx.x / 32] = counts;
  __syncthreads();
  if (threadIdx.x == 0) {
    Word sum = 0;
    for (int warp = 0; warp < RewireConfig::kWarps; ++warp) sum += warp_counts[warp];
    tables.chunk_counts[blockIdx.x] = sum;
  }
}

// A block scans the chunks of a layer.
__global__ void __launch_bounds__(RewireConfig::kThreads) scan_chunks_kernel(RewireTables tables) {
  const int layer = static_cast<int>(blockIdx.x);
  const int64_t first = tables.entry_chunks[layer];
  const Word sum = scan_counts(tables.chunk_counts + first, tables.entry_chunks[layer + 1] - first);
  if (threadIdx.x == 0) {
    tables.findings[layer].less = less_of(sum);
    tables.findings[layer].equal = equal_of(sum);
  }
}

}  // namespace dsr::cuda
