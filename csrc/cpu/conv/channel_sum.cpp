#include "cpu/conv/channel_sum.h"

#include <algorithm>

#include "cpu/conv/workspace.h"

namespace dsr::cpu {
namespace {

// Images whose sums share one row of the workspace: fixed, so that threads only decide who adds
// which row, never what is added in which order.
constexpr int64_t kChunk = 8;
constexpr int kLanes = 8;  // independent sums of one channel, for the vector units

int64_t chunks(int64_t n) { return (n + kChunk - 1) / kChunk; }

template <class S>
double sum_row(const S* x, int64_t count, int64_t stride) {
  double lane[kLanes] = {};
  int64_t i = 0;
  if (stride == 1) {
    for (; i + kLanes <= count; i += kLanes) {
      for (int j = 0; j < kLanes; ++j) lane[j] += static_cast<double>(x[i + j]);
    }
  }
  double rest = 0;
  for (; i < count; ++i) rest += static_cast<double>(x[i * stride]);
  for (int j = 0; j < kLanes; ++j) rest += lane[j];
  return rest;
}

// sums[c] += the sum of one image's channel c.
template <class S>
void add_image(int64_t channels, int64_t height, int64_t width, const S* x, Strides4 s,
               double* sums) {
  if (s.c == 1) {  // channels innermost: pixel by pixel
    for (int64_t p = 0; p < height; ++p) {
      for (int64_t q = 0; q < width; ++q) {
        const S* pixel = x + p * s.h + q * s.w;
        for (int64_t c = 0; c < channels; ++c) sums[c] += static_cast<double>(pixel[c]);
      }
    }
    return;
  }
  const bool one_row = s.h == width * s.w;
  const int64_t rows = one_row ? 1 : height;
  const int64_t length = one_row ? height * width : width;
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t p = 0; p < rows; ++p) sums[c] += sum_row(x + c * s.c + p * s.h, length, s.w);
  }
}

}  // namespace

int64_t channel_sums_workspace(int64_t n, int64_t channels) {
  return chunks(n) * channels * static_cast<int64_t>(sizeof(double)) + kAlignment;
}

template <class S>
void channel_sums(int64_t n, int64_t channels, int64_t height, int64_t width, const S* x,
                  Strides4 strides, S* out, int threads, void* workspace) {
  auto* partial = reinterpret_cast<double*>(align_up(static_cast<char*>(workspace)));
  const int64_t count = chunks(n);
  constexpr int64_t kWorthThreads = 1 << 15;  // elements
  const bool several = threads > 1 && n * channels * height * width >= kWorthThreads;
#pragma omp parallel for num_threads(threads) if (several && count > 1)
  for (int64_t chunk = 0; chunk < count; ++chunk) {
    double* sums = partial + chunk * channels;
    std::fill(sums, sums + channels, 0.0);
    for (int64_t i = chunk * kChunk; i < std::min(n, (chunk + 1) * kChunk); ++i) {
      add_image(channels, height, width, x + i * strides.n, strides, sums);
    }
  }
  for (int64_t c = 0; c < channels; ++c) {
    double sum = 0;
    for (int64_t chunk = 0; chunk < count; ++chunk) sum += partial[chunk * channels + c];
    out[c] = static_cast<S>(sum);
  }
}

template void channel_sums<float>(int64_t, int64_t, int64_t, int64_t, const float*, Strides4,
                                  float*, int, void*);
template void channel_sums<double>(int64_t, int64_t, int64_t, int64_t, const double*, Strides4,
                                   double*, int, void*);

}  // namespace dsr::cpu
