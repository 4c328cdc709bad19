// Vectors of the instruction set this file is compiled for, and the few operations the kernels
// need.
//
// Everything ISA-specific lives in the namespace of its instruction set, with internal linkage or
// forced inline: a helper shared between builds could be taken from the wrong one at link time.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define DSR_INLINE static inline __attribute__((always_inline))
#define DSR_UNROLL _Pragma("GCC unroll 32")

namespace dsr::cpu::DSR_ISA {

#if defined(__AVX512F__) || defined(DSR_EMULATE_AVX512)
inline constexpr int kVectorBytes = 64, kTileVectors = 24, kGradTileVectors = 20;
#elif defined(__AVX2__)
inline constexpr int kVectorBytes = 32, kTileVectors = 14, kGradTileVectors = 12;
#else
inline constexpr int kVectorBytes = 16, kTileVectors = 12, kGradTileVectors = 10;
#endif

template <typename S>
struct Simd;
template <>
struct Simd<float> {
  typedef float vec __attribute__((vector_size(kVectorBytes), may_alias));
  typedef float loose __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
};
template <>
struct Simd<double> {
  typedef double vec __attribute__((vector_size(kVectorBytes), may_alias));
  typedef double loose __attribute__((vector_size(kVectorBytes), aligned(8), may_alias));
};
template <typename S>
using Vec = typename Simd<S>::vec;
template <typename S>
inline constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(S));

template <typename S>
DSR_INLINE Vec<S> load(const S* p) {
  return *reinterpret_cast<const typename Simd<S>::loose*>(p);
}
template <typename S>
DSR_INLINE void store(S* p, Vec<S> v) {
  *reinterpret_cast<typename Simd<S>::loose*>(p) = v;
}
template <typename S>
DSR_INLINE Vec<S> broadcast(S value) {
  return value - Vec<S>{};
}

DSR_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
DSR_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

template <typename S>
DSR_INLINE void copy(S* to, const S* from, int64_t n) {
  constexpr int V = kLanes<S>;
  if (n >= V) {
    for (int64_t i = 0; i + V < n; i += V) store(to + i, load(from + i));
    store(to + n - V, load(from + n - V));
  } else {
    for (int64_t i = 0; i < n; ++i) to[i] = from[i];
  }
}
template <typename S>
DSR_INLINE void zero(S* to, int64_t n) {
  constexpr int V = kLanes<S>;
  for (; n >= V; n -= V, to += V) store(to, Vec<S>{});
  for (; n > 0; --n) *to++ = 0;
}

#if defined(__AVX2__) && !defined(DSR_EMULATE_AVX512)
#define DSR_SUM_ROWS_AVX2
DSR_INLINE __m256 sum_rows8(const __m256* r) {
  const __m256 a = _mm256_hadd_ps(_mm256_hadd_ps(r[0], r[1]), _mm256_hadd_ps(r[2], r[3]));
  const __m256 b = _mm256_hadd_ps(_mm256_hadd_ps(r[4], r[5]), _mm256_hadd_ps(r[6], r[7]));
  return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
}
DSR_INLINE __m256d sum_rows4(const __m256d* r) {
  const __m256d a = _mm256_hadd_pd(r[0], r[1]), b = _mm256_hadd_pd(r[2], r[3]);
  return _mm256_add_pd(_mm256_permute2f128_pd(a, b, 0x20), _mm256_permute2f128_pd(a, b, 0x31));
}
#endif

// Lane k of the result is the sum of the lanes of rows[k].
template <typename S>
DSR_INLINE Vec<S> sum_rows_by_halves(const Vec<S>* rows) {
  Vec<S> sum;
  for (int k = 0; k < kLanes<S>; ++k) {
    S part[kLanes<S>];
    store(part, rows[k]);
    for (int width = kLanes<S> / 2; width > 0; width /= 2)
      for (int i = 0; i < width; ++i) part[i] += part[i + width];
    sum[k] = part[0];
  }
  return sum;
}

DSR_INLINE Vec<float> sum_rows(const Vec<float>* rows) {
#if defined(__AVX512F__)
  __m256 half[16];
  DSR_UNROLL for (int k = 0; k < 16; ++k) {
    const __m512 v = reinterpret_cast<const __m512*>(rows)[k];
    half[k] = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
  }
  return (Vec<float>)_mm512_insertf32x8(_mm512_castps256_ps512(sum_rows8(half)),
                                        sum_rows8(half + 8), 1);
#elif defined(DSR_SUM_ROWS_AVX2)
  return (Vec<float>)sum_rows8(reinterpret_cast<const __m256*>(rows));
#else
  return sum_rows_by_halves<float>(rows);
#endif
}

DSR_INLINE Vec<double> sum_rows(const Vec<double>* rows) {
#if defined(__AVX512F__)
  __m256d half[8];
  DSR_UNROLL for (int k = 0; k < 8; ++k) {
    const __m512d v = reinterpret_cast<const __m512d*>(rows)[k];
    half[k] = _mm256_add_pd(_mm512_castpd512_pd256(v), _mm512_extractf64x4_pd(v, 1));
  }
  return (Vec<double>)_mm512_insertf64x4(_mm512_castpd256_pd512(sum_rows4(half)),
                                         sum_rows4(half + 4), 1);
#elif defined(DSR_SUM_ROWS_AVX2)
  return (Vec<double>)sum_rows4(reinterpret_cast<const __m256d*>(rows));
#else
  return sum_rows_by_halves<double>(rows);
#endif
}

// Subnormal operands cost a hundred cycles each; a worker flushes them and restores the caller's
// mode.
class FlushSubnormals {
 public:
#if defined(__x86_64__)
  __attribute__((always_inline)) FlushSubnormals() : saved_(_mm_getcsr()) {
    _mm_setcsr(saved_ | 0x8040);
  }
  __attribute__((always_inline)) ~FlushSubnormals() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#else
  FlushSubnormals() {}
#endif
};

}  // namespace dsr::cpu::DSR_ISA
