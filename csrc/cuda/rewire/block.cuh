// What the kernels of a rewire share: the chunk of a block, magnitudes, counts at the threshold,
// sums over a block.
#pragma once

#include <cstring>

#include "cuda/compat.h"
#include "cuda/rewire/tables.h"

namespace dsr::cuda {

constexpr unsigned kAllLanes = 0xffffffffu;

// Items [begin, end) of a layer, of its `count` ones.
struct Chunk {
  int layer;
  int64_t begin;

  __device__ int64_t end(int64_t count) const {
    const int64_t full = begin + RewireConfig::kChunk;
    return full < count ? full : count;
  }
};

// The chunk of this block.
__device__ inline Chunk chunk_of(const int64_t* starts /* [layers + 1] */, int layers) {
  const int64_t chunk = blockIdx.x;
  int low = 0, high = layers;  // starts[low] <= chunk < starts[high]
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (starts[middle] <= chunk ? low : high) = middle;
  }
  return {low, (chunk - starts[low]) * RewireConfig::kChunk};
}

// The part of a chunk that this warp works on: [begin, end), empty where end <= begin.
struct WarpSpan {
  int64_t begin, end;
};

__device__ inline WarpSpan warp_span(const Chunk& chunk, int64_t count) {
  const int64_t begin = chunk.begin + threadIdx.x / 32 * RewireConfig::kWarpSpan;
  const int64_t full = begin + RewireConfig::kWarpSpan;
  return {begin, full < count ? full : count};
}

__device__ inline unsigned lanes_before() { return (1u << threadIdx.x % 32) - 1; }

// The bits of |value|: they sort as the magnitudes do.
__device__ inline Word magnitude_bits(const LayerView& layer, int64_t entry) {
  const double value = layer.is_double
                           ? static_cast<const double*>(layer.scores)[entry]
                           : static_cast<double>(static_cast<const float*>(layer.scores)[entry]);
  Word bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits & ~(Word{1} << 63);
}

// Numbers of entries below the threshold and at it, in the halves of one word: a layer has less
// than 2^31.
__device__ inline Word pack_counts(Word less, Word equal) { return equal << 32 | less; }
__device__ inline int64_t less_of(Word counts) {
  return static_cast<int64_t>(counts & 0xffffffffu);
}
__device__ inline int64_t equal_of(Word counts) { return static_cast<int64_t>(counts >> 32); }

// Which of a warp's 32 entries are prunable and below the threshold, or at it.
struct AtThreshold {
  unsigned less, equal;

  __device__ Word counts() const { return pack_counts(__popc(less), __popc(equal)); }
};

__device__ inline AtThreshold at_threshold(const LayerView& layer, uint32_t largest_entry,
                                           Word threshold, int64_t entry, int64_t end) {
  const bool prunable = entry < end && entry != largest_entry;
  const Word magnitude = prunable ? magnitude_bits(layer, entry) : 0;
  return {__ballot_sync(kAllLanes, prunable && magnitude < threshold),
          __ballot_sync(kAllLanes, prunable && magnitude == threshold)};
}

// The counts of a warp's span.
__device__ inline Word count_span(const LayerView& layer, uint32_t largest_entry, Word threshold,
                                  const WarpSpan& span) {
  Word counts = 0;
  for (int64_t first = span.begin; first < span.end; first += 32) {
    counts +=
        at_threshold(layer, largest_entry, threshold, first + threadIdx.x % 32, span.end).counts();
  }
  return counts;
}

// The sum of `mine` over the threads before this one, and over all of them. For whole blocks.
__device__ inline Word sum_before(Word mine, Word& total) {
  DSR_SHARED(Word, warp_sums, [RewireConfig::kWarps]);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  Word sum = mine;
  for (int distance = 1; distance < 32; distance *= 2) {
    const Word other = __shfl_up_sync(kAllLanes, sum, distance);
    if (lane >= distance) sum += other;
  }
  __syncthreads();  // the sums of a call before have been read
  if (lane == 31) warp_sums[warp] = sum;
  __syncthreads();
  Word before = 0;
  total = 0;
  for (int w = 0; w < RewireConfig::kWarps; ++w) {
    if (w < warp) before += warp_sums[w];
    total += warp_sums[w];
  }
  return before + sum - mine;
}

// Turns counts into the sums of those before them, and returns the sum of all. For whole blocks.
template <class Count>
__device__ Word scan_counts(Count* counts, int64_t size) {
  constexpr int kScanned = RewireConfig::kScanned;
  Word carry = 0;
  for (int64_t tile = 0; tile < size; tile += kScanned * RewireConfig::kThreads) {
    const int64_t first = tile + kScanned * static_cast<int64_t>(threadIdx.x);
    Count mine[kScanned];
    Word sum = 0;
#pragma unroll
    for (int i = 0; i < kScanned; ++i) {
      mine[i] = first + i < size ? counts[first + i] : 0;
      sum += mine[i];
    }
    Word total;
    Word before = carry + sum_before(sum, total);
#pragma unroll
    for (int i = 0; i < kScanned; ++i) {
      if (first + i < size) counts[first + i] = static_cast<Count>(before);
      before += mine[i];
    }
    carry += total;
  }
  return carry;
}

// How many of `size` ascending items are below (or, with kOrEqual, not above) `bound`.
template <bool kOrEqual, class Item>
__device__ int64_t count_below(const Item& item, int64_t size, int64_t bound) {
  int64_t low = 0, high = size;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    const int64_t value = item(middle);
    if (value < bound || (kOrEqual && value == bound)) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

}  // namespace dsr::cuda
