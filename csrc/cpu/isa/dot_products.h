// What AVX512-BF16 does in place of a matrix unit (Lanes::kMatrix): each loop that goes over tiles
// on such a unit goes over vectors here, with the same operands in the same places. Sums of 16 rows
// stay in 16 registers; a vector of pairs is loaded once for all of them, and a weight's pair is
// broadcast by the instruction.
#pragma once

#include <bit>

#include "cpu/isa/grad_matrix.h"
#include "cpu/isa/matrix_tile.h"

#if DSR_AVX512_BF16
namespace dsr::cpu::DSR_ISA {

typedef uint32_t Pair __attribute__((may_alias));  // of bfloat16, side by side in memory
typedef float Sums __attribute__((vector_size(kTileRowBytes), may_alias));  // a row of them

DSR_INLINE Sums load_sums(const float* from) {
  typedef float Unaligned __attribute__((vector_size(kTileRowBytes), aligned(4), may_alias));
  return *reinterpret_cast<const Unaligned*>(from);
}
DSR_INLINE void store_sums(float* to, Sums sums) {
  typedef float Unaligned __attribute__((vector_size(kTileRowBytes), aligned(4), may_alias));
  *reinterpret_cast<Unaligned*>(to) = sums;
}

// sum + the dot products of each lane's pair and one pair of memory.
DSR_INLINE Sums add_dot(Sums sum, Pairs pairs, const Pair& pair) {
#if defined(DSR_EMULATE_AVX512)
  constexpr uint32_t kUpper = 0xffff0000u;
  const Pairs lower = pairs << 16, upper = pairs & kUpper;
  sum += reinterpret_cast<const Sums&>(lower) * std::bit_cast<float>(pair << 16);
  return sum + reinterpret_cast<const Sums&>(upper) * std::bit_cast<float>(pair & kUpper);
#else
  // As assembly, so that the compiler's options need not know it.
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

// Forward. Chunks are gathered before they are multiplied, so that sums are loaded and stored once
// for all of them.
template <int P, bool kApart>
DSR_INLINE void sum_segment(DotProducts&, const MatrixJob& job, int32_t begin, int32_t end,
                            const BFloat16* weights, float* to) {
  constexpr int kChunks = 2;  // more would leave the packed source less of L1
  alignas(kAlignment) BFloat16 pairs[kChunks][2 * P * kTileHalves];
  for (int i = 0; i < 2 * P * kTileSums; i += kTileRows) store_sums(to + i, Sums{});
  for (int32_t first = begin; first < end; first += kChunks * kTileDepth) {
    int chunks = 0;
    for (int32_t k = first; k < end && chunks < kChunks; k += kTileDepth)
      gather_pairs<P, kApart>(job, job.offsets + k, end - k, pairs[chunks++]);
    for (int tile = 0; tile < 2 * P; ++tile) {
      Sums sums[kTileRows];
      float* of_tile = to + tile * kTileSums;
      DSR_UNROLL for (int r = 0; r < kTileRows; ++r) sums[r] = load_sums(of_tile + r * kTileRows);
      for (int i = 0; i < chunks; ++i) {
        const auto left = static_cast<int>(least(kTileDepth, end - first - i * kTileDepth));
        add_products(weights + i * kTileHalves, pairs[i] + tile * kTileHalves, (left + 1) / 2,
                     sums);
      }
      DSR_UNROLL for (int r = 0; r < kTileRows; ++r) store_sums(of_tile + r * kTileRows, sums[r]);
    }
    weights += chunks * kTileHalves;
  }
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
    Sums at_first = load_sums(to), at_second = load_sums(to + kTileRows);
    DSR_UNROLL for (int k = 0; k < kPairs; ++k) {
      at_first = add_dot(at_first, first[k], of_row[k]);
      at_second = add_dot(at_second, second[k], of_row[k]);
    }
    store_sums(to, at_first);
    store_sums(to + kTileRows, at_second);
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
