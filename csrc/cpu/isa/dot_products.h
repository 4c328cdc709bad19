// What AVX512-BF16 does in place of a matrix unit (Lanes::kMatrix): each loop that goes over tiles
// on such a unit goes over vectors here. Packed pixels and weights lie where they do for the unit.
// Sums of 16 rows stay in 16 registers, and a vector of pairs is loaded once for all of them.
#pragma once

#include "cpu/isa/grad_matrix.h"
#include "cpu/isa/matrix_tile.h"

#if DSR_AVX512_BF16
namespace dsr::cpu::DSR_ISA {

typedef uint32_t Pair __attribute__((may_alias));  // of bfloat16, side by side in memory
typedef float Sums __attribute__((vector_size(kTileRowBytes), may_alias));  // a row of them
typedef uint16_t Halves __attribute__((vector_size(kTileRowBytes), may_alias));

DSR_INLINE Sums load_sums(const float* from) {
  typedef float Unaligned __attribute__((vector_size(kTileRowBytes), aligned(4), may_alias));
  return *reinterpret_cast<const Unaligned*>(from);
}
DSR_INLINE void store_sums(float* to, Sums sums) {
  typedef float Unaligned __attribute__((vector_size(kTileRowBytes), aligned(4), may_alias));
  *reinterpret_cast<Unaligned*>(to) = sums;
}

// sum + the dot products of each lane's two pairs. As assembly, so that the compiler's options need
// not know it.
DSR_INLINE Sums add_dot(Sums sum, Pairs pairs, Pairs others) {
#if defined(DSR_EMULATE_AVX512)
  constexpr uint32_t kUpper = 0xffff0000u;
  sum += (Sums)(pairs << 16) * (Sums)(others << 16);
  return sum + (Sums)(pairs & kUpper) * (Sums)(others & kUpper);
#else
  asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(pairs), "v"(others));
  return sum;
#endif
}
// The same with one pair of memory for all lanes.
DSR_INLINE Sums add_dot(Sums sum, Pairs pairs, const Pair& pair) {
#if defined(DSR_EMULATE_AVX512)
  return add_dot(sum, pairs, Pairs{} + pair);
#else
  asm("vdpbf16ps %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(pairs), "m"(pair));
  return sum;
#endif
}

// A row of weights or pixels.
DSR_INLINE const Pair* pairs_of(const BFloat16* row) { return reinterpret_cast<const Pair*>(row); }

// sums[16] += [16][32] of `left` * [2 depth][16] in pairs of `right`.
DSR_INLINE void add_products(const BFloat16* left, const BFloat16* right, int depth,
                             Sums (&sums)[kTileRows]) {
  const Pair* of_left = pairs_of(left);
#pragma GCC unroll 2
  for (int k = 0; k < depth; ++k) {
    const Pairs pairs = load_pairs(right + k * kTileDepth);
    DSR_UNROLL for (int r = 0; r < kTileRows; ++r) sums[r] =
        add_dot(sums[r], pairs, of_left[r * kTileRows + k]);
  }
}

// Of two rows of 32 pixels: the pairs of the first 16 pixels, and those of the others.
DSR_INLINE Pairs low_pairs(Pairs a, Pairs b) {
  return (Pairs)__builtin_shufflevector((Halves)a, (Halves)b, 0, 32, 1, 33, 2, 34, 3, 35, 4, 36, 5,
                                        37, 6, 38, 7, 39, 8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13,
                                        45, 14, 46, 15, 47);
}
DSR_INLINE Pairs high_pairs(Pairs a, Pairs b) {
  return (Pairs)__builtin_shufflevector((Halves)a, (Halves)b, 16, 48, 17, 49, 18, 50, 19, 51, 20,
                                        52, 21, 53, 22, 54, 23, 55, 24, 56, 25, 57, 26, 58, 27, 59,
                                        28, 60, 29, 61, 30, 62, 31, 63);
}

// Pairs of up to kTileDepth positions at P pieces, in order: [P][first half, second][16][32].
template <int P, bool kApart>
DSR_INLINE void gather_in_order(const MatrixJob& job, const int32_t* offsets, int count,
                                BFloat16* to) {
  for (int k = 0; k < count; k += 2, to += kTileDepth) {
    const BFloat16* a = job.packed + offsets[k];
    const BFloat16* b = k + 1 < count ? job.packed + offsets[k + 1] : nullptr;
    DSR_UNROLL for (int p = 0; p < P; ++p) {
      const int64_t piece = p * job.next_piece;
      const Pairs of_a = load_piece<kApart>(a + piece, job.half);
      const Pairs of_b = b ? load_piece<kApart>(b + piece, job.half) : Pairs{};
      store_pairs(to + 2 * p * kTileHalves, low_pairs(of_a, of_b));
      store_pairs(to + (2 * p + 1) * kTileHalves, high_pairs(of_a, of_b));
    }
  }
}

// Forward. Chunks are gathered before they are multiplied, and sums go straight to where they are
// kept, once for all of these chunks.
template <int P, bool kApart>
DSR_INLINE void sum_channels(DotProducts&, const MatrixJob& job, int64_t d, int32_t begin,
                             int32_t end, const BFloat16* weights) {
  constexpr int kChunks = 2;  // more would leave the packed source less of L1
  alignas(kAlignment) BFloat16 pairs[kChunks][2 * P * kTileHalves];
  bool first = job.first;
  do {
    int chunks = 0, counts[kChunks];
    for (; begin < end && chunks < kChunks; begin += counts[chunks++]) {
      counts[chunks] = static_cast<int>(least(kTileDepth, end - begin));
      gather_in_order<P, kApart>(job, job.offsets + begin, counts[chunks], pairs[chunks]);
    }
    for (int tile = 0; tile < 2 * P; ++tile) {
      Sums sums[kTileRows];
      float* to = job.accumulators + d * job.channel_step + tile * kTileRows;
      if (!first) {
        DSR_UNROLL for (int r = 0; r < kTileRows; ++r) sums[r] =
            load_sums(to + r * job.channel_step);
      } else if (job.bias) {
        DSR_UNROLL for (int r = 0; r < kTileRows; ++r) sums[r] = Sums{} + job.bias[d + r];
      } else {
        DSR_UNROLL for (int r = 0; r < kTileRows; ++r) sums[r] = Sums{};
      }
      for (int i = 0; i < chunks; ++i)
        add_products(weights + i * kTileHalves, pairs[i] + tile * kTileHalves, (counts[i] + 1) / 2,
                     sums);
      DSR_UNROLL for (int r = 0; r < kTileRows; ++r) store_sums(to + r * job.channel_step, sums[r]);
    }
    weights += chunks * kTileHalves;
    first = false;
  } while (begin < end);
}

// Grad-input: rows [begin, end) of a group, of which one block of 16 source channels, at 32 pixels,
// stays in registers: the lower one of the two (0), or the upper (1).
DSR_INLINE void add_rows_of_block(const RowsJob& job, int32_t offset, int32_t begin, int32_t end,
                                  int which) {
  if (begin == end) return;
  constexpr int kPairs = kTileRows / 2;
  const char* pixels =
      reinterpret_cast<const char*>(job.packed + offset) + which * kPairs * job.pair_bytes;
  const BFloat16* weights = job.weights + int64_t{begin} * kTileDepth + which * kTileRows;
  const int32_t* targets = job.targets;
  Pairs first[kPairs], second[kPairs];
  DSR_UNROLL for (int k = 0; k < kPairs; ++k) {
    const auto* row = reinterpret_cast<const BFloat16*>(pixels + k * job.pair_bytes);
    first[k] = load_pairs(row);
    second[k] = load_pairs(row + job.half);
  }
  for (int32_t row = begin; row < end; ++row, weights += kTileDepth) {
    float* to = job.accumulators + targets[row] * job.channel_step;
    const Pair* of_row = pairs_of(weights);
    // Rows are few, and how many is not foreseen: short chains of sums leave little to wait for.
    Sums at_first[2] = {load_sums(to)}, at_second[2] = {load_sums(to + kTileRows)};
    DSR_UNROLL for (int k = 0; k < kPairs; ++k) {
      const Pairs weight = Pairs{} + of_row[k];
      at_first[k % 2] = add_dot(at_first[k % 2], first[k], weight);
      at_second[k % 2] = add_dot(at_second[k % 2], second[k], weight);
    }
    store_sums(to, at_first[0] + at_first[1]);
    store_sums(to + kTileRows, at_second[0] + at_second[1]);
  }
}

DSR_INLINE void accumulate_rows(DotProducts&, const RowsJob& shared) {
  const RowsJob job = shared;
  clear_sums(job);
  for (const GatherPlan::Group* g = job.first; g < job.last; ++g) {
    job.ahead->step();
    add_rows_of_block(job, g->offset, g->begin, g->lower_end, 0);
    add_rows_of_block(job, g->offset, g->upper_begin, g->upper_end, 1);
  }
}

// Grad-weight.
template <int T>
static void add_grad_tiles(DotProducts&, const GradTilesJob& shared) {
  const GradTilesJob job = shared;
  for (int tile = 0; tile < T; ++tile) {
    alignas(kAlignment) BFloat16 pixels[kTileHalves];
    float* of_tile = job.sums + tile * kTileSums;
    Sums sums[kTileRows];
    DSR_UNROLL for (int r = 0; r < kTileRows; ++r) sums[r] = load_sums(of_tile + r * kTileRows);
    for (int64_t i = 0; i < job.chunks; ++i) {
      copy_pixels<1>(job.packed + i * kTileDepth, job.offsets + tile * kTileRows, pixels);
      add_products(pixels, job.grads + i * kTileHalves, kTileRows, sums);
    }
    DSR_UNROLL for (int r = 0; r < kTileRows; ++r) store_sums(of_tile + r * kTileRows, sums[r]);
  }
}

}  // namespace dsr::cpu::DSR_ISA
#endif
