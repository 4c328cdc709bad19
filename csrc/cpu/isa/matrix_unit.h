// What multiplies tiles: Intel's AMX, and the same in plain C++ for processors and sanitizers that
// do not know it.
//
// A unit has eight tiles of 16 rows of 64 bytes. multiply<C, A, B>() adds to the 16 x 16 float32 of
// tile C the product of tile A, 16 x 32 bfloat16, and of tile B: 32 x 16 bfloat16 of which a row
// holds pairs, B[k][n] at row k / 2 and place 2 n + k % 2. Results are rounded to nearest, and
// subnormals are flushed.
#pragma once

#include "cpu/isa/simd.h"

namespace dsr::cpu::DSR_ISA {

constexpr int kTileRows = kMatrixRows, kTileRowBytes = 64, kTileBytes = kTileRows * kTileRowBytes;
constexpr int kTileDepth = kMatrixDepth;          // of a product: columns of A, rows of B
constexpr int kTileHalves = kTileBytes / 2;       // bfloat16 in a tile
constexpr int kTileSums = kTileRows * kTileRows;  // float32 in a tile

// In plain C++.
class PlainUnit {
 public:
  template <int T>
  void zero() {
    std::memset(tiles_[T], 0, kTileBytes);
  }
  // `stride` is in bytes from row to row.
  template <int T>
  void load(const void* from, int64_t stride) {
    for (int r = 0; r < kTileRows; ++r)
      std::memcpy(tiles_[T] + r * kTileRowBytes, static_cast<const char*>(from) + r * stride,
                  kTileRowBytes);
  }
  template <int T>
  void store(void* to, int64_t stride) const {
    for (int r = 0; r < kTileRows; ++r)
      std::memcpy(static_cast<char*>(to) + r * stride, tiles_[T] + r * kTileRowBytes,
                  kTileRowBytes);
  }
  template <int C, int A, int B>
  void multiply() {
    float sums[kTileSums], a[kTileHalves], b[kTileHalves];
    std::memcpy(sums, tiles_[C], kTileBytes);
    widen(tiles_[A], a);
    widen(tiles_[B], b);
    for (int m = 0; m < kTileRows; ++m)
      for (int k = 0; k < kTileDepth; ++k)
        for (int n = 0; n < kTileRows; ++n)
          sums[m * kTileRows + n] += a[m * kTileDepth + k] * b[k / 2 * kTileDepth + 2 * n + k % 2];
    std::memcpy(tiles_[C], sums, kTileBytes);
  }

 private:
  static void widen(const char* tile, float* to) {
    BFloat16 halves[kTileHalves];
    std::memcpy(halves, tile, kTileBytes);
    for (int i = 0; i < kTileHalves; ++i) to[i] = value_of<float>(halves[i]);
  }

  alignas(kAlignment) char tiles_[8][kTileBytes] = {};
};

#if DSR_AMX
// AMX's own tiles, of the thread that makes one; written as assembly, so that no compiler need know
// them. The kernel's permission is asked for in cpu/dispatch.cpp. Units of one thread may be
// nested: each leaves the tiles as they were configured (by an outer unit, or another library).
class AmxUnit {
 public:
  AmxUnit() {
    asm volatile("sttilecfg %0" : "=m"(before_));
    Config config;
    config.palette = 1;
    for (int t = 0; t < 8; ++t) {
      config.row_bytes[t] = kTileRowBytes;
      config.rows[t] = kTileRows;
    }
    asm volatile("ldtilecfg %0" ::"m"(config));
  }
  ~AmxUnit() {
    if (before_.palette != 0) {
      asm volatile("ldtilecfg %0" ::"m"(before_));
    } else {
      asm volatile("tilerelease");
    }
  }
  AmxUnit(const AmxUnit&) = delete;
  AmxUnit& operator=(const AmxUnit&) = delete;

  template <int T>
  DSR_INLINE_MEMBER void zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(T));
  }
  template <int T>
  DSR_INLINE_MEMBER void load(const void* from, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(T) : "memory");
  }
  template <int T>
  DSR_INLINE_MEMBER void store(void* to, int64_t stride) const {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(T) : "memory");
  }
  template <int C, int A, int B>
  DSR_INLINE_MEMBER void multiply() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
  }

 private:
  struct Config {
    uint8_t palette = 0, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
  };
  static_assert(sizeof(Config) == 64);

  Config before_;
};
#endif

#if DSR_AVX512_BF16
// AVX512-BF16 multiplies no tiles, but vectors of pairs (vdpbf16ps): dot_products.h has what it
// does in place of a unit.
class DotProducts {};
#endif

// Calls use(null pointer to the kind of unit that a plan's tiles are multiplied by).
template <typename Plan, typename Use>
DSR_INLINE void with_matrix_unit([[maybe_unused]] const Plan& plan, Use use) {
#if DSR_AMX
  if (plan.matrix_unit == MatrixUnit::kAmx) return use(static_cast<AmxUnit*>(nullptr));
#endif
#if DSR_AVX512_BF16
  if (plan.matrix_unit == MatrixUnit::kDotProducts) return use(static_cast<DotProducts*>(nullptr));
#endif
  use(static_cast<PlainUnit*>(nullptr));
}

// ---- 32 bfloat16 side by side ----

typedef uint32_t Pairs __attribute__((vector_size(kTileRowBytes), may_alias));  // 16 pairs

DSR_INLINE Pairs load_pairs(const BFloat16* from) {
  typedef uint32_t Unaligned __attribute__((vector_size(kTileRowBytes), aligned(2), may_alias));
  return *reinterpret_cast<const Unaligned*>(from);
}
DSR_INLINE void store_pairs(BFloat16* to, Pairs pairs) {
  typedef uint32_t Unaligned __attribute__((vector_size(kTileRowBytes), aligned(2), may_alias));
  *reinterpret_cast<Unaligned*>(to) = pairs;
}
// Of two rows of 32 pixels: pairs of the even pixels, and of the odd ones. (Shifts and selections
// run on more ports than shuffles.)
DSR_INLINE Pairs even_pairs(Pairs a, Pairs b) {
#if defined(__AVX512F__)
  return (Pairs)_mm512_ternarylogic_epi32(_mm512_set1_epi32(0xffff), (__m512i)a,
                                          _mm512_slli_epi32((__m512i)b, 16), 0xca);
#else
  return (a & 0xffff) | b << 16;
#endif
}
DSR_INLINE Pairs odd_pairs(Pairs a, Pairs b) {
#if defined(__AVX512F__)
  return (Pairs)_mm512_ternarylogic_epi32(_mm512_set1_epi32(0xffff),
                                          _mm512_srli_epi32((__m512i)a, 16), (__m512i)b, 0xca);
#else
  return a >> 16 | (b & 0xffff0000u);
#endif
}
// Pairs of pixels 0 to 15 and 16 to 31, in order, of even and odd ones.
DSR_INLINE Pairs first_half(Pairs even, Pairs odd) {
  return __builtin_shufflevector(even, odd, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
DSR_INLINE Pairs second_half(Pairs even, Pairs odd) {
  return __builtin_shufflevector(even, odd, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30,
                                 15, 31);
}

}  // namespace dsr::cpu::DSR_ISA
