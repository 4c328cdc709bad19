// Vectors of activations in what they are computed in: whole ones, and the first few lanes of one.
#pragma once

#include "cpu/isa/simd.h"

namespace dsr::cpu::DSR_ISA {

template <typename S>
struct LaneBits;
template <>
struct LaneBits<float> {
  typedef int32_t vec __attribute__((vector_size(kVectorBytes), may_alias));
};
template <>
struct LaneBits<double> {
  typedef int64_t vec __attribute__((vector_size(kVectorBytes), may_alias));
};
// All bits of the lanes that take part in something.
template <typename S>
using Bits = typename LaneBits<S>::vec;

template <typename S>
DSR_INLINE Vec<S> among(Vec<S> v, Bits<S> bits) {
  return (Vec<S>)((Bits<S>)v & bits);
}

// A vector of S from as many elements, whatever they are stored as; float and bfloat16 widen to
// double, too.
template <typename S, typename E>
DSR_INLINE Vec<S> widen(const E* p) {
  if constexpr (std::is_same_v<S, E> || std::is_same_v<S, float>) {
    return load_as<S>(p);
  } else if constexpr (std::is_same_v<E, float>) {
    typedef float half __attribute__((vector_size(kVectorBytes / 2), aligned(4), may_alias));
    return __builtin_convertvector(*reinterpret_cast<const half*>(p), Vec<double>);
  } else {
    typedef uint16_t quarter __attribute__((vector_size(kVectorBytes / 4), aligned(2), may_alias));
    typedef uint32_t word __attribute__((vector_size(kVectorBytes / 2)));
    typedef float half __attribute__((vector_size(kVectorBytes / 2)));
    const word bits = __builtin_convertvector(*reinterpret_cast<const quarter*>(p), word) << 16;
    return __builtin_convertvector((half)bits, Vec<double>);
  }
}

// The first n lanes, of at least one and less than all; the others are zero.
template <typename S, typename E>
DSR_INLINE Vec<S> widen_first(const E* p, int64_t n) {
  if constexpr (std::is_same_v<S, float>) {
    return load_first(p, n);
  } else {
#if defined(__AVX512F__)
    const auto mask = static_cast<__mmask8>((1u << n) - 1);
    if constexpr (std::is_same_v<E, double>) {
      return (Vec<double>)_mm512_maskz_loadu_pd(mask, p);
    } else if constexpr (std::is_same_v<E, float>) {
      return (Vec<double>)_mm512_cvtps_pd(_mm256_maskz_loadu_ps(mask, p));
    } else {
      const __m256i words = _mm256_cvtepu16_epi32(_mm_maskz_loadu_epi16(mask, p));
      return (Vec<double>)_mm512_cvtps_pd(_mm256_castsi256_ps(_mm256_slli_epi32(words, 16)));
    }
#else
    Vec<double> v{};
    for (int64_t j = 0; j < n; ++j) {
      if constexpr (std::is_same_v<E, double>) {
        v[j] = p[j];
      } else {
        v[j] = static_cast<double>(value_of<float>(p[j]));
      }
    }
    return v;
#endif
  }
}

// The first n lanes, or all of them.
template <typename S, typename E>
DSR_INLINE Vec<S> take_head(const E* p, int64_t n) {
  return n == kLanes<S> ? widen<S>(p) : widen_first<S>(p, n);
}

template <typename S, typename E>
DSR_INLINE void narrow_first(E* p, Vec<S> v, int64_t n) {
  if constexpr (std::is_same_v<S, float>) {
    store_first(p, v, n);
  } else {
#if defined(__AVX512F__)
    _mm512_mask_storeu_pd(p, static_cast<__mmask8>((1u << n) - 1), (__m512d)v);
#else
    for (int64_t j = 0; j < n; ++j) p[j] = v[j];
#endif
  }
}

// Whole vectors where kFull, n lanes otherwise.
template <bool kFull, typename S, typename E>
DSR_INLINE Vec<S> take(const E* p, int64_t n) {
  if constexpr (kFull) {
    return widen<S>(p);
  } else {
    return widen_first<S>(p, n);
  }
}
// `streams`: past the caches, which wants whole vectors at their own addresses.
template <bool kFull, typename S, typename E>
DSR_INLINE void give(E* p, Vec<S> v, int64_t n, bool streams) {
  if constexpr (!kFull) {
    narrow_first<S>(p, v, n);
  } else if constexpr (std::is_same_v<S, E>) {
    if (streams) {
      stream(p, v);
    } else {
      store(p, v);
    }
  } else {
    store_as<S>(p, v);
  }
}

}  // namespace dsr::cpu::DSR_ISA
