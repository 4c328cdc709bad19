// The inner loops on matrix units, where kTileRows output channels share their positions
// (Lanes::kMatrix).
//
// Forward: tile A holds the weights of 16 output channels at 32 of their positions, tile B the
// pixels at these positions. Positions lie anywhere, so B is gathered: two rows of 32 pixels become
// rows of two tiles, the even pixels' and the odd ones'.
// Grad-input: tile B is read in place, for the packed source holds pairs of channels: 32 source
// channels at one tap. The rows of tiles A are the destination channels that have weights there
// (GatherPlan::Group: one tile); zeros stand where a row has only one of the two blocks. Sums are
// added to those of a strip, which are in L1.
#pragma once

#include "cpu/conv/gather_plan.h"
#include "cpu/isa/ahead.h"
#include "cpu/isa/matrix_unit.h"

namespace dsr::cpu::DSR_ISA {

constexpr int kPixels = kMatrixPixels;

struct MatrixJob {
  const BFloat16* packed;  // the tile's first pixel in packed channel 0
  int64_t next_piece;      // elements to the second piece of 32 pixels,
  int64_t half;            // and from a piece's first half to its second
  const int32_t* offsets;
  const BFloat16* weights;      // tiles A: [tiles][16][32]
  const int32_t* bounds;        // [channels / 16 + 1], into offsets
  const int32_t* first_weight;  // [channels / 16], into the tiles A
  const float* bias;            // of the first channel, or null
  int64_t channels;
  bool first;            // of the blocks: start at the bias
  float* accumulators;   // [channels][P][32]
  int64_t channel_step;  // scalars
  Ahead* ahead;
};

// Two halves of a piece: side by side, or `half` elements apart.
template <bool kApart>
DSR_INLINE Pairs load_piece(const BFloat16* from, int64_t half) {
  if constexpr (!kApart) return load_pairs(from);
#if defined(__AVX512F__)
  const auto at = [](const BFloat16* p) { return reinterpret_cast<const __m256i*>(p); };
  return (Pairs)_mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256(at(from))),
                                   _mm256_loadu_si256(at(from + half)), 1);
#else
  Pairs pairs;
  std::memcpy(&pairs, from, kTileRowBytes / 2);
  std::memcpy(reinterpret_cast<char*>(&pairs) + kTileRowBytes / 2, from + half, kTileRowBytes / 2);
  return pairs;
#endif
}

// Rows of tiles B: `count` positions of a chunk at P pieces; [P][even, odd][16][32].
template <int P, bool kApart>
DSR_INLINE void gather_pairs(const MatrixJob& job, const int32_t* offsets, int32_t count,
                             BFloat16* to) {
  const auto put = [&](int j, const BFloat16* a, const BFloat16* b) {
    DSR_UNROLL for (int p = 0; p < P; ++p) {
      const int64_t piece = p * job.next_piece;
      const Pairs of_a = load_piece<kApart>(a + piece, job.half);
      const Pairs of_b = b ? load_piece<kApart>(b + piece, job.half) : Pairs{};
      BFloat16* row = to + p * 2 * kTileHalves + j * kTileDepth;
      store_pairs(row, even_pairs(of_a, of_b));
      store_pairs(row + kTileHalves, odd_pairs(of_a, of_b));
    }
  };
  const BFloat16* packed = job.packed;
  if (count >= kTileDepth) {
    DSR_UNROLL for (int j = 0; j < kTileRows; ++j)
        put(j, packed + offsets[2 * j], packed + offsets[2 * j + 1]);
    return;
  }
  int j = 0;
  for (; 2 * j + 1 < count; ++j) put(j, packed + offsets[2 * j], packed + offsets[2 * j + 1]);
  if (2 * j < count) put(j, packed + offsets[2 * j], nullptr), ++j;
  for (; j < kTileRows; ++j)
    DSR_UNROLL for (int t = 0; t < 2 * P; ++t)
        store_pairs(to + t * kTileHalves + j * kTileDepth, Pairs{});
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

// to[even, odd pixels of P pieces][16][16] = the sums of 16 channels at positions [begin, end).
template <int P, bool kApart, typename Unit>
DSR_INLINE void sum_segment(Unit& unit, const MatrixJob& job, int32_t begin, int32_t end,
                            const BFloat16* weights, float* to) {
  alignas(kAlignment) BFloat16 pairs[2][2 * P * kTileHalves];
  unit.template zero<0>();
  unit.template zero<1>();
  if constexpr (P == 2) unit.template zero<2>();
  if constexpr (P == 2) unit.template zero<3>();
  // Pairs are gathered a chunk ahead: a tile's load waits for stores that are still under way.
  if (begin < end) gather_pairs<P, kApart>(job, job.offsets + begin, end - begin, pairs[0]);
#pragma GCC unroll 1
  for (int32_t k = begin, i = 0; k < end; k += kTileDepth, ++i, weights += kTileHalves) {
    const int32_t next = k + kTileDepth;
    if (next < end)
      gather_pairs<P, kApart>(job, job.offsets + next, end - next, pairs[(i + 1) % 2]);
    multiply_pairs<P>(unit, weights, pairs[i % 2]);
  }
  unit.template store<0>(to, kTileRowBytes);
  unit.template store<1>(to + kTileSums, kTileRowBytes);
  if constexpr (P == 2) unit.template store<2>(to + 2 * kTileSums, kTileRowBytes);
  if constexpr (P == 2) unit.template store<3>(to + 3 * kTileSums, kTileRowBytes);
}

// The sums of 16 channels from d on at P pieces: those of positions [begin, end), beside the bias
// or what is there.
template <int P, bool kApart, typename Unit>
DSR_INLINE void sum_channels(Unit& unit, const MatrixJob& job, int64_t d, int32_t begin,
                             int32_t end, const BFloat16* weights) {
  alignas(kAlignment) float sums[2 * P * kTileSums];
  sum_segment<P, kApart>(unit, job, begin, end, weights, sums);
  float* to = job.accumulators + d * job.channel_step;
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
      for (int i = 0; i < kPixels; ++i) pixels[i] = ordered[i] + (job.first ? start : pixels[i]);
    }
  }
}

