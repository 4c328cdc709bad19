// 16 bytes of activations: the same pixel of several images.
#pragma once

#include "cuda/compat.h"
#include "cuda/conv/limits.h"

namespace dsr::cuda {

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }

template <class T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}
template <>
__device__ __forceinline__ __half from_float<__half>(float x) {
  return __float2half_rn(x);
}

template <class T>
struct Vector {
  static constexpr int kSize = kVectorBytes / sizeof(T);
  static_assert(sizeof(T) == 2 || sizeof(T) == 4, "a vector holds 2- or 4-byte elements");
};

__device__ __forceinline__ float2 widen(uint32_t two, __nv_bfloat16) {
  // A bfloat16 is the upper half of a float.
  return make_float2(__uint_as_float(two << 16), __uint_as_float(two & 0xffff0000u));
}

__device__ __forceinline__ float2 widen(uint32_t two, __half) {
  const __half_raw low{static_cast<unsigned short>(two & 0xffffu)};
  const __half_raw high{static_cast<unsigned short>(two >> 16)};
  return make_float2(__half2float(__half(low)), __half2float(__half(high)));
}

template <class T>
__device__ __forceinline__ void unpack(const uint4& x, float (&out)[8]) {
  const uint32_t words[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 two = widen(words[i], T());
    out[2 * i] = two.x;
    out[2 * i + 1] = two.y;
  }
}

// The vector at a 16-byte aligned address, as floats.
template <class T>
__device__ __forceinline__ void load_vector(const void* at, float (&out)[Vector<T>::kSize]) {
  if constexpr (sizeof(T) == 4) {
    const float4 x = *static_cast<const float4*>(at);
    out[0] = x.x, out[1] = x.y, out[2] = x.z, out[3] = x.w;
  } else {
    unpack<T>(*static_cast<const uint4*>(at), out);
  }
}

// from[0], from[stride], ...: the first `count` images, zeros after them.
template <class T>
__device__ __forceinline__ void load_images(const T* from, int64_t stride, int count,
                                            T (&out)[Vector<T>::kSize]) {
#pragma unroll
  for (int i = 0; i < Vector<T>::kSize; ++i) out[i] = i < count ? from[i * stride] : T(0.f);
}

template <class T>
__device__ __forceinline__ void store_vector(void* to, const T (&x)[Vector<T>::kSize]) {
  if constexpr (sizeof(T) == 4) {
    *static_cast<float4*>(to) = make_float4(x[0], x[1], x[2], x[3]);
  } else {
    uint4 packed;
    memcpy(&packed, x, sizeof(packed));
    *static_cast<uint4*>(to) = packed;
  }
}

}  // namespace dsr::cuda
