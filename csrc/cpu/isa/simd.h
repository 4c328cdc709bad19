// Vectors of the instruction set this file is compiled for, and the few operations the kernels
// need.
//
// Everything ISA-specific lives in the namespace of its instruction set, with internal linkage or
// forced inline: a helper shared between builds could be taken from the wrong one at link time.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define DSR_INLINE static inline __attribute__((always_inline))
#define DSR_INLINE_MEMBER inline __attribute__((always_inline))
#define DSR_UNROLL _Pragma("GCC unroll 32")

namespace dsr::cpu::DSR_ISA {

#if defined(__AVX512F__) || defined(DSR_EMULATE_AVX512)
inline constexpr int kVectorBytes = 64, kTileVectors = 28, kGradTileVectors = 24;
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
// Past the caches, to an address of whole vectors: nobody reads it soon.
template <typename S>
DSR_INLINE void stream(S* p, Vec<S> v) {
#if defined(__AVX512F__)
  _mm512_stream_si512(reinterpret_cast<__m512i*>(p), (__m512i)v);
#elif defined(__AVX2__) && !defined(DSR_EMULATE_AVX512)
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), (__m256i)v);
#else
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
    typedef uint16_t half __attribute__((vector_size(kVectorBytes / 2), aligned(2), may_alias));
    typedef uint32_t word __attribute__((vector_size(kVectorBytes), may_alias));
    return (Vec<S>)(__builtin_convertvector(*reinterpret_cast<const half*>(p), word) << 16);
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

// To the nearest bfloat16, ties to even, NaN to the quiet NaN, as torch rounds.
template <typename S, typename E>
DSR_INLINE void store_as(E* p, Vec<S> v) {
  if constexpr (std::is_same_v<S, E>) {
    store(p, v);
  } else {
    typedef uint16_t half __attribute__((vector_size(kVectorBytes / 2), aligned(2), may_alias));
    typedef uint32_t word __attribute__((vector_size(kVectorBytes), may_alias));
    const word bits = (word)v;
    const word rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const word nan = (word)(v != v);
    *reinterpret_cast<half*>(p) = __builtin_convertvector((rounded & ~nan) | (nan & 0x7fc0), half);
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

DSR_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
DSR_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

// n elements, converted from one type to the other; vectors overlap at the end.
template <typename S, typename E>
DSR_INLINE void copy_in(S* to, const E* from, int64_t n) {
  constexpr int V = kLanes<S>;
  if (n >= V) {
    for (int64_t i = 0; i + V < n; i += V) store(to + i, load_as<S>(from + i));
    store(to + n - V, load_as<S>(from + n - V));
  } else {
    for (int64_t i = 0; i < n; ++i) to[i] = value_of<S>(from[i]);
  }
}
template <typename S, typename E>
DSR_INLINE void copy_out(E* to, const S* from, int64_t n) {
  constexpr int V = kLanes<S>;
  if (n >= V) {
    for (int64_t i = 0; i + V < n; i += V) store_as<S>(to + i, load(from + i));
    store_as<S>(to + n - V, load(from + n - V));
  } else {
    for (int64_t i = 0; i < n; ++i) to[i] = element_of<S, E>(from[i]);
  }
}
template <typename S>
DSR_INLINE void zero(S* to, int64_t n) {
  constexpr int V = kLanes<S>;
  for (; n >= V; n -= V, to += V) store(to, Vec<S>{});
  for (; n > 0; --n) *to++ = 0;
}

// One stage of a butterfly over the rows of a square of vectors: lanes whose index has the bit D
// set trade places with the lanes D below them in the partner row.
template <int D, int V>
struct Exchange {
  // Lane e of `low` is a[e] or b[e - D], lane e of `high` is a[e + D] or b[e].
  template <typename T, int... E>
  static inline __attribute__((always_inline)) T low(T a, T b, std::integer_sequence<int, E...>) {
    return __builtin_shufflevector(a, b, (E & D ? V + E - D : E)...);
  }
  template <typename T, int... E>
  static inline __attribute__((always_inline)) T high(T a, T b, std::integer_sequence<int, E...>) {
    return __builtin_shufflevector(a, b, (E & D ? V + E : E + D)...);
  }
};

template <int D, typename S>
DSR_INLINE void transpose_stages(Vec<S>* rows) {
  constexpr int V = kLanes<S>;
  using Lanes = std::make_integer_sequence<int, V>;
  DSR_UNROLL for (int i = 0; i < V; ++i) {
    if (i & D) continue;
    const Vec<S> a = rows[i], b = rows[i + D];
    rows[i] = Exchange<D, V>::low(a, b, Lanes{});
    rows[i + D] = Exchange<D, V>::high(a, b, Lanes{});
  }
  if constexpr (D > 1) transpose_stages<D / 2, S>(rows);
}

// rows[i] lane j <-> rows[j] lane i, of a square of vectors.
template <typename S>
DSR_INLINE void transpose(Vec<S>* rows) {
  transpose_stages<kLanes<S> / 2, S>(rows);
}

// The same for squares of groups of L lanes: V / L rows.
template <int L, int D, typename S>
DSR_INLINE void transpose_groups(Vec<S>* rows) {
  constexpr int V = kLanes<S>, rows_apart = D / L;
  using Lanes = std::make_integer_sequence<int, V>;
  DSR_UNROLL for (int i = 0; i < V / L; ++i) {
    if (i & rows_apart) continue;
    const Vec<S> a = rows[i], b = rows[i + rows_apart];
    rows[i] = Exchange<D, V>::low(a, b, Lanes{});
    rows[i + rows_apart] = Exchange<D, V>::high(a, b, Lanes{});
  }
  if constexpr (D > L) transpose_groups<L, D / 2, S>(rows);
}

// Lane k of the result is the sum of the lanes of rows[k]: a transposition that adds as it goes.
template <typename S, int D = kLanes<S> / 2>
DSR_INLINE Vec<S> sum_rows(Vec<S>* rows) {
  constexpr int V = kLanes<S>;
  using Lanes = std::make_integer_sequence<int, V>;
  DSR_UNROLL for (int i = 0; i < D; ++i) rows[i] =
      Exchange<D, V>::low(rows[i], rows[i + D], Lanes{}) +
      Exchange<D, V>::high(rows[i], rows[i + D], Lanes{});
  if constexpr (D > 1) {
    return sum_rows<S, D / 2>(rows);
  } else {
    return rows[0];
  }
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