template <int P, bool kApart, typename Unit>
static void accumulate_matrix_tile(Unit& unit, const MatrixJob& shared) {
  const MatrixJob job = shared;
  for (int64_t d = 0; d < job.channels; d += kTileRows) {
    job.ahead->step();
    const int32_t *bounds = job.bounds + d / kTileRows, begin = bounds[0], end = bounds[1];
    if (begin == end && !job.first) continue;
    const BFloat16* weights = job.weights + int64_t{job.first_weight[d / kTileRows]} * kTileHalves;
    sum_channels<P, kApart>(unit, job, d, begin, end, weights);
  }
}

template <typename Unit>
using MatrixTileFunction = void (*)(Unit&, const MatrixJob&);

template <typename Unit>
static MatrixTileFunction<Unit> matrix_tile(int64_t pieces, bool apart) {
  if (apart)
    return pieces == 1 ? accumulate_matrix_tile<1, true, Unit>
                       : accumulate_matrix_tile<2, true, Unit>;
  return pieces == 1 ? accumulate_matrix_tile<1, false, Unit>
                     : accumulate_matrix_tile<2, false, Unit>;
}

// accumulators[target] += A * B for the tiles A of one strip of destination channels.
struct RowsJob {
  const BFloat16* packed;  // pairs of channels: the tile's first pixel in pair 0
  int64_t half;            // elements from the first 16 pixels to the others
  int64_t pair_bytes;      // from one pair of channels to the next
  const GatherPlan::Group* first;
  const GatherPlan::Group* last;
  const int32_t* targets;   // of all groups' rows: destination channel in the strip, or -1
  const BFloat16* weights;  // of all groups: [rows][32]
  float* accumulators;      // [channels][32 of channel_step]
  int64_t channel_step;     // scalars
  int64_t channels;         // of the strip
  Ahead* ahead;
};

// One tile A times 32 pixels, in tiles of sums C and C + 1; `pixels` are in tiles 6 and 7 already
// if they are those of the tile before.
template <int C, typename Unit>
DSR_INLINE void multiply_rows(Unit& unit, const RowsJob& job, const GatherPlan::Group* group) {
  if (group == job.first || group->offset != group[-1].offset) {
    const BFloat16* pixels = job.packed + group->offset;
    unit.template load<6>(pixels, job.pair_bytes);
    unit.template load<7>(pixels + job.half, job.pair_bytes);
  }
  unit.template load<4 + C / 2>(job.weights + int64_t{group->begin} * kTileDepth, kTileRowBytes);
  unit.template zero<C>();
  unit.template zero<C + 1>();
  unit.template multiply<C, 4 + C / 2, 6>();
  unit.template multiply<C + 1, 4 + C / 2, 7>();
}

// Tiles of sums to memory, [16][32].
template <int C, typename Unit>
DSR_INLINE void store_rows(const Unit& unit, float* sums) {
  unit.template store<C>(sums, 2 * kTileRowBytes);
  unit.template store<C + 1>(sums + kTileRows, 2 * kTileRowBytes);
}

DSR_INLINE void add_rows(const RowsJob& job, const GatherPlan::Group* group, const float* sums) {
  typedef float Floats __attribute__((vector_size(kTileRowBytes), aligned(4), may_alias));
  const int32_t* targets = job.targets + group->begin;
  for (int r = 0; r < kTileRows && targets[r] >= 0; ++r, sums += kPixels) {
    Floats* to = reinterpret_cast<Floats*>(job.accumulators + targets[r] * job.channel_step);
    const Floats* from = reinterpret_cast<const Floats*>(sums);
    to[0] += from[0];
    to[1] += from[1];
  }
}

DSR_INLINE void clear_sums(const RowsJob& job) {
  for (int64_t d = 0; d < job.channels; ++d) {
    float* sums_of_channel = job.accumulators + d * job.channel_step;
    for (int i = 0; i < kPixels; ++i) sums_of_channel[i] = 0;
  }
}

// Sums of a strip's destination channels at 32 pixels. Tiles are computed, stored and added in
// turn: while one is under way, the one before it is stored, and the one before that added.
template <typename Unit>
static void accumulate_rows(Unit& unit, const RowsJob& shared) {
  alignas(kAlignment) float sums[2][2 * kTileSums];
  const RowsJob job = shared;
  clear_sums(job);
  const GatherPlan::Group* g = job.first;
#pragma GCC unroll 1
  for (; g + 1 < job.last; g += 2) {
    job.ahead->step();
    multiply_rows<0>(unit, job, g);
    if (g > job.first) add_rows(job, g - 2, sums[0]);
    job.ahead->step();
    multiply_rows<2>(unit, job, g + 1);
    store_rows<0>(unit, sums[0]);
    if (g > job.first) add_rows(job, g - 1, sums[1]);
    store_rows<2>(unit, sums[1]);
  }
  if (g > job.first) {
    add_rows(job, g - 2, sums[0]);
    add_rows(job, g - 1, sums[1]);
  }
  if (g == job.last) return;
  job.ahead->step();
  multiply_rows<0>(unit, job, g);
  store_rows<0>(unit, sums[0]);
  add_rows(job, g, sums[0]);
}

}  // namespace dsr::cpu::DSR_ISA
