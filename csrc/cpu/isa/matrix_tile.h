// The inner loops on matrix units, where kTileRows output channels share their positions
// (Lanes::kMatrix).
//
// Forward: tile A holds the weights of 16 output channels at 32 of their positions, tile B the
// pixels at these positions. Positions lie anywhere, so B is gathered: two rows of 32 pixels become
// rows of two tiles, the even pixels' and the odd ones'.
// Grad-input: the weights of 32 source channels at one tap (GatherPlan::Group) to 32 destination
// channels become tiles A, mostly zeros, while B is read in place: the packed source holds pairs of
// channels. What is dense is a window of 32 destination channels.
#pragma once

#include "cpu/conv/gather_plan.h"
#include "cpu/isa/ahead.h"
#include "cpu/isa/matrix_unit.h"

namespace dsr::cpu::DSR_ISA {

constexpr int kPixels = kMatrixPixels;

struct MatrixJob {
  const BFloat16* packed;  // the tile's first pixel in packed channel 0
  const int32_t* offsets;
  const BFloat16* weights;      // tiles A: [tiles][16][32]
  const int32_t* bounds;        // [channels / 16 + 1], into offsets
  const int32_t* first_weight;  // [channels / 16], into the tiles A
  const float* bias;            // of the first channel, or null
  int64_t channels;
  bool first;             // of the blocks: start at the bias
  float* accumulators;    // [channels][P][32]
  int64_t channel_step;   // scalars
  Ahead* ahead;
};

// Rows of tiles B: the positions [begin, end) of a chunk, P times 32 pixels; [P][even, odd][16][32].
template <int P>
DSR_INLINE void gather_pairs(const BFloat16* packed, const int32_t* offsets, int32_t count,
                             BFloat16* to) {
  const auto put = [&](int j, const BFloat16* a, const BFloat16* b, bool alone) {
    DSR_UNROLL for (int p = 0; p < P; ++p) {
      const Pairs of_a = load_pairs(a + p * kPixels);
      const Pairs of_b = alone ? Pairs{} : load_pairs(b + p * kPixels);
      BFloat16* row = to + p * 2 * kTileHalves + j * kTileDepth;
      store_pairs(row, even_pairs(of_a, of_b));
      store_pairs(row + kTileHalves, odd_pairs(of_a, of_b));
    }
  };
  if (count >= kTileDepth) {
    DSR_UNROLL for (int j = 0; j < kTileRows; ++j)
        put(j, packed + offsets[2 * j], packed + offsets[2 * j + 1], false);
    return;
  }
  for (int j = 0; j < kTileRows; ++j) {
    const int32_t left = count - 2 * j;
    if (left > 1) {
      put(j, packed + offsets[2 * j], packed + offsets[2 * j + 1], false);
    } else if (left == 1) {
      put(j, packed + offsets[2 * j], nullptr, true);
    } else {
      DSR_UNROLL for (int t = 0; t < 2 * P; ++t)
          store_pairs(to + t * kTileHalves + j * kTileDepth, Pairs{});
    }
  }
}

// Tiles of sums 0 .. 2 P - 1 += A * B, for the B of one chunk.
template <int P, typename Unit>
DSR_INLINE void multiply_pairs(Unit& unit, const BFloat16* weights, const BFloat16* pairs) {
  unit.template load<4>(weights, kTileRowBytes);
  unit.template load<5>(pairs, kTileRowBytes);
  unit.template load<6>(pairs + kTileHalves, kTileRowBytes);
  unit.template multiply<0, 4, 5>();
  unit.template multiply<1, 4, 6>();
  if constexpr (P == 2) {
    unit.template load<5>(pairs + 2 * kTileHalves, kTileRowBytes);
    unit.template load<7>(pairs + 3 * kTileHalves, kTileRowBytes);
    unit.template multiply<2, 4, 5>();
    unit.template multiply<3, 4, 7>();
  }
}

// Even and odd pixels' sums, rows of 16 side by side, to pixels in order.
DSR_INLINE void put_in_order(const float* even, float* to) {
  const Pairs e = *reinterpret_cast<const Pairs*>(even);
  const Pairs o = *reinterpret_cast<const Pairs*>(even + kTileSums);
  store_pairs(reinterpret_cast<BFloat16*>(to), first_half(e, o));
  store_pairs(reinterpret_cast<BFloat16*>(to + kTileRows), second_half(e, o));
}

template <int P, typename Unit>
static void accumulate_matrix_tile(Unit& unit, const MatrixJob& job) {
  alignas(kAlignment) BFloat16 pairs[2][2 * P * kTileHalves];
  alignas(kAlignment) float sums[2 * P * kTileSums];
  for (int64_t d = 0; d < job.channels; d += kTileRows) {
    job.ahead->step();
    const int32_t *bounds = job.bounds + d / kTileRows, begin = bounds[0], end = bounds[1];
    float* to = job.accumulators + d * job.channel_step;
    if (begin == end && !job.first) continue;
    unit.template zero<0>();
    unit.template zero<1>();
    if constexpr (P == 2) unit.template zero<2>();
    if constexpr (P == 2) unit.template zero<3>();
    const BFloat16* weights = job.weights + int64_t{job.first_weight[d / kTileRows]} * kTileHalves;
    // Pairs are gathered a chunk ahead: a tile's load waits for stores that are still under way.
    if (begin < end) gather_pairs<P>(job.packed, job.offsets + begin, end - begin, pairs[0]);
#pragma GCC unroll 1
    for (int32_t k = begin, i = 0; k < end; k += kTileDepth, ++i, weights += kTileHalves) {
      const int32_t next = k + kTileDepth;
      if (next < end)
        gather_pairs<P>(job.packed, job.offsets + next, end - next, pairs[(i + 1) % 2]);
      multiply_pairs<P>(unit, weights, pairs[i % 2]);
    }
    unit.template store<0>(sums, kTileRowBytes);
    unit.template store<1>(sums + kTileSums, kTileRowBytes);
    if constexpr (P == 2) unit.template store<2>(sums + 2 * kTileSums, kTileRowBytes);
    if constexpr (P == 2) unit.template store<3>(sums + 3 * kTileSums, kTileRowBytes);
    for (int r = 0; r < kTileRows; ++r, to += job.channel_step) {
      const float start = job.bias ? job.bias[d + r] : 0.0f;
      DSR_UNROLL for (int p = 0; p < P; ++p) {
        float* pixels = to + p * kPixels;
        const float* of_row = sums + p * 2 * kTileSums + r * kTileRows;
        if (job.first && !job.bias) {
          put_in_order(of_row, pixels);
          continue;
        }
        float ordered[kPixels];
        put_in_order(of_row, ordered);
        for (int i = 0; i < kPixels; ++i)
          pixels[i] = ordered[i] + (job.first ? start : pixels[i]);
      }
    }
  }
}

// The weights of one group as two tiles A: from `source` channels 0 .. 31 to destination channels
// 0 .. 15 and 16 .. 31 of a window. A step is the 16 weights that targets[k] = destination * 2 +
// (which half of the source channels) says.
static inline void spread_group(const int32_t* targets, const BFloat16* weights, int32_t count,
                                BFloat16* tiles) {
  std::memset(tiles, 0, 2 * kTileBytes);
  for (int32_t k = 0; k < count; ++k)
    std::memcpy(tiles + targets[k] * kTileRows, weights + int64_t{k} * kTileRows, kTileRowBytes / 2);
}

struct WindowJob {
  const BFloat16* packed;  // pairs of channels: the tile's first pixel in pair 0
  int64_t pair_bytes;      // from one pair of channels to the next
  const GatherPlan::Group* first;
  const GatherPlan::Group* last;
  const BFloat16* tiles;  // two of each group
  float* accumulators;    // [32][32]
  bool both;              // whether the window has more than 16 channels
  Ahead* ahead;
};

// Sums of 32 destination channels at 32 pixels.
template <typename Unit>
static void accumulate_window(Unit& unit, const WindowJob& job) {
  constexpr int64_t kRow = kPixels * sizeof(float);
  unit.template zero<0>();
  unit.template zero<1>();
  unit.template zero<2>();
  unit.template zero<3>();
  const BFloat16* tiles = job.tiles;
#pragma GCC unroll 1
  for (const GatherPlan::Group* g = job.first; g < job.last; ++g, tiles += 2 * kTileHalves) {
    job.ahead->step();
    const BFloat16* pixels = job.packed + g->offset;
    unit.template load<6>(pixels, job.pair_bytes);
    unit.template load<7>(pixels + kPixels, job.pair_bytes);
    unit.template load<4>(tiles, kTileRowBytes);
    unit.template multiply<0, 4, 6>();
    unit.template multiply<1, 4, 7>();
    if (!job.both) continue;
    unit.template load<5>(tiles + kTileHalves, kTileRowBytes);
    unit.template multiply<2, 5, 6>();
    unit.template multiply<3, 5, 7>();
  }
  unit.template store<0>(job.accumulators, kRow);
  unit.template store<1>(job.accumulators + kTileRows, kRow);
  if (!job.both) return;
  float* lower = job.accumulators + kTileRows * kPixels;
  unit.template store<2>(lower, kRow);
  unit.template store<3>(lower + kTileRows, kRow);
}

}  // namespace dsr::cpu::DSR_ISA
