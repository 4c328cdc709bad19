// Vectors of the instruction set this file is compiled for, and the few operations the kernels
// need.
//
// The vectors are the compiler's (GCC's and clang's vector extensions), so most of this is the same
// for every instruction set; where one has something better, an #if here or in turn.h says so.
//
// Everything ISA-specific lives in the namespace of its instruction set, with internal linkage or
// forced inline: a helper shared between builds could be taken from the wrong one at link time.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "cpu/isa/limits.h"

#define DSR_INLINE static inline __attribute__((always_inline))
#define DSR_INLINE_MEMBER inline __attribute__((always_inline))
#define DSR_INLINE_LAMBDA __attribute__((always_inline))
#define DSR_UNROLL _Pragma("GCC unroll 32")

namespace dsr::cpu::DSR_ISA {

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
DSR_INLINE Vec<S> load(const S* p) {
  return *reinterpret_cast<const typename Simd<S>::loose*>(p);
}
template <typename S>
DSR_INLINE void store(S* p, Vec<S> v) {
  *reinterpret_cast<typename Simd<S>::loose*>(p) = v;
}
// As the instruction of a stream does, where there is none.
DSR_INLINE void trap_unaligned(const void* p) {
  if (reinterpret_cast<uintptr_t>(p) % kVectorBytes != 0) __builtin_trap();
}
// Past the caches, to an address of whole vectors: nobody reads it soon.
template <typename S>
DSR_INLINE void stream(S* p, Vec<S> v) {
#if defined(__AVX512F__)
  _mm512_stream_si512(reinterpret_cast<__m512i*>(p), (__m512i)v);
#elif defined(__AVX2__) && !defined(DSR_EMULATE_AVX512)
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), (__m256i)v);
#else
  trap_unaligned(p);
  store(p, v);
#endif
}
// Behind streams, before other threads read.
DSR_INLINE void fence() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}
template <typename S>
DSR_INLINE Vec<S> broadcast(S value) {
  // Minus zero, not plus: -0 + 0 is 0, but -0 - 0 stays -0.
  return value - Vec<S>{};
}

// Activations may be stored in fewer bits than they are computed in: a load and a store convert.
struct BFloat16 {
  uint16_t bits;
};

template <typename S, typename E>
DSR_INLINE Vec<S> load_as(const E* p) {
  if constexpr (std::is_same_v<S, E>) {
    return load(p);
  } else {
#if defined(__AVX512F__)  // one shuffle; compilers make three of what is below
    const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return (Vec<S>)_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16);
#else
    typedef uint16_t half __attribute__((vector_size(kVectorBytes / 2), aligned(2), may_alias));
    typedef uint32_t word __attribute__((vector_size(kVectorBytes), may_alias));
    return (Vec<S>)(__builtin_convertvector(*reinterpret_cast<const half*>(p), word) << 16);
#endif
  }
}

template <typename S, typename E>
DSR_INLINE S value_of(E e) {
  if constexpr (std::is_same_v<S, E>) {
    return e;
  } else {
    const uint32_t bits = uint32_t{e.bits} << 16;
    S s;
    std::memcpy(&s, &bits, 4);
    return s;
  }
}

// To the nearest bfloat16, ties to even, NaN to the quiet NaN, as torch rounds: the upper half of
// each lane. (The lower half is arbitrary.)
DSR_INLINE Vec<float> rounded(Vec<float> v) {
#if defined(__AVX512F__)
  const __m512i bits = (__m512i)v;
  const __mmask16 odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x10000));
  const __m512i half =
      _mm512_mask_blend_epi32(odd, _mm512_set1_epi32(0x7fff), _mm512_set1_epi32(0x8000));
  const __mmask16 nan = _mm512_cmp_ps_mask((__m512)v, (__m512)v, _CMP_UNORD_Q);
  return (Vec<float>)_mm512_mask_mov_epi32(_mm512_add_epi32(bits, half), nan,
                                           _mm512_set1_epi32(0x7fc00000));
#else
  typedef uint32_t word __attribute__((vector_size(kVectorBytes), may_alias));
  const word bits = (word)v;
  const word nan = (word)(v != v);
  return (Vec<float>)(((bits + 0x7fff + ((bits >> 16) & 1)) & ~nan) | (nan & 0x7fc00000));
#endif
}

// What a reader finds of v that is stored as E.
template <typename S, typename E>
DSR_INLINE Vec<S> as_element(Vec<S> v) {
  if constexpr (std::is_same_v<S, E>) {
    return v;
  } else {
    typedef uint32_t word __attribute__((vector_size(kVectorBytes), may_alias));
    return (Vec<S>)((word)rounded(v) & 0xffff0000u);
  }
}

