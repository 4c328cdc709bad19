// How elements come from memory into a slab or, of a grad-weight, into registers: as they are, or
// by way of a SourceMap. The steps that fill take one of these policies; a kernel that takes
// elements as they are has nothing of the other in it.
#pragma once

#include "cuda/conv/fused.h"
#include "cuda/conv/vector.cuh"

namespace dsr::cuda {

__device__ __forceinline__ float affine(float x, float center, float scale, float shift) {
  return fmaf(x - center, scale, shift);
}

// NaN stays NaN.
__device__ __forceinline__ float relu(float x) { return x <= 0.f ? 0.f : x; }

template <class T>
struct PlainSource {
  static constexpr bool kMapped = false;
  static constexpr int kBatch = kFillBatch;  // channels a filling lane has in registers at once
  using Cursor = const T*;
  const T* at;  // [N, channels, ...]

  __device__ __forceinline__ PlainSource from_channel(int channel, int64_t stride) const {
    return {at + channel * stride};
  }

  // What value() starts from.
  __device__ __forceinline__ Cursor cursor(int64_t offset) const { return at + offset; }

  // The element of a channel that lies `offset` from the cursor.
  __device__ __forceinline__ float value(int, Cursor from, int64_t offset) const {
    return to_float(from[offset]);
  }
};

template <class T>
struct MappedSource {
  static constexpr bool kMapped = true;
  static constexpr int kBatch = 2;  // with four, ptxas spills
  using Cursor = const T*;
  const T* at;           // [N, channels, ...], from channel `first` on
  const SourceMap& map;  // its arrays begin with the first channel of all
  const T* all;
  int first;

  __device__ __forceinline__ MappedSource(const T* source, const SourceMap& by)
      : at(source), map(by), all(source), first(0) {}

  __device__ __forceinline__ MappedSource from_channel(int channel, int64_t stride) const {
    MappedSource moved = *this;
    moved.at += channel * stride;
    moved.first += channel;
    return moved;
  }

  // What y, where there is one, has in the place of an element of the source.
  __device__ __forceinline__ float beside(const T* element) const {
    return to_float(static_cast<const T*>(map.beside)[element - all]);
  }

  // The first `count` images of an element of a channel.
  __device__ __forceinline__ void apply(int channel, const T* from, int64_t stride, int count,
                                        T (&images)[Vector<T>::kSize]) const {
    const bool has_affine = map.affine.scale != nullptr;
    const float center = has_affine ? map.affine.center[first + channel] : 0.f;
    const float scale = has_affine ? map.affine.scale[first + channel] : 1.f;
    const float shift = has_affine ? map.affine.shift[first + channel] : 0.f;
#pragma unroll
    for (int i = 0; i < Vector<T>::kSize; ++i) {
      if (i >= count) continue;  // zeros stay zeros
      float x = to_float(images[i]);
      if (map.beside != nullptr) {
        x += affine(beside(from + i * stride), center, scale, shift);
      } else if (has_affine) {
        x = affine(x, center, scale, shift);
      }
      images[i] = from_float<T>(map.relu ? relu(x) : x);
    }
  }

  __device__ __forceinline__ Cursor cursor(int64_t offset) const { return at + offset; }

  __device__ __forceinline__ float value(int channel, Cursor from, int64_t offset) const {
    const float x = to_float(from[offset]);
    if (map.beside == nullptr) return x;
    return x + affine(beside(from + offset), map.affine.center[channel], map.affine.scale[channel],
                      map.affine.shift[channel]);
  }
};

}  // namespace dsr::cuda