// Of what is an E already, but for the bits that an E has not.
template <typename S, typename E>
DSR_INLINE void store_element(E* p, Vec<S> v) {
  if constexpr (std::is_same_v<S, E>) {
    store(p, v);
  } else {
    typedef uint16_t half __attribute__((vector_size(kVectorBytes / 2), aligned(2), may_alias));
#if defined(__AVX512F__)
    typedef uint16_t words __attribute__((vector_size(kVectorBytes), may_alias));
    const words w = (words)v;
    *reinterpret_cast<half*>(p) =
        __builtin_shufflevector(w, w, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
#else
    typedef uint32_t word __attribute__((vector_size(kVectorBytes), may_alias));
    *reinterpret_cast<half*>(p) = __builtin_convertvector((word)v >> 16, half);
#endif
  }
}

template <typename S, typename E>
DSR_INLINE void store_as(E* p, Vec<S> v) {
  if constexpr (std::is_same_v<S, E>) {
    store(p, v);
  } else {
    store_element<S>(p, rounded(v));
  }
}

template <typename S, typename E>
DSR_INLINE E element_of(S s) {
  if constexpr (std::is_same_v<S, E>) {
    return s;
  } else {
    uint32_t bits;
    std::memcpy(&bits, &s, 4);
    return {static_cast<uint16_t>(s != s ? 0x7fc0 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
  }
}

// The larger one of two lanes; b where either is NaN.
template <typename S>
DSR_INLINE Vec<S> larger(Vec<S> a, Vec<S> b) {
#if defined(__AVX512F__)
  if constexpr (sizeof(S) == 4) return (Vec<S>)_mm512_max_ps((__m512)a, (__m512)b);
  return (Vec<S>)_mm512_max_pd((__m512d)a, (__m512d)b);
#else
  return a > b ? a : b;
#endif
}

DSR_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
DSR_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
DSR_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// n elements, converted from one type to the other; vectors overlap at the end.
template <typename S, typename From>
DSR_INLINE void copy_in(S* to, From from, int64_t n) {
  constexpr int V = kLanes<S>;
  if (n >= V) {
    for (int64_t i = 0; i + V < n; i += V) store(to + i, load_as<S>(from + i));
    store(to + n - V, load_as<S>(from + n - V));
  } else {
    for (int64_t i = 0; i < n; ++i) to[i] = value_of<S>(from[i]);
  }
}
DSR_INLINE void zero(BFloat16* to, int64_t n) { std::memset(to, 0, n * sizeof(BFloat16)); }
template <typename S>
DSR_INLINE void zero(S* to, int64_t n) {
  constexpr int V = kLanes<S>;
  for (; n >= V; n -= V, to += V) store(to, Vec<S>{});
  for (; n > 0; --n) *to++ = 0;
}

// The first n <= V elements; the other lanes are zero.
template <typename E>
DSR_INLINE Vec<float> load_first(const E* p, int64_t n) {
  [[maybe_unused]] constexpr int V = kLanes<float>;
#if defined(__AVX512F__)
  const auto mask = static_cast<__mmask16>((1u << n) - 1);
  if constexpr (std::is_same_v<E, float>) {
    if (n == V / 2) return (Vec<float>)_mm512_zextps256_ps512(_mm256_loadu_ps(p));
    return (Vec<float>)_mm512_maskz_loadu_ps(mask, p);
  } else {
    return (Vec<float>)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, p)),
                                         16);
  }
#else
  if (n == V) return load_as<float>(p);
  float lanes[V] = {};
  for (int64_t j = 0; j < n; ++j) lanes[j] = value_of<float>(p[j]);
  return load(lanes);
#endif
}

template <typename E>
DSR_INLINE void store_first(E* p, Vec<float> v, int64_t n) {
  constexpr int V = kLanes<float>;
#if defined(__AVX512F__)
  const auto mask = static_cast<__mmask16>((1u << n) - 1);
  if constexpr (std::is_same_v<E, float>) {
    if (n == V / 2) return _mm256_storeu_ps(p, _mm512_castps512_ps256((__m512)v));
    _mm512_mask_storeu_ps(p, mask, (__m512)v);
  } else {
    E lanes[V];
    store_as<float>(lanes, v);
    _mm256_mask_storeu_epi16(p, mask, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(lanes)));
  }
#else
  if (n == V) return store_as<float>(p, v);
  for (int64_t j = 0; j < n; ++j) p[j] = element_of<float, E>(v[j]);
#endif
}

// Lanes [0, n) of v; the others are zero.
template <typename S>
DSR_INLINE Vec<S> keep_head(Vec<S> v, int64_t n) {
#if defined(__AVX512F__)
  if constexpr (sizeof(S) == 4)
    return (Vec<S>)_mm512_maskz_mov_ps(static_cast<__mmask16>((1u << n) - 1), (__m512)v);
  return (Vec<S>)_mm512_maskz_mov_pd(static_cast<__mmask8>((1u << n) - 1), (__m512d)v);
#else
  for (int64_t j = n; j < kLanes<S>; ++j) v[j] = 0;
  return v;
#endif
}
// Which lanes of a float vector take part.
#if defined(__AVX512F__)
using LaneMask = __mmask16;
DSR_INLINE LaneMask lane_mask(uint32_t bits) { return static_cast<LaneMask>(bits); }
DSR_INLINE Vec<float> keep(Vec<float> v, LaneMask mask) {
  return (Vec<float>)_mm512_maskz_mov_ps(mask, (__m512)v);
}
// The lanes of the mask get value * x more.
DSR_INLINE Vec<float> add_product(Vec<float> sum, Vec<float> value, Vec<float> x, LaneMask mask) {
  return (Vec<float>)_mm512_mask3_fmadd_ps((__m512)value, (__m512)x, (__m512)sum, mask);
}
#else
typedef int32_t LaneMask __attribute__((vector_size(kVectorBytes), may_alias));
DSR_INLINE LaneMask lane_mask(uint32_t bits) {
  LaneMask mask;
  for (int j = 0; j < kLanes<float>; ++j) mask[j] = bits >> j & 1 ? -1 : 0;
  return mask;
}
DSR_INLINE Vec<float> keep(Vec<float> v, LaneMask mask) { return (Vec<float>)((LaneMask)v & mask); }
DSR_INLINE Vec<float> add_product(Vec<float> sum, Vec<float> value, Vec<float> x, LaneMask mask) {
  return mask ? sum + value * x : sum;  // an infinite value leaves the other lanes alone
}
#endif

}  // namespace dsr::cpu::DSR_ISA
